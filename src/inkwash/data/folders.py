"""Training pictures of a folder, a table or tars, whichever the path holds.

A folder of pictures with captions beside them (picture.txt or picture.caption); kohya's folders `N_words`, whose pictures
are seen N times and are described by the words where they have no caption; `metadata.jsonl` or `metadata.csv` with the
columns file_name and text, as Hugging Face's imagefolder has them; webdataset tars; parquet files.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import TarError
from typing import Any

from inkwash.data.captions import CaptionRules
from inkwash.data.examples import PICTURES, Bytes, Example
from inkwash.data.parquet import rows
from inkwash.data.tars import find_samples

REPEATED = re.compile(r"(\d+)_(.*)")
TABLES = ("metadata.jsonl", "metadata.csv")
TEXT_COLUMNS = ("text", "caption", "prompt")
ROLES = (
    "mask",
    "hint",
    "depth",
    "before",
    "labels",
)  # of other pictures, each in a folder or a column of its name
ALSO = {"hint": "conditioning_image"}  # how diffusers' examples call the column


class DataError(ValueError):
    """Training data that is not there, or not as it should be."""


@dataclass(frozen=True)
class Subset:
    """Options for the pictures of one place.

    place: a folder, a table (.jsonl, .csv), a tar, or a parquet file. caption_extension: of text files beside the pictures;
    empty tries .txt, then .caption. class_tokens: the caption of pictures that have none. roles: folders of others of the
    same names; a folder inside that is called by one of ROLES is one.
    """

    place: Path
    caption_extension: str = ""
    class_tokens: str | None = None
    repeats: int = 1
    weight: float = 1.0
    rules: CaptionRules = CaptionRules()
    flip: bool = False
    random_crop: bool = False
    roles: Mapping[str, Path] | None = None

    def example(
        self,
        image: Bytes,
        captions: tuple[str, ...],
        pictures: Mapping[str, Bytes],
        columns: Mapping[str, Any],
    ) -> Example:
        """A picture taken by these rules."""
        own = (self.repeats, self.weight, self.flip, self.random_crop)
        return Example(image, captions, self.rules, pictures, *own, columns)

    def captions(self, columns: Mapping[str, Any], text: str | None = None) -> tuple[str, ...]:
        """A text, else those of the first column that has some, else the words for pictures without one."""
        texts = text or next(
            (columns[one] for one in TEXT_COLUMNS if columns.get(one)), self.class_tokens or ""
        )
        return tuple(map(str, texts)) if isinstance(texts, list) else (str(texts),)


def read_examples(subset: Subset) -> list[Example]:
    """The pictures of a place, sorted. Raises DataError where there are none, and for a table that can't be read."""
    place = subset.place
    if not place.exists():
        raise DataError(f"there is no {place}")
    if place.is_file():
        readers = {".jsonl": read_table, ".csv": read_table, ".tar": read_tars, ".parquet": read_parquet}
        if place.suffix not in readers:
            raise DataError(f"{place} is not a folder, nor one of {', '.join(readers)}, nor kohya's .toml")
        found = list(readers[place.suffix](subset))
    elif table := next((place / name for name in TABLES if (place / name).exists()), None):
        found = list(read_table(replace(subset, place=table)))
    elif any(place.glob("*.tar")):
        found = list(read_tars(subset))
    elif any(place.rglob("*.parquet")):
        found = list(read_parquet(subset))
    else:
        found = list(read_folder(subset))
    if not found:
        raise DataError(f"{place} holds no pictures; these endings are: {', '.join(sorted(PICTURES))}")
    return found


def read_folder(subset: Subset) -> Iterator[Example]:
    """The pictures of a folder and of the folders in it, whose names may say repeats and words, or a role."""
    beside = {role: subset.place / role for role in ROLES if (subset.place / role).is_dir()}
    subset = replace(subset, roles=beside | dict(subset.roles or {}))
    apart = {*beside.values(), *(subset.roles or {}).values()}
    for path in sorted(subset.place.iterdir()):
        if path.name.startswith("."):  # half of a file that was not finished, thumbnails, a Mac's notes
            continue
        if path.is_dir():
            named = REPEATED.fullmatch(path.name)
            inner = replace(subset, place=path)
            if named:
                inner = replace(inner, repeats=int(named[1]) * subset.repeats, class_tokens=named[2] or None)
            if path not in apart:
                yield from read_folder(inner)
        elif is_picture(path):
            yield make_example(subset, path, caption_beside(subset, path))


