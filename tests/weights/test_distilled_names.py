"""Distilled models are known by their tensors, metadata, scheduler and names, and plain ones are not taken for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inkwash.cli import main
from inkwash.pipeline.presets import PRESETS
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.few_steps import WORDS, few_steps_of

# names as they are published -> preset, steps
NAMES = {
    "sd_xl_turbo_1.0_fp16.safetensors": ("turbo", None),
    "stabilityai/sd-turbo": ("turbo", None),
    "lcm-lora-sdxl/pytorch_lora_weights.safetensors": ("lcm-lora", None),
    "LCM_Dreamshaper_v7_4k.safetensors": ("lcm-lora", None),
    "sdxl_lightning_4step_unet.safetensors": ("lightning", 4),
    "Hyper-SDXL-8steps-lora.safetensors": ("hyper", 8),
    "Hyper-SD15-1step-lora.safetensors": ("hyper", 1),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("dmd2", 4),
    "TCD-SDXL-LoRA/pytorch_lora_weights.safetensors": ("tcd", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_names(name: str) -> None:
    found = few_steps_of([Path(name)], {})
    assert found and (found.preset, found.steps) == NAMES[name]


@pytest.mark.parametrize(
    "name",
    ["turbovision.safetensors", "hypernet.pt", "v1-5-pruned-emaonly.safetensors", "welcme.ckpt", "steps"],
)
def test_other_names_say_nothing(name: str) -> None:
    assert few_steps_of([Path(name)], {}) is None


@pytest.mark.parametrize(
    ("scheduler", "preset"),
    [
        ({"_class_name": "LCMScheduler"}, "lcm-lora"),
        ({"_class_name": "TCDScheduler"}, "tcd"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "turbo"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, None),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            },
            None,
        ),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, None),
    ],
)
def test_schedulers(scheduler: dict[str, Any], preset: str | None) -> None:
    found = few_steps_of([], {}, scheduler)
    assert (found and found.preset) == preset


def test_a_guidance_input_is_that_of_lcm_whatever_the_name() -> None:
    found = few_steps_of([Path("turbo.safetensors")], {}, guidance_input=True)
    assert found and found.preset == "lcm"


def test_metadata_come_before_names() -> None:
    found = few_steps_of([Path("turbo.safetensors")], {"ss_output_name": "my_lcm_8steps"})
    assert found and (found.preset, found.steps) == ("lcm-lora", 8)
    assert "ss_output_name" in found.why


def test_all_presets_exist() -> None:
    assert set(WORDS.values()) <= PRESETS.keys()


def test_inspect_suggests_how_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "Hyper-SDXL-8steps-lora.safetensors"
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(4, 4)}, path)
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "draw with: --preset hyper --steps 8" in said and "few steps: the name" in said
    assert main(["inspect", str(model_path("mini"))]) == 0
    assert "draw with" not in capsys.readouterr().out
