"""LCM's U-Net, which sees an embedding of the guidance scale beside the time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inkwash.weights.models.component import read_component
from inkwash.weights.models.convert import convert
from tests.models.test_unet import CONFIGS, assert_near, inputs, pair

CONFIG = replace(CONFIGS["sd1"], time_cond_dim=12)


@torch.no_grad()
def test_the_time_condition_is_that_of_diffusers() -> None:
    ours, theirs = pair(CONFIG)
    given, cond = inputs(CONFIG), torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    plain = ours(**given)
    for time_cond, expected_same in ((None, True), (cond, False)):
        made = ours(**given, time_cond=time_cond)
        expected = theirs(given["x"], given["t"], given["context"], timestep_cond=time_cond).sample
        assert_near(made, expected)
        assert torch.equal(made, plain) is expected_same


def test_a_time_condition_that_does_not_fit_raises() -> None:
    ours, _ = pair(CONFIG)
    with pytest.raises(ValueError, match="time_cond_dim 12"):
        ours(**inputs(CONFIG), time_cond=torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["time_cond_proj.weight", "time_embed.cond_proj.weight"])
def test_single_files_and_folders_keep_the_projection(name: str, tmp_path: Path) -> None:
    own = pair(CONFIG)[0].state_dict()
    named = {key.replace("time_cond_proj.weight", name): value for key, value in own.items()}
    save_file(named, tmp_path / "lcm.safetensors")
    assert read_component(tmp_path / "lcm.safetensors").config.time_cond_dim == 12
    convert(tmp_path / "lcm.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "single")
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[f"model.diffusion_model.{key}"], value) for key, value in own.items())
