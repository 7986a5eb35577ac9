"""The files of a model folder: JSON, text, and weights with their shards, read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError, write_text
from inkwash.models.unigram import Unigram
from inkwash.weights.bytes.tensor_file import read_tensors, write_tensors
from inkwash.weights.checkpoint import Json
from inkwash.weights.names.wrappers import plain_tensors, read_model_file

MAX_TEXT = 16_000_000  # bytes of a small file
SENTENCEPIECE = "spiece.model"


def weight_folders(folder: Path) -> dict[str, Path]:
    return {
        part.name: part
        for part in folder.iterdir()
        if part.is_dir() and any([*part.glob("*.safetensors*"), *part.glob("*.bin*")])
    }


def small_files(folder: Path) -> dict[str, str]:
    """JSON and text files by their paths within the folder, but for the lists of shards."""
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is not a folder")
    found = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix in (".json", ".txt") and not path.name.endswith(".index.json") and path.is_file():
            found[path.relative_to(folder).as_posix()] = read_text(path)
        elif path.name == SENTENCEPIECE and not (path.parent / "tokenizer.json").exists():
            found[f"{path.parent.name}/tokenizer.json"] = sentencepiece_json(path)
    return found


def sentencepiece_json(path: Path) -> str:
    """A SentencePiece vocabulary as `tokenizer.json`."""
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
        return Unigram.from_model(path.read_bytes()).texts()["tokenizer.json"]
    except (OSError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from error


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT:,} bytes")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from error


def parsed(text: str, where: Path) -> Json:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{where} holds no JSON object")
    return content


def read_weights(folder: Path, variant: str | None = None) -> tuple[dict[str, Tensor], list[Path]]:
    """Tensors of a part's one file or its shards, and those files."""
    middle = f".{variant}" if variant else ""
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
        for suffix in (".safetensors", ".bin"):
            whole, listing = folder / f"{stem}{middle}{suffix}", folder / f"{stem}{suffix}.index{middle}.json"
            if whole.exists():
                return read_model_file(whole).tensors, [whole]
            if listing.exists():
                return read_shards(listing)
    if variant is None:
        variants = {path.name.split(".")[-2].split("-")[0] for path in folder.glob("*.*.safetensors")}
        if len(variants) == 1:
            return read_weights(folder, variants.pop())
    names = sorted(path.name for path in folder.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    raise ModelFileError(
        f"{folder} has no weights{f' of the variant {variant}' if variant else ''}; there is {found}"
    )


def read_shards(listing: Path) -> tuple[dict[str, Tensor], list[Path]]:
    names = parsed(read_text(listing), listing).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelFileError(f"{listing} has no weight_map of names")
    if bad := [name for name in names.values() if Path(name).name != name]:
        raise ModelFileError(f"{listing} names a file outside its folder: {bad[0]}")
    files = [listing.parent / name for name in sorted(set(names.values()))]
    tensors = {key: value for file in files for key, value in read_tensors(file).tensors.items()}
    if missing := names.keys() - tensors.keys():
        raise ModelFileError(f"{listing} lists {min(missing)}, which its files lack")
    return plain_tensors(tensors), files


def dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def inside(folder: Path, path: str) -> Path:
    """A path within a folder, and nowhere else."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ModelFileError(f"{path!r} is not a path within a folder")
    return folder / path


def write_weights(folder: Path, stem: str, tensors: Mapping[str, Tensor], max_shard: int) -> None:
    """One file, or shards of at most max_shard bytes with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in sorted(tensors.items()):
        if shards[-1] and size + value.nbytes > max_shard - 100_000:  # the header's share
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [f"{stem}.safetensors"]
    for old in folder.glob(f"{stem}*"):
        old.unlink()
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard, {"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(value.nbytes for value in tensors.values())
        listing = {"metadata": {"total_size": total}, "weight_map": where}
        write_text(folder / f"{stem}.safetensors.index.json", dumped(listing))
