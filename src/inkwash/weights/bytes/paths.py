"""Resolve a model's name to its file or folder."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from inkwash.files import ModelFileError
from inkwash.weights.bytes.hub import fetch, is_hub_id

SHIPPED = tuple(
    sorted(path.name for path in files("inkwash.shipped").iterdir() if (path / "model_index.json").is_file())
)
# controls, by the annotator whose hints they see, or by what they are
SHIPPED_CONTROLS = {"canny": "mini-canny", "ip-adapter": "mini-ip-adapter"}
SHIPPED_LORAS = ("mini-turbo",)


def model_path(name: str | Path, variant: str | None = None, offline: bool = False) -> Path:
    """The folder or file of a shipped model, of a path, or of a hub id, which is fetched where it is not in the cache.

    variant and offline: see `hub.fetch`. Raises ModelFileError where there is no such model.
    """
    check_model_name(name)
    if str(name) in SHIPPED:
        return Path(str(files("inkwash.shipped") / str(name)))
    path = Path(name)
    return path if path.exists() else fetch(str(name), variant, offline)


def check_model_name(name: str | Path) -> None:
    """Check that a name is a shipped model's, a path that exists, or an id of the hub; raise ModelFileError otherwise."""
    path = Path(name)
    # of a folder that exists a file is meant
    of_hub = isinstance(name, str) and is_hub_id(name) and not path.parent.is_dir()
    if str(name) not in SHIPPED and not path.exists() and not of_hub:
        raise ModelFileError(
            f"there is no model {str(name)!r}; give a folder, a file, an id of the hub, or one of {', '.join(SHIPPED)}"
        )


def control_path(name: str) -> Path:
    """The folder or file of a shipped control, by its name in SHIPPED_CONTROLS, or what `model_path` finds.

    Raises ModelFileError where there is none.
    """
    if name not in SHIPPED_CONTROLS:
        return model_path(name)
    folder = Path(str(files("inkwash.shipped") / SHIPPED_CONTROLS[name]))
    if not folder.is_dir():
        raise ModelFileError(
            f"the control {name} is not in this installation, which lacks {folder.name}; give the file of another"
        )
    file = folder / f"{folder.name}.safetensors"
    return file if file.is_file() else folder


def shipped_part(name: str) -> Path | None:
    """The file or folder of a shipped LoRA or control, by the name of its folder."""
    controls = {folder: short for short, folder in SHIPPED_CONTROLS.items()}
    return control_path(controls[name]) if name in controls else shipped_lora(name)


def shipped_lora(name: str) -> Path | None:
    """The file of a shipped LoRA, where there is one of this name."""
    path = Path(str(files("inkwash.shipped") / name / f"{name}.safetensors"))
    return path if name in SHIPPED_LORAS and path.is_file() else None


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


def named_files(places: Sequence[Path], suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of folders, however deep, and files that are given themselves, by name.

    A name is a file's stem, its path without the suffix within its folder, or, of a file that is given itself, its path
    as written. Several different files may have one name.
    """
    found: dict[str, list[Path]] = {}
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in inside:
            if path.suffix.lower() not in suffixes or not path.is_file():
                continue
            whole = path.relative_to(place) if place.is_dir() else path
            for name in {path.stem, whole.with_suffix("").as_posix()}:
                if not any(other.samefile(path) for other in found.setdefault(name, [])):
                    found[name].append(path)
    return found


def find_named(kind: str, name: str, found: Mapping[str, Sequence[Path]]) -> Path:
    """One of `named_files`, whatever the case. Raises ValueError for an unknown name and for one of several files."""
    for key in (name, unquote(name)):
        files = found.get(key) or next(
            (files for each, files in found.items() if each.lower() == key.lower()), []
        )
        if len(files) > 1:
            *most, last = map(str, files)
            raise ValueError(
                f"there are several files of the {kind} {name!r}: {', '.join(most)} and {last}; name it by its path, as "
                f"{next((each for each, paths in found.items() if '/' in each and files[0] in paths), files[0].stem)!r}"
            )
        if files:
            return files[0]
    raise ValueError(f"there is no {kind} {name!r}{nearest(name, found)}")
