"""The style adapter gives what torch's own transformer layers give, and draws by it; its laws and errors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import inkwash
from inkwash.adapters.style import open_style_adapter
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVision, CLIPVisionConfig
from inkwash.models.style_adapter import StyleAdapter, StyleAdapterConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from inkwash.weights.checkpoint import Component
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import write_component
from tests.models.test_unet import assert_near, randomise
from tests.support.small_controls import picture
from tests.support.tiny_models import drawn_at_random

EYE = CLIPVisionConfig(
    width=64, num_layers=2, num_heads=1, mlp_width=64, image_size=16, patch_size=8, projection_dim=8
)
CONFIG = StyleAdapterConfig(width=64, context_dim=8, num_tokens=3, num_layers=2)
# of t2iadapter_style_sd14v1.pth
PUBLISHED = {
    "style_embedding": (1, 8, 1024),
    "proj": (1024, 768),
    **{f"{norm}.{part}": (1024,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")},
    **{
        f"transformer_layes.{i}.{name}": shape
        for i in range(3)
        for name, shape in {
            "attn.in_proj_weight": (3072, 1024),
            "attn.in_proj_bias": (3072,),
            "attn.out_proj.weight": (1024, 1024),
            "attn.out_proj.bias": (1024,),
            "ln_1.weight": (1024,),
            "ln_1.bias": (1024,),
            "mlp.c_fc.weight": (4096, 1024),
            "mlp.c_fc.bias": (4096,),
            "mlp.c_proj.weight": (1024, 4096),
            "mlp.c_proj.bias": (1024,),
            "ln_2.weight": (1024,),
            "ln_2.bias": (1024,),
        }.items()
    },
}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(drawn_at_random(StyleAdapter(CONFIG)).state_dict(), tmp_path / "style.safetensors")
    eye = drawn_at_random(CLIPVision(EYE))
    write_component(Component(EYE, eye.state_dict()), tmp_path / "image_encoder", "folder")
    return tmp_path / "style.safetensors"


def draw(model: Pipeline, *controls: Control, **options: object) -> bytes:
    return model.text_to_image("a", "b", controls=controls, steps=3, **options)[0].tobytes()


def test_the_published_file_has_these_tensors() -> None:
    with torch.device("meta"):
        assert {k: tuple(v.shape) for k, v in StyleAdapter().state_dict().items()} == PUBLISHED


def test_same_tokens_as_torchs_layers() -> None:
    network = StyleAdapter(CONFIG).eval().requires_grad_(False)
    randomise(network)
    patches = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    x = torch.cat([patches, network.style_embedding.expand(2, -1, -1)], dim=1)
    x = F.layer_norm(x, (64,), network.ln_pre.weight, network.ln_pre.bias)
    for block in network.transformer_layes:
        theirs = nn.TransformerEncoderLayer(
            64, 8, 256, 0.0, lambda h: h * torch.sigmoid(1.702 * h), batch_first=True, norm_first=True
        ).requires_grad_(False)
        own = block.state_dict()
        names = {
            "attn": "self_attn",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.c_fc": "linear1",
            "mlp.c_proj": "linear2",
        }
        theirs.load_state_dict(
            {
                next(b + key[len(a) :] for a, b in names.items() if key.startswith(a)): v
                for key, v in own.items()
            }
        )
        x = theirs(x)
    expected = F.layer_norm(x[:, -3:], (64,), network.ln_post.weight, network.ln_post.bias) @ network.proj
    assert_near(network(patches), expected)


def test_laws(model: Pipeline, file: Path) -> None:
    without, control = draw(model), Control(file=file, image=picture())
    steered = draw(model, control)
    assert steered != without and draw(model, Control(file=file, image=picture(1))) != steered
    assert draw(model, Control(file=file, image=picture(), weight=0)) == without == draw(model)
    assert draw(model, Control(file=file, image=picture(), end=0.01)) == without
    assert draw(model, Control(file=file, image=picture(), weight=0.5)) not in (without, steered)
    both = [control, Control(file=file, image=picture(1), weight=0.5)]
    assert draw(model, *both) == draw(model, *both[::-1]) != steered
    assert inspect(file)["kind"] == "style-adapter"


def test_what_does_not_fit(model: Pipeline, file: Path, tmp_path: Path) -> None:
    for values, problem in (
        ({"annotator": "canny"}, "sees the picture itself"),
        ({"layer_weights": (1, 1)}, "has 1 layers, and 2 layer_weights are given"),
    ):
        with pytest.raises((ValueError, ModelFileError), match=problem):
            draw(model, Control(file=file, image=picture(), **values))
    other = StyleAdapter(StyleAdapterConfig(width=64, context_dim=12, num_tokens=3, num_layers=1))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(
        ModelFileError, match="other.safetensors is for a context of 12, and the model's is 8"
    ):
        open_style_adapter(tmp_path / "other.safetensors", model)
    (tmp_path / "image_encoder").rename(tmp_path / "away")
    with pytest.raises(ModelFileError, match="style.safetensors sees by a CLIP vision tower"):
        open_elsewhere = Control(file=file, image=picture())
        model.controls.clear()
        draw(model, open_elsewhere)
