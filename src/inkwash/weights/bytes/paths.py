"""From what a user names to the folder or file that is meant."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from inkwash.files import ModelFileError
from inkwash.weights.bytes.hub import fetch, is_hub_id

SHIPPED = ("mini", "mini-inpainting")


def model_path(name: str | Path, variant: str | None = None, offline: bool = False) -> Path:
    """The folder or file of a shipped model, of a path, or of a hub id, which is fetched where it is not in the cache.

    variant and offline: see `hub.fetch`. Raises ModelFileError where there is no such model.
    """
    if str(name) in SHIPPED:
        return Path(str(files("inkwash.shipped") / str(name)))
    path = Path(name)
    if path.exists():
        return path
    if isinstance(name, str) and is_hub_id(name):
        return fetch(name, variant, offline)
    raise ModelFileError(
        f"there is no model {str(name)!r}; give a folder, a file, an id of the hub, or one of {', '.join(SHIPPED)}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that says a name is none: which ones are near, or which there are."""
    known = sorted(known)
    low = {each.lower(): each for each in known}
    near = [low[each] for each in get_close_matches(name.lower()[:200], list(low), n=3, cutoff=0.5)]
    if near:
        return f"; near: {', '.join(near)}"
    return (
        f"; there are: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        if known
        else "; there is none"
    )


def named_files(places: Sequence[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of folders, however deep, and files that are given themselves, by their stems and paths in the folder.

    Of several files with one stem the first counts.
    """
    found: dict[str, Path] = {}
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in inside:
            if path.suffix.lower() in suffixes and path.is_file():
                found.setdefault(path.stem, path)
                if place.is_dir() and path.parent != place:
                    found.setdefault(path.relative_to(place).with_suffix("").as_posix(), path)
    return found


def find_named(kind: str, name: str, found: Mapping[str, Path]) -> Path:
    """One of `named_files`, whatever the case. Raises ValueError where there is none of the name."""
    if name in found:
        return found[name]
    low = {each.lower(): path for each, path in found.items()}
    if name.lower() in low:
        return low[name.lower()]
    raise ValueError(f"there is no {kind} {name!r}{nearest(name, found)}")
