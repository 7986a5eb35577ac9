"""Hashes of files, and the cache that keeps those of large ones."""

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

from inkwash.weights import hashes
from inkwash.weights.bytes.tensor_file import write_tensors

OLD = time.time() - 3600


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that are hashed, each time that one is; all files count as large, and the cache is empty."""
    monkeypatch.setattr(hashes, "LARGE", 0)
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    true, found = hashlib.file_digest, []

    def file_digest(file, name):
        found.append(Path(file.name).name)
        return true(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return found


def put(path: Path, content: bytes) -> Path:
    time.sleep(0.02)  # the file system's clock may tick this slowly
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return path


def sha256(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()


def test_a_file_is_hashed_once(read: list[str], tmp_path: Path) -> None:
    path = put(tmp_path / "a", b"one")
    (tmp_path / "link").symlink_to(path)
    assert {hashes.hash_of([each]) for each in (path, path, tmp_path / "link")} == {sha256(b"one")}
    assert read == ["a"]


def test_a_changed_file_is_hashed_again(read: list[str], tmp_path: Path) -> None:
    path = put(tmp_path / "a", b"one")
    hashes.hash_of([path])
    put(path, b"two")  # of one size, and of one time that can be set
    assert hashes.hash_of([path]) == sha256(b"two")
    put(tmp_path / "b", b"six").replace(path)
    assert hashes.hash_of([path]) == sha256(b"six")
    assert read == ["a", "a", "a"]


def test_a_file_that_was_just_written_is_not_remembered(
    read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 60.0)
    path = put(tmp_path / "a", b"one")  # its status changed now
    assert hashes.hash_of([path]) == hashes.hash_of([path]) == sha256(b"one")
    assert read == ["a", "a"]


def test_a_small_file_is_not_remembered(
    read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "LARGE", 4)
    path = put(tmp_path / "a", b"one")
    assert hashes.hash_of([path]) == hashes.hash_of([path]) == sha256(b"one")
    assert read == ["a", "a"] and not (tmp_path / "cache").exists()


def test_several_files_are_named_by_their_own_hashes(read: list[str], tmp_path: Path) -> None:
    paths = [put(tmp_path / name, name.encode()) for name in "ab"]
    whole = sha256(bytes.fromhex(sha256(b"a")), bytes.fromhex(sha256(b"b")))
    assert hashes.hash_of(paths) == hashes.hash_of(paths) == whole
    assert read == ["a", "b"]


def test_a_payload_is_remembered_apart_from_its_file(read: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(4.0)}, {})
    os.utime(path, (OLD, OLD))
    whole, payload = path.read_bytes(), torch.arange(4.0).numpy().tobytes()
    for _ in range(2):
        assert hashes.file_hash(path) == sha256(whole)
        assert hashes.file_hash(path, payload=True) == sha256(payload)
    assert len(read) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"state": [1], "sha256": "0"}', "null"])
def test_a_damaged_note_is_passed_over(read: list[str], tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "a", b"one")
    hashes.hash_of([path])
    (note,) = (tmp_path / "cache/inkwash/hashes").iterdir()
    note.write_text(content)
    assert hashes.hash_of([path]) == hashes.hash_of([path]) == sha256(b"one")
    assert read == ["a", "a"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "file", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = put(tmp_path / "a", b"one")
    assert hashes.hash_of([path]) == hashes.hash_of([path]) == sha256(b"one")
    assert read == ["a", "a"]
