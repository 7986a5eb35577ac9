"""ControlNet-LLLite: what it adds, and what is refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import inkwash
from inkwash.adapters.lllite import open_lllite
from inkwash.files import ModelFileError
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from tests.support.small_controls import picture

LAYER = "input_blocks_1_1_transformer_blocks_0_attn{}_to_q"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def tensors(width: int = 8) -> dict[str, torch.Tensor]:
    """For two layers, as kohya's trainer writes them at depth 1."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "conditioning1.0.weight": (4, 3, 4, 4),
        "conditioning1.0.bias": (4,),
        "conditioning1.2.weight": (6, 4, 2, 2),
        "conditioning1.2.bias": (6,),
        "down.0.weight": (5, width),
        "down.0.bias": (5,),
        "mid.0.weight": (5, 11),
        "mid.0.bias": (5,),
        "up.0.weight": (width, 5),
        "up.0.bias": (width,),
    }
    return {
        f"lllite_unet_{LAYER.format(i)}.{name}": torch.randn(shape, generator=random)
        for i in (1, 2)
        for name, shape in shapes.items()
    }


def draw(model: Pipeline, *controls: Control, **options: object) -> bytes:
    return model.text_to_image("a", "b", controls=controls, steps=3, **options)[0].tobytes()


def test_a_module_is_the_published_formula(model: Pipeline, tmp_path: Path) -> None:
    given = tensors()
    save_file(given, tmp_path / "net.safetensors")
    module = open_lllite(tmp_path / "net.safetensors", model)[LAYER.format(1)]
    t = {name.partition(".")[2]: value for name, value in given.items() if LAYER.format(1) in name}
    random = torch.Generator().manual_seed(1)
    x, hint = torch.randn(2, 4, 8, generator=random), torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
    cx = F.relu(F.conv2d(hint, t["conditioning1.0.weight"], t["conditioning1.0.bias"], stride=4))
    cx = F.conv2d(cx, t["conditioning1.2.weight"], t["conditioning1.2.bias"], stride=2)
    cx = cx.view(1, 6, 4).permute(0, 2, 1).expand(2, -1, -1)
    cx = torch.cat([cx, F.relu(F.linear(x, t["down.0.weight"], t["down.0.bias"]))], dim=2)
    cx = F.linear(F.relu(F.linear(cx, t["mid.0.weight"], t["mid.0.bias"])), t["up.0.weight"], t["up.0.bias"])
    assert torch.allclose(module(x, module.see(hint)), cx, atol=1e-5)


def test_laws(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(tensors(), path)
    without, steered = draw(model), draw(model, Control(file=path, image=picture()))
    assert steered != without
    assert draw(model, Control(file=path, image=picture(1))) != steered
    assert draw(model, Control(file=path, image=picture(), weight=0)) == without
    assert draw(model, Control(file=path, image=picture(), mode="control")) not in (without, steered)
    black = picture().convert("L").point(lambda _: 0)
    assert draw(model, Control(file=path, image=picture(), mask=black)) == without
    untrained = {name: torch.zeros_like(v) if ".up." in name else v for name, v in tensors().items()}
    save_file(untrained, tmp_path / "zero.safetensors")
    assert draw(model, Control(file=tmp_path / "zero.safetensors", image=picture())) == without
    assert draw(model) == without  # nothing stays attached


def test_another_models_is_refused(model: Pipeline, tmp_path: Path) -> None:
    save_file(tensors(16), tmp_path / "wide.safetensors")
    with pytest.raises(
        ModelFileError, match=f"is for another model: {LAYER.format(1)} takes 16, and the model's 8"
    ):
        draw(model, Control(file=tmp_path / "wide.safetensors", image=picture()))
    without_mid = {name: value for name, value in tensors().items() if ".mid." not in name}
    save_file(without_mid, tmp_path / "part.safetensors")
    with pytest.raises(ModelFileError, match=r"part.safetensors lacks mid.0.weight"):
        draw(model, Control(file=tmp_path / "part.safetensors", image=picture()))
