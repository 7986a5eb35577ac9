"""Distilled models are known by their tensors, metadata, scheduler and names, and plain ones are not taken for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inkwash.cli import main
from inkwash.pipeline.presets import PRESETS
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.detect import Detected
from inkwash.weights.families import FAMILIES
from inkwash.weights.few_steps import WORDS, FewSteps, few_steps_of
from inkwash.weights.models.single import default_size

# names as they are published -> preset, steps
NAMES = {
    "sd_xl_turbo_1.0_fp16.safetensors": ("turbo", None),
    "stabilityai/sd-turbo": ("turbo", None),
    "lcm-lora-sdxl/pytorch_lora_weights.safetensors": ("lcm-lora", None),
    "LCM_Dreamshaper_v7_4k.safetensors": ("lcm-lora", None),
    "sdxl_lightning_4step_unet.safetensors": ("lightning", 4),
    "Hyper-SDXL-8steps-lora.safetensors": ("hyper", 8),
    "Hyper-SD15-1step-lora.safetensors": ("tcd", None),  # which draws in 1 to 8
    "Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors": ("hyper", 1),
    "dmd2_sdxl_1step_unet_fp16.bin": ("dmd2", 1),
    "models--latent-consistency--lcm-lora-sdxl/snapshots/1f/pytorch_lora_weights.safetensors": (
        "lcm-lora",
        None,
    ),
    "models--Lykon--dreamshaper-xl-lightning/snapshots/1f": ("lightning", None),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("dmd2", 4),
    "TCD-SDXL-LoRA/pytorch_lora_weights.safetensors": ("tcd", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_names(name: str) -> None:
    found = few_steps_of([Path(name)], {})
    assert found and (found.preset, found.steps) == NAMES[name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Hyper-SDXL-1step-Unet.safetensors", "--preset hyper --timesteps 800"),
        ("dmd2_sdxl_1step_unet_fp16.bin", "--preset dmd2 --timesteps 399"),
        ("Hyper-SDXL-1step-lora.safetensors", "--preset tcd"),
        ("Hyper-SDXL-8steps-CFG-lora.safetensors", "--preset hyper --steps 8 --cfg-scale 5.0"),
        ("Hyper-SDXL-8steps-lora.safetensors", "--preset hyper --steps 8"),
    ],
)
def test_what_a_network_of_its_own_kind_needs_is_suggested(name: str, hint: str) -> None:
    found = few_steps_of([Path(name)], {})
    assert found and found.hint == hint


@pytest.mark.parametrize("written", [FewSteps("lcm", "", 4, cfg_scale=5.5), FewSteps("turbo", "", 1)])
def test_what_is_written_is_read(written: FewSteps) -> None:
    found = few_steps_of([], written.written)
    assert found and found.options == written.options
    for broken in ("lcm", "lcm 4 x", "fast 4", "lcm 4 5 6"):
        assert FewSteps.parse(broken) is None


def test_sdxl_turbo_is_of_512_pixels() -> None:
    for name, size in (
        ("sd_xl_turbo_1.0_fp16", 512),
        ("sd_xl_base_1.0", 1024),
        ("DreamShaperXL_Turbo", 1024),
    ):
        assert default_size(FAMILIES["sdxl"], Detected(), f"{name}.safetensors") == size
    assert default_size(FAMILIES["sd2"], Detected(prediction="v"), "768-v-ema.ckpt") == 768


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
    assert main(["inspect", "mini-turbo"]) == 0
    assert "draw with: --preset lightning --steps 4" in capsys.readouterr().out
    path = tmp_path / "Hyper-SDXL-12steps-CFG-lora.safetensors"
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(4, 4)}, path)
    assert main(["inspect", str(path)]) == 0
    assert "draw with: --preset hyper --steps 12 --cfg-scale 5.0\n" in capsys.readouterr().out
    assert main(["inspect", str(model_path("mini"))]) == 0
    assert "draw with" not in capsys.readouterr().out
