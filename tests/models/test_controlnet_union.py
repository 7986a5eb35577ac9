"""The same random weights in our ControlNet union and in diffusers' give the same residuals; its files, to the last key."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from inkwash.files import ModelFileError
from inkwash.models.controlnet_union import TYPES, ControlNetUnion, ControlNetUnionConfig
from inkwash.pipeline.controls import TYPE_OF, UNION_TYPES, HintType
from inkwash.weights.checkpoint import Component, build
from inkwash.weights.configs import controlnet_union_json
from inkwash.weights.families import SDXL
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import read_component, write_component
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import controlnet_union_table
from tests.models.test_controlnet import given
from tests.models.test_unet import CONFIGS, assert_near, randomise

diffusers = pytest.importorskip("diffusers")
CONFIG = ControlNetUnionConfig(CONFIGS["sdxl"], num_types=8, num_layers=2)


def network(config: ControlNetUnionConfig = CONFIG) -> ControlNetUnion:
    made = ControlNetUnion(config).eval().requires_grad_(False)
    randomise(made)
    return made


@torch.no_grad()
@pytest.mark.parametrize(
    ("types", "weights"), [([3], [1.0]), ([1, 6], [0.7, 1.2]), ([0, 2, 7], [1.0, 0.5, 0.3])]
)
def test_same_residuals(types: list[int], weights: list[float]) -> None:
    ours, theirs = network(), diffusers.ControlNetUnionModel(**controlnet_union_json(CONFIG)).eval()
    theirs.load_state_dict(translate(ours.state_dict(), controlnet_union_table(CONFIG)))
    inputs, extra = given(CONFIG)
    hint = inputs.pop("hint")
    hints = [hint.roll(i, dims=0)[:1] * (0.5 + i / 4) for i in range(len(types))]
    there = torch.zeros(1, 8)
    there[0, types] = 1
    # one row at a time, since theirs attends along the batch
    rows = []
    for k in range(2):
        added = {key: value[k : k + 1] for key, value in extra["added_cond_kwargs"].items()}
        down, middle = theirs(
            *(inputs[name][k : k + 1] for name in ("x", "t", "context")),
            controlnet_cond=hints,
            control_type=there,
            control_type_idx=types,
            conditioning_scale=weights,
            added_cond_kwargs=added,
            return_dict=False,
        )
        rows.append([*down, middle])
    seen = ours.see(torch.cat(hints, dim=1), types, weights)
    made = ours(
        inputs["x"], inputs["t"], seen, inputs["context"], inputs["vector"], ours.embed_types(types, seen)
    )
    for got, *expected in zip(made, *rows, strict=True):
        assert_near(got, torch.cat(expected))
    without = ours(inputs["x"], inputs["t"], seen, inputs["context"], inputs["vector"])
    assert not torch.allclose(made[-1], without[-1], atol=1e-4)


@pytest.mark.parametrize("num_types", [6, 8])
def test_full_size_has_the_tensors_of_diffusers(num_types: int) -> None:
    config = ControlNetUnionConfig(SDXL.unet, num_types=num_types)
    with torch.device("meta"):
        ours = ControlNetUnion(config).state_dict()
        theirs = diffusers.ControlNetUnionModel(**controlnet_union_json(config)).state_dict()
    there = translate(ours, controlnet_union_table(config))
    assert {key: value.shape for key, value in there.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("form", ["ours", "ours, prefixed", "theirs", "folder", "folder of the first ones"])
def test_files_of_each_form(form: str, tmp_path: Path) -> None:
    config = ControlNetUnionConfig(SMALL, num_types=6)
    part = Component(config, network(config).state_dict())
    write_component(part, tmp_path / "folder", "folder")
    whole = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    path = tmp_path / "union.safetensors"
    if form.startswith("folder"):
        path = tmp_path / "folder"
        if form != "folder":  # which call themselves by the name of the plain ones
            said = (path / "config.json").read_text()
            (path / "config.json").write_text(said.replace("ControlNetUnionModel", "ControlNetModel"))
    elif form == "theirs":
        save_file(load_file(whole), path)
    else:
        bare = {key: value.clone() for key, value in part.tensors.items()}
        save_file({("control_model." if "prefixed" in form else "") + k: v for k, v in bare.items()}, path)
    read = read_component(path)
    assert read.config == replace(config, unet=read.config.unet)
    assert read.tensors.keys() == part.tensors.keys()
    assert all(torch.equal(read.tensors[key], value) for key, value in part.tensors.items())
    build(read)
    if path.is_file():
        assert inspect(path)["kind"] == "controlnet-union"
    theirs = diffusers.ControlNetUnionModel.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert theirs.config.num_control_type == 6


SMALL = replace(
    SDXL.unet,
    channels=32,
    context_dim=64,
    vector_dim=1536 + 80,
    transformer_depth=(0, 1, 1),
    transformer_depth_middle=1,
    norm_groups=8,
)


def test_configs_that_are_not_covered(tmp_path: Path) -> None:
    config = ControlNetUnionConfig(SMALL)
    write_component(Component(config, network(config).state_dict()), tmp_path, "folder")
    said = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(said.replace('"num_trans_channel": 32', '"num_trans_channel": 64'))
    with pytest.raises(ModelFileError, match="num_trans_channel is 64, and not 32, the network's width"):
        read_component(tmp_path)


def test_types_have_the_same_names_everywhere() -> None:
    assert get_args(HintType) == TYPES == tuple(UNION_TYPES)[1:]
    assert set(TYPE_OF.values()) <= set(TYPES)
