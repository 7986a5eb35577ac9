"""Shards of samples, as webdataset writes and reads them."""

import io
import tarfile
from pathlib import Path

import pytest

from inkwash.data.tars import read_samples


def write(path: Path, files: dict[str, bytes], folders: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_neighbours_make_a_sample(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tar", {"0.png": b"p0", "0.json": b"j0", "1.png": b"p1"}, ("train/",))
    second = write(tmp_path / "b.tar", {"sub/1.seg.png": b"s", "sub/1.txt": b""})
    assert list(read_samples([first, second])) == [
        {"__key__": b"0", "png": b"p0", "json": b"j0"},
        {"__key__": b"1", "png": b"p1"},
        {"__key__": b"sub/1", "seg.png": b"s", "txt": b""},
    ]


def test_equal_keys_of_two_shards_are_two_samples(tmp_path: Path) -> None:
    shards = [write(tmp_path / f"{k}.tar", {"0.txt": b"%d" % k}) for k in range(2)]
    assert [sample["txt"] for sample in read_samples(shards)] == [b"0", b"1"]


def test_an_empty_and_a_broken_shard(tmp_path: Path) -> None:
    assert list(read_samples([write(tmp_path / "empty.tar", {})])) == []
    whole = write(tmp_path / "whole.tar", {"0.txt": b"x" * 5000})
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(tarfile.ReadError):
        list(read_samples([whole]))
