"""Embeddings made of several."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inkwash.adapters.embeddings import read_embedding
from inkwash.files import ModelFileError
from inkwash.merge.embeddings import merge_embeddings


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """In three programs' forms, and one of SDXL."""
    made = {
        name: tmp_path / f"{name}.{end}" for name, end in (("a", "safetensors"), ("b", "pt"), ("c", "bin"))
    }
    save_file({"emb_params": torch.full((2, 6), 1.0)}, made["a"])
    torch.save({"string_to_param": {"*": torch.full((3, 6), 2.0)}, "name": "b"}, made["b"])
    torch.save({"<c>": torch.full((6,), 4.0)}, made["c"])
    made["xl"] = tmp_path / "xl.safetensors"
    save_file({"clip_l": torch.ones(2, 6), "clip_g": torch.ones(2, 9)}, made["xl"])
    return made


def test_sums_and_rows(files: dict[str, Path], tmp_path: Path) -> None:
    three = [files[name] for name in "abc"]
    merge_embeddings(three, [1, 0.5, 0.25], tmp_path / "sum.safetensors")
    assert load_file(tmp_path / "sum.safetensors")["emb_params"][:, 0].tolist() == [3, 2, 1]
    merge_embeddings(three, [1, 0.5, 1], tmp_path / "rows.safetensors", "concat")
    (rows,) = read_embedding(tmp_path / "rows.safetensors", [6])
    assert rows[:, 0].tolist() == [1, 1, 1, 1, 1, 4]


def test_both_encoders_of_sdxl(files: dict[str, Path], tmp_path: Path) -> None:
    merge_embeddings([files["xl"], files["xl"]], [1, 2], tmp_path / "sum.safetensors")
    first, second = read_embedding(tmp_path / "sum.safetensors", [6, 9])
    assert first.equal(torch.full((2, 6), 3.0))
    assert second.equal(torch.full((2, 9), 3.0))


def test_what_does_not_fit(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        ModelFileError, match=r"xl.safetensors has vectors 6 and 9 wide, and .*a.safetensors 6"
    ):
        merge_embeddings([files["a"], files["xl"]], [1, 1], out)
    with pytest.raises(ModelFileError, match="78 vectors are more than the 75"):
        merge_embeddings([files["b"]] * 26, [1] * 26, out, "concat")
    with pytest.raises(ModelFileError, match="is one of the models that are merged"):
        merge_embeddings([files["a"]], [1], files["a"])
    assert not out.exists()
