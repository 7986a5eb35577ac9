"""Models of the Hugging Face hub, by their ids: fetched once, then read from its cache, also without a network."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from inkwash.files import ModelFileError

# owner/name, owner/name/path/of/a.safetensors, each with an @revision where it is not the newest
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./ -]+\.(?:safetensors|ckpt|pt|pth|bin)))?(?:@([\w./-]+))?")
SMALL = (".json", ".txt")
SKIPPED = {"safety_checker", "feature_extractor", "image_encoder"}  # folders that no drawing needs


def is_hub_id(name: str) -> bool:
    """Return True if a name has the form of a hub id: OWNER/NAME, and a file where the repository has several."""
    return HUB_ID.fullmatch(name) is not None


def fetch(name: str, variant: str | None = None, offline: bool = False) -> Path:
    """The file or folder of a hub id, in the hub's cache; missing files are downloaded.

    variant: such as "fp16", the weights to take where a repository has several. offline: only look in the cache, which
    HF_HUB_OFFLINE=1 says for every program. Raises ModelFileError where it can't be had.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.constants import HF_HUB_OFFLINE
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ModelFileError(
            f"{name} is on the Hugging Face hub: pip install 'inkwash[hub]' to fetch it"
        ) from error
    match = HUB_ID.fullmatch(name)
    if match is None:
        raise ModelFileError(f"{name!r} is not an id of the hub: owner/name, or owner/name/file.safetensors")
    repo, file, revision = match.groups()
    offline = offline or HF_HUB_OFFLINE
    try:
        if file:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=offline))
        if offline:
            folder = cached(repo, revision or "main")
        else:
            patterns = wanted(hub.list_repo_files(repo, revision=revision), variant, repo)
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
        return folder if (folder / "model_index.json").exists() else only_file(folder, repo)
    except LocalEntryNotFoundError as error:
        raise ModelFileError(
            f"{name} is not in the hub's cache, and there is no network to fetch it"
        ) from error
    except ModelFileError:
        raise
    except (
        Exception
    ) as error:  # the hub's HTTP library has errors of its own, and not always the same library
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(f"{name} can't be fetched: {why[:300]}") from error


def cached(repo: str, revision: str) -> Path:
    """The folder that a repository's revision has in the cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, LocalEntryNotFoundError

    try:
        mine = [found for found in scan_cache_dir().repos if found.repo_id == repo]
    except CacheNotFound:
        mine = []
    for at in (at for found in mine for at in found.revisions):
        if revision in at.refs or at.commit_hash.startswith(revision):
            return at.snapshot_path
    raise LocalEntryNotFoundError(repo)


def wanted(names: Iterable[str], variant: str | None, repo: str) -> list[str]:
    """The files of a repository that a model needs: one set of weights for each part, safetensors if possible.

    Raises ModelFileError where there is no whole model, or more than one.
    """
    paths = [PurePosixPath(name) for name in names]
    if PurePosixPath("model_index.json") not in paths:
        return [only(repo, [str(path) for path in paths if len(path.parts) == 1])]
    folders = {path.parent for path in paths if len(path.parts) == 2} - {*map(PurePosixPath, SKIPPED)}
    chosen = ["model_index.json"]
    for folder in sorted(folders):
        here = [path for path in paths if path.parent == folder]
        weights = [path for path in here if path.suffix in (".safetensors", ".bin")]
        chosen += [
            str(path) for path in here if path.suffix in SMALL and not path.name.endswith("index.json")
        ]
        chosen += map(str, one_set(weights, here, variant))
    return chosen


def one_set(
    weights: list[PurePosixPath], here: list[PurePosixPath], variant: str | None
) -> list[PurePosixPath]:
    """A folder's weights of one format and one variant, with the list of their shards."""
    for suffix in (".safetensors", ".bin"):
        sets: dict[str, list[PurePosixPath]] = {}
        for path in weights:
            if path.suffix == suffix:
                sets.setdefault(variant_of(path), []).append(path)
        if variant is not None and variant not in sets:
            continue
        if sets:
            key = variant if variant is not None else "" if "" in sets else min(sets)
            middle = f".{key}" if key else ""
            lists = [path for path in here if path.name.endswith(f"{suffix}.index{middle}.json")]
            return [*sets[key], *lists]
    if weights and variant is not None:
        raise ModelFileError(f"{weights[0].parent} has no weights of the variant {variant}")
    return []


def variant_of(path: PurePosixPath) -> str:
    """fp16 of model.fp16.safetensors and of model.fp16-00001-of-00002.safetensors, else nothing."""
    middle = path.name.split(".")[1:-1]
    return re.sub(r"-\d{5}-of-\d{5}$", "", middle[-1]) if middle else ""


def only_file(folder: Path, repo: str) -> Path:
    return folder / only(repo, [path.name for path in folder.iterdir()])


def only(repo: str, names: list[str]) -> str:
    """The one file of weights among them."""
    files = sorted(name for name in names if name.endswith((".safetensors", ".ckpt")))
    tensors = [name for name in files if name.endswith(".safetensors")] or files
    if len(tensors) == 1:
        return tensors[0]
    if not tensors:
        raise ModelFileError(f"{repo} holds no model that can be opened")
    raise ModelFileError(
        f"{repo} holds several models; name one: {', '.join(f'{repo}/{name}' for name in tensors)}"
    )