def is_picture(path: Path) -> bool:
    """Return True for the name of a picture that is not hidden."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def caption_beside(subset: Subset, path: Path) -> tuple[str, ...]:
    """The text beside a picture, else its subset's words, else nothing. Raises DataError for an empty caption file."""
    for ending in [subset.caption_extension] if subset.caption_extension else [".txt", ".caption"]:
        beside = path.with_suffix(ending)
        if beside.exists():
            try:
                text = beside.read_text("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{beside} is not text in UTF-8: {error}") from error
            if not text:
                raise DataError(f"{beside} is empty; write a caption, or remove the file")
            return (text,)
    return (subset.class_tokens or "",)


def make_example(
    subset: Subset,
    path: Path,
    captions: tuple[str, ...],
    columns: Mapping[str, Any] = {},
    roles: Mapping[str, Path] = {},
) -> Example:
    """The example of a picture file. Raises DataError where a picture that belongs to it is missing."""
    pictures = {role: Bytes(other) for role, other in roles.items()}
    for role, folder in (subset.roles or {}).items():
        near = [folder / path.with_suffix(ending).name for ending in (path.suffix, *sorted(PICTURES))]
        other = next((one for one in near if one.exists()), None)
        if other is None:
            raise DataError(f"{path} has no {role} picture of its name in {folder}")
        pictures[role] = Bytes(other)
    return subset.example(Bytes(path), captions, pictures, columns)


def read_table(subset: Subset) -> Iterator[Example]:
    """The pictures that a .jsonl or .csv names, relative to its folder. Raises DataError for a row that can't be used."""
    table = subset.place
    for number, row in enumerate(rows_of(table), 1):
        where = f"{table} row {number}"
        if "file_name" not in row:
            raise DataError(f"{where} has no column file_name; it has {', '.join(map(str, row))}")
        name = row["file_name"]
        if not isinstance(name, str) or not (path := table.parent / name).is_file():
            raise DataError(f"{where}: file_name {name!r} is not a file in {table.parent}")
        captions = subset.captions(row)
        roles = {}
        for role in ROLES:
            if other := row.get(role) or row.get(ALSO.get(role, role)):
                roles[role] = table.parent / str(other)
                if not roles[role].is_file():
                    raise DataError(f"{where}: {role} {other!r} is not a file in {table.parent}")
        yield make_example(subset, path, captions, row, roles)


def rows_of(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, one at a time; numbers of a .csv as numbers, but in captions."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                for row in csv.DictReader(file):
                    yield {
                        key: value if key in TEXT_COLUMNS else number_of(value)
                        for key, value in row.items()
                        if key is not None
                    }
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{table} line {number} is not an object with columns")
                    yield row
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read: {error}") from error


def number_of(value: Any) -> Any:
    """A .csv's cell as a number where it is one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def read_tars(subset: Subset) -> Iterator[Example]:
    """The samples of webdataset tars: {key}.png (or another picture) with {key}.txt, or {key}.json with a caption.

    Raises DataError for a shard that is no whole tar, and for JSON without columns.
    """
    shards = [subset.place] if subset.place.is_file() else sorted(subset.place.glob("*.tar"))
    try:
        samples = list(find_samples(shards))
    except TarError as error:
        raise DataError(str(error)) from error
    for sample in samples:
        image = next((part for ending, part in sample.items() if f".{ending}".lower() in PICTURES), None)
        if image is None:
            continue
        columns: dict[str, Any] = {}
        if "json" in sample:
            try:
                columns = json.loads(sample["json"].read())
            except ValueError as error:
                raise DataError(f"{sample['json']} can't be read: {error}") from error
            if not isinstance(columns, dict):
                raise DataError(f"{sample['json']} is not an object with columns")
        text = sample["txt"].read().decode("utf-8", "replace").strip() if "txt" in sample else None
        pictures = {
            role: part
            for role in ROLES
            for ending, part in sample.items()
            if ending.startswith(f"{role}.") and f".{ending.rpartition('.')[2]}" in PICTURES
        }
        yield subset.example(image, subset.captions(columns, text), pictures, columns)


def read_parquet(subset: Subset) -> Iterator[Example]:
    """The rows of parquet files, as Hugging Face datasets have them. Raises DataError for a file that can't be read."""
    files = [subset.place] if subset.place.is_file() else sorted(subset.place.rglob("*.parquet"))
    for path in files:
        try:
            for image, columns in rows(path):
                yield subset.example(image, subset.captions(columns), {}, columns)
        except ValueError as error:
            raise DataError(str(error)) from error
