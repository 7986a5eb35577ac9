"""Parquet files of pictures with captions, as Hugging Face datasets are stored. Needs the package pyarrow."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from inkwash.data.examples import Bytes

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")


@dataclass(frozen=True)
class CellBytes(Bytes):
    """Location of a picture's bytes: a cell of a parquet file, its row counted within a group of rows."""

    column: str = "image"
    group: int = 0
    row: int = 0

    def read(self) -> bytes:
        """Reads the group, which is kept for the rows that follow."""
        value = cells(self.path, self.group, self.column)[self.row].as_py()
        return picture_bytes(value)


def picture_bytes(value: Any) -> bytes:
    """A picture's bytes, from a cell of bytes or a dictionary as the datasets library writes. Raises OSError for others."""
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise OSError("the cell holds no picture's bytes")
    return found


def open_file(path: Path):  # of a package that may be missing
    """Open a Parquet file. Raises ValueError if it can't be read or pyarrow is missing."""
    try:
        from pyarrow.lib import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install 'inkwash[parquet]'") from None
    try:
        return ParquetFile(path)
    except (OSError, ArrowInvalid) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


@lru_cache(maxsize=2)
def cells(path: Path, group: int, column: str):
    """A column of a group of rows."""
    return open_file(path).read_row_group(group, columns=[column]).column(0)


def rows(path: Path) -> Iterator[tuple[CellBytes, dict[str, Any]]]:
    """Location of each picture's bytes, and the other columns of its row. Raises ValueError for a file without pictures."""
    file = open_file(path)
    names = file.schema_arrow.names
    column = next((name for name in IMAGE_COLUMNS if name in names), None)
    if column is None:
        raise ValueError(f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; it has {', '.join(names[:12])}")
    others = [name for name in names if name != column]
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=others).to_pylist() if others else []
        for row in range(file.metadata.row_group(group).num_rows):
            place = CellBytes(path, name=f"row {group}.{row}", column=column, group=group, row=row)
            yield place, table[row] if others else {}
