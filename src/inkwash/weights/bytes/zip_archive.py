"""Zip archives as torch writes them: uncompressed entries, which are views of the mapped file."""

import struct
from dataclasses import dataclass
from mmap import mmap

from inkwash.files import ModelFileError

MAX_ENTRIES = 50_000
MAX_NAME = 512  # bytes of an entry's name: torch's are a file name and a number
END, END_64, LOCATOR_64 = (
    struct.Struct(layout) for layout in ("<4s4H2IH", "<4sQ2H2I4Q", "<4sIQI")
)  # the directory's end, its form for large files, and where that is
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
MAX_COMMENT = 65535  # bytes after the end
FULL = 0xFFFFFFFF  # a field of 32 bits whose value is in the extra field of 64-bit ones
ENCRYPTED = 1


@dataclass(frozen=True)
class Entry:
    """Location of a file by an archive's directory; sizes and offsets in bytes."""

    header: int
    size: int
    stored: bool  # neither compressed nor encrypted


def read_directory(data: mmap) -> dict[str, Entry]:
    """Every entry by its name. Raises ModelFileError, also for a duplicate name."""
    begin, num = find_directory(data)
    entries: dict[str, Entry] = {}
    at = begin
    for _ in range(num):
        if at + ENTRY.size > len(data):
            raise ModelFileError("its zip directory is cut short")
        fields = ENTRY.unpack_from(data, at)
        signature, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_size, extra_size, comment_size, header = *fields[10:13], fields[16]
        if signature != b"PK\1\2":
            raise ModelFileError(f"its zip directory is broken at byte {at}")
        at += ENTRY.size
        if name_size > MAX_NAME:
            raise ModelFileError(f"its zip directory has a name of {name_size} bytes")
        name = decoded(data[at : at + name_size])
        extra = data[at + name_size : at + name_size + extra_size]
        size, packed, header = large_fields(extra, size, packed, header)
        if name in entries:
            raise ModelFileError(f"it has two entries {name!r}")
        entries[name] = Entry(header, size, method == 0 and packed == size and not flags & ENCRYPTED)
        at += name_size + extra_size + comment_size
    return entries


def find_directory(data: mmap) -> tuple[int, int]:
    """The offset of the directory and its number of entries."""
    at = data.rfind(b"PK\5\6", max(0, len(data) - END.size - MAX_COMMENT))
    if at < 0 or at + END.size > len(data):
        raise ModelFileError("it is a zip archive without its end; is it cut short?")
    *_, num, size, begin, _ = END.unpack_from(data, at)
    locator = at - LOCATOR_64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        at = LOCATOR_64.unpack_from(data, locator)[2]
        if at + END_64.size > locator or data[at : at + 4] != b"PK\6\6":
            raise ModelFileError("it is a zip archive with a broken end")
        *_, num, size, begin = END_64.unpack_from(data, at)
    if num > MAX_ENTRIES:
        raise ModelFileError(f"it has {num:,} entries; at most {MAX_ENTRIES:,} are read")
    if begin + size > at:
        raise ModelFileError("its zip directory lies outside the file")
    return begin, num


def large_fields(extra: bytes, *fields: int) -> list[int]:
    """The fields, those that are full replaced by their 64-bit ones, which follow one another in this order."""
    full = sum(field == FULL for field in fields)
    while full and len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1 and 8 * full <= size <= len(extra) - 4:
            values = iter(struct.unpack_from(f"<{full}Q", extra, 4))
            return [next(values) if field == FULL else field for field in fields]
        extra = extra[4 + size :]
    return list(fields)


def decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError("its zip directory has a name that is not UTF-8") from error


def locate(data: mmap, name: str, entry: Entry) -> int:
    """The offset of the entry's bytes, all of which are in the file."""
    if not entry.stored:
        raise ModelFileError(
            f"its entry {name!r} is compressed or encrypted; torch stores entries as they are"
        )
    if entry.header + LOCAL.size > len(data) or data[entry.header : entry.header + 4] != b"PK\3\4":
        raise ModelFileError(f"its entry {name!r} is not where its directory says")
    *_, name_size, extra_size = LOCAL.unpack_from(data, entry.header)
    begin = entry.header + LOCAL.size + name_size + extra_size
    if begin + entry.size > len(data):
        raise ModelFileError(f"its entry {name!r} ends outside the file")
    return begin
