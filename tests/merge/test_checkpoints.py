"""Laws of merged checkpoints, and what is refused before anything is written."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inkwash
from inkwash import files
from inkwash.files import ModelFileError
from inkwash.merge import writing
from inkwash.merge.expression import Model, Value, merged
from inkwash.merge.making import make
from inkwash.merge.methods import METHODS
from inkwash.merge.recipe import read_recipe
from inkwash.merge.sources import Source
from inkwash.merge.writing import write, write_as_folder
from inkwash.weights.bytes import checked_file
from inkwash.weights.inspect import inspect

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"


@pytest.fixture
def opened(checkpoints: dict[str, Path]) -> dict[str, Value]:
    return {name: Model.open(path) for name, path in checkpoints.items()}


def written(value: Value, path: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    write(value, path, dtype)
    return load_file(path)


@pytest.mark.parametrize("method", ["weighted_sum", "slerp"])
def test_alpha_0_and_1_are_the_models_themselves(opened, checkpoints, method: str, tmp_path: Path) -> None:
    a, b = load_file(checkpoints["a"]), load_file(checkpoints["b"])
    first = written(merged(method, opened["a"], opened["b"], alpha=0), tmp_path / "0.safetensors")
    second = written(merged(method, opened["a"], opened["b"], alpha=1), tmp_path / "1.safetensors")
    assert first.keys() == second.keys() == a.keys()
    for name in a:
        assert first[name].view(torch.int16).equal(a[name].view(torch.int16)), name
        assert second[name].view(torch.int16).equal(b[name].half().view(torch.int16)), name


def test_the_formula_holds_for_every_tensor(opened, checkpoints, tmp_path: Path) -> None:
    a, b, c = (load_file(checkpoints[name]) for name in "abc")
    value = merged("add_difference", opened["b"], opened["c"], opened["a"], alpha=0.7)
    for name, made in written(value, tmp_path / "made.safetensors").items():
        wanted = b[name].double() + 0.7 * (c[name].double() - a[name].double())
        torch.testing.assert_close(made.double(), wanted, rtol=1e-6, atol=1e-6)


def test_what_is_added_and_subtracted_is_gone(opened, checkpoints, tmp_path: Path) -> None:
    difference = opened["b"] - opened["c"]
    made = written(opened["a"] + difference - difference, tmp_path / "made.safetensors")
    for name, value in load_file(checkpoints["a"]).items():
        torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-6)


def test_the_order_of_models_does_not_matter_where_the_formula_has_none(opened) -> None:
    a, b, c = opened["a"], opened["b"], opened["c"]
    pairs = [
        (merged("average", a, b, c), merged("average", c, a, b)),
        (merged("geometric_median", a, b, c), merged("geometric_median", b, c, a)),
        (merged("weighted_sum", a, b, alpha=0.3), merged("weighted_sum", b, a, alpha=0.7)),
        (merged("model_stock", a, b, c), merged("model_stock", a, c, b)),
        (merged("ties", a, b, c, density=0.5), merged("ties", a, c, b, density=0.5)),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.tensor(FIRST), other.tensor(FIRST), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_twice_and_a_whole_model(opened, method: str, tmp_path: Path) -> None:
    least = METHODS[method].inputs[0]
    inputs = [opened[name] for name in "abc"][:least]
    write(merged(method, *inputs), tmp_path / "1.safetensors")
    write(merged(method, *inputs), tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert {str(value.dtype) for value in load_file(tmp_path / "1.safetensors").values()} == {"torch.float16"}


def test_blocks_and_networks_have_weights_of_their_own(opened, checkpoints, tmp_path: Path) -> None:
    a, b = load_file(checkpoints["a"]), load_file(checkpoints["b"])
    alpha = {"blocks": [0, 1, 0, 1, 0, 1, 0, 1, 0], "components": {"vae": 1}}
    alpha["blocks"] = [float(i == 1) for i in range(2 * 4 + 1)]
    made = written(
        merged("weighted_sum", opened["a"], opened["b"], alpha=alpha | {"base": 0}),
        tmp_path / "m.safetensors",
    )
    for name, value in made.items():
        of_b = ".input_blocks.1." in name or name.startswith("first_stage_model.")
        assert value.equal(b[name].half() if of_b else a[name]), name


def test_the_result_draws_and_says_what_it_was_made_of(checkpoints, tmp_path: Path) -> None:
    text = f"""
    dtype = "fp32"
    [models]
    one = "{checkpoints["a"].as_posix()}"
    two = "{checkpoints["b"].as_posix()}"
    three = "{checkpoints["c"].as_posix()}"
    [[steps]]
    name = "sum"
    method = "weighted_sum"
    models = ["one", "two"]
    alpha = 0.25
    [[steps]]
    method = "dare"
    models = ["sum", "three"]
    density = 0.5
    alpha = {{ base = 0.1 }}
    seed = 7
    """
    (tmp_path / "recipe.toml").write_text(text)
    recipe = read_recipe(tmp_path / "recipe.toml")
    made = tmp_path / "made.safetensors"
    make(recipe, made, tmp_path)
    assert inkwash.load(made).text_to_image("a taxi", steps=2)[0].size == (32, 32)

    tree = inspect(made)["ancestors"]
    assert tree["method"] == "dare"
    assert [parent["name"] for parent in tree["parents"]] == [
        "a.safetensors",
        "b.safetensors",
        "c.safetensors",
    ]

    again = read_recipe(made)  # the same, from the metadata
    make(again, tmp_path / "again.safetensors", checkpoints["a"].parent)
    assert load_file(made).keys() == load_file(tmp_path / "again.safetensors").keys()
    data = [path.read_bytes() for path in (made, tmp_path / "again.safetensors")]
    size = [8 + int.from_bytes(one[:8], "little") for one in data]
    assert data[0][size[0] :] == data[1][size[1] :]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.3, 0.5, -0.2, 1.4])
def test_half_precision_is_rounded_once(dtype: torch.dtype, alpha: float, tmp_path: Path) -> None:
    """What is computed in pieces of half precision is what float32 gives, rounded."""
    random = torch.Generator().manual_seed(5)
    names, size = (FIRST, "model.diffusion_model.out.2.bias"), (600, 1000)
    models = []
    for i in range(2):
        tensors = {name: torch.randn(size, generator=random).to(dtype) for name in names}
        source = Source(tmp_path / f"{i}.safetensors", tensors, {})
        models.append(Model(source))
    value = merged("weighted_sum", *models, alpha=alpha)
    wanted = value.tensor(names[1]).to(dtype)
    assert torch.cat(list(value.blocks(names[1], dtype))).reshape(size).equal(wanted)
    assert written(value, tmp_path / "made.safetensors")[names[1]].equal(wanted)
    nested = merged("add_difference", value, models[1], models[0], alpha=0.7)
    made = torch.cat(list(nested.blocks(names[1], dtype)))
    torch.testing.assert_close(made, nested.tensor(names[1]).flatten(), rtol=1e-6, atol=1e-6)


def test_a_recipe_refuses_another_file_of_the_same_name(checkpoints, tmp_path: Path) -> None:
    fields = {
        "models": {"a": str(checkpoints["a"]), "b": str(checkpoints["b"])},
        "steps": [{"method": "weighted_sum", "models": ["a", "b"]}],
        "hashes": {"a": "0" * 64},
    }
    import json

    (tmp_path / "recipe.json").write_text(json.dumps(fields))
    with pytest.raises(ModelFileError, match="another sha256"):
        read_recipe(tmp_path / "recipe.json").sources(tmp_path)


def test_folders_are_read_and_written(tiny: Path, opened, tmp_path: Path) -> None:
    value = merged("weighted_sum", Model.open(tiny), opened["b"], alpha=0.5)
    write_as_folder(value, tmp_path / "folder", metadata=dict(Model.open(tiny).source.metadata))
    made, a, b = (Model.open(p) for p in (tmp_path / "folder", tiny, opened["b"].source.path))
    for name in a.infos:
        wanted = 0.5 * a.tensor(name) + 0.5 * b.tensor(name)
        torch.testing.assert_close(made.tensor(name), wanted, rtol=1e-5, atol=1e-6)


def widened(path: Path, to: Path, channels: int) -> Path:
    tensors = load_file(path)
    first = tensors[FIRST]
    random = torch.Generator().manual_seed(5)
    extra = torch.randn(first.shape[0], channels, 3, 3, generator=random).to(first.dtype)
    save_file(tensors | {FIRST: torch.cat([first, extra], 1)}, to)
    return to


def test_an_inpainting_model_keeps_what_only_it_sees(checkpoints, opened, tmp_path: Path) -> None:
    special = Model.open(widened(checkpoints["a"], tmp_path / "inpainting.safetensors", 5))
    made = written(merged("weighted_sum", special, opened["b"], alpha=1), tmp_path / "made.safetensors")
    stored = load_file(tmp_path / "inpainting.safetensors")
    assert made[FIRST][:, 4:].equal(stored[FIRST][:, 4:])
    assert made[FIRST][:, :4].equal(load_file(checkpoints["b"])[FIRST].half())
    with pytest.raises(ModelFileError, match="give the model with more input channels first"):
        merged("weighted_sum", opened["b"], special)


def test_a_network_that_only_the_first_model_has_stays(checkpoints, opened, tmp_path: Path) -> None:
    tensors = load_file(checkpoints["b"])
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith("first_stage")}, tmp_path / "b.safetensors"
    )
    value = merged("weighted_sum", opened["a"], Model.open(tmp_path / "b.safetensors"), alpha=1)
    made = written(value, tmp_path / "made.safetensors")
    assert made[VAE].equal(load_file(checkpoints["a"])[VAE])
    assert made[FIRST].equal(tensors[FIRST].half())


def broken(path: Path, to: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(path)
    for name, value in changes.items():
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    save_file(tensors, to)
    return to


def test_what_does_not_fit_is_said_before_anything_is_written(checkpoints, opened, tmp_path: Path) -> None:
    middle = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    other = Model.open(broken(checkpoints["b"], tmp_path / "o.safetensors", **{middle: torch.zeros(3)}))
    with pytest.raises(ModelFileError, match=rf"{middle} has the shape \(16,\) in .* and \(3,\) in"):
        merged("weighted_sum", opened["a"], other)
    other = Model.open(broken(checkpoints["b"], tmp_path / "p.safetensors", **{middle: None}))
    with pytest.raises(ModelFileError, match=f"p.safetensors has no {middle}"):
        merged("weighted_sum", opened["a"], other)
    with pytest.raises(ModelFileError, match="p.safetensors has no"):
        merged("weighted_sum", other, opened["a"])
    with pytest.raises(ModelFileError, match="add_difference takes 3 models, not 2"):
        merged("add_difference", opened["a"], opened["b"])
    with pytest.raises(ModelFileError, match="has no parameter density; its parameters are: alpha"):
        merged("weighted_sum", opened["a"], opened["b"], density=0.5)
    with pytest.raises(ModelFileError, match="'sum' is not one of weighted_sum"):
        merged("sum", opened["a"], opened["b"])


def test_values_that_are_not_finite_leave_no_file(checkpoints, opened, tmp_path: Path) -> None:
    bad = torch.full((8, 4, 3, 3), float("nan"))
    nan = Model.open(broken(checkpoints["b"], tmp_path / "nan.safetensors", **{FIRST: bad}))
    large = Model.open(
        broken(checkpoints["b"], tmp_path / "large.safetensors", **{FIRST: torch.full_like(bad, 1e6)})
    )
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelFileError, match="is not finite: a model holds NaN"):
        write(merged("weighted_sum", opened["a"], nan), out)
    with pytest.raises(
        ModelFileError, match=r"reaches 5e\+05, which float16 does not hold; write bf16 or fp32"
    ):
        write(merged("weighted_sum", opened["a"], large), out)
    assert [path.name for path in tmp_path.glob("*out*")] + list(tmp_path.glob(".*")) == []
    write(merged("weighted_sum", opened["a"], large), out, torch.bfloat16)
    assert load_file(out)[FIRST].dtype == torch.bfloat16


def test_a_full_disk_and_a_model_in_the_place_of_the_result(
    checkpoints, opened, tmp_path, monkeypatch
) -> None:
    value = merged("weighted_sum", opened["a"], opened["b"])
    with pytest.raises(ModelFileError, match="b.safetensors is one of the models that are merged"):
        write(value, checkpoints["b"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ModelFileError, match="and the disk has 0.00 GB free"):
        write(value, tmp_path / "out.safetensors")
    with pytest.raises(ModelFileError, match=r"folder takes .* GB, and the disk has 0.00 GB free"):
        write_as_folder(value, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_changes_what_is_written_is_noticed(opened, tmp_path: Path, monkeypatch) -> None:
    true = checked_file.store
    flips = iter([True])

    def flipped(path: Path, begin: int, data: memoryview, direct: bool) -> None:
        if next(flips, False):
            data = memoryview(bytearray(data))
            data[0] ^= 1
        true(path, begin, data, direct)

    monkeypatch.setattr(checked_file, "store", flipped)
    with pytest.raises(ModelFileError, match=r"bytes 0 to \d+ are not as they were written"):
        write(opened["a"], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_says_late_is_not_lost(opened, tmp_path: Path, monkeypatch) -> None:
    """An error of writing back is told once, to who asks first."""
    true, said = os.fsync, iter([True])

    def full(number: int) -> None:
        if next(said, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(number)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(opened["a"], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
