"""Files of IP-Adapters that do not fit, and where the tower that they see by is found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import inkwash
from inkwash.adapters.image_projections import Projection, projection_of
from inkwash.adapters.ip_adapter import IPAdapter, Layer, attentions, open_encoder, open_ip_adapter
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVision, CLIPVisionConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from tests.support.small_controls import picture
from tests.support.tiny_models import drawn_at_random

EYE = CLIPVisionConfig(
    width=64, num_layers=2, num_heads=1, mlp_width=64, image_size=16, patch_size=8, projection_dim=8
)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture
def file(model: Pipeline, tmp_path: Path) -> Path:
    layers = {
        str(2 * i + 1): Layer(8, each.to_q.out_features) for i, each in enumerate(attentions(model.unet))
    }
    adapter = drawn_at_random(IPAdapter(Projection(8, 8, 2), layers))
    save_file(adapter.state_dict(), tmp_path / "ip.safetensors")
    eye = drawn_at_random(CLIPVision(EYE))
    write_component(Component(EYE, eye.state_dict()), tmp_path / "image_encoder", "folder")
    return tmp_path / "ip.safetensors"


def draw(model: Pipeline, *controls: Control, **options: object) -> bytes:
    return model.text_to_image("a", "b", controls=controls, steps=3, **options)[0].tobytes()


def test_laws(model: Pipeline, file: Path) -> None:
    without, control = draw(model), Control(file=file, image=picture())
    steered = draw(model, control)
    assert steered != without and draw(model, Control(file=file, image=picture(1))) != steered
    assert draw(model, Control(file=file, image=picture(), weight=0)) == without
    n = len(attentions(model.unet))
    assert draw(model, Control(file=file, image=picture(), layer_weights=(0,) * n)) == without
    both = [control, Control(file=file, image=picture(1), weight=0.5, mode="control")]
    assert draw(model, *both) == draw(model, *both[::-1])
    assert draw(model, control) == steered  # nothing stays attached
    assert draw(model) == without
    for colour, expected in ((255, steered), (0, without)):
        mask = picture().convert("L").point(lambda _, colour=colour: colour)
        assert draw(model, Control(file=file, image=picture(), mask=mask)) == expected


def test_the_tower_is_beside_it_or_named(model: Pipeline, file: Path, tmp_path: Path) -> None:
    (tmp_path / "image_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelFileError, match="ip.safetensors sees by a CLIP vision tower; name it by encoder=PATH"
    ):
        draw(model, Control(file=file, image=picture()))
    draw(model, Control(file=file, image=picture(), encoder=str(tmp_path / "elsewhere")))
    with pytest.raises(ModelFileError, match="vae is not a CLIP vision tower"):
        open_encoder(file, str(model_folder(model, tmp_path)), model)


def model_folder(model: Pipeline, folder: Path) -> Path:
    write_component(
        Component(model.autoencoder.config, model.autoencoder.state_dict()), folder / "vae", "folder"
    )
    return folder / "vae"


def test_files_that_do_not_fit(model: Pipeline, tmp_path: Path) -> None:
    layers = {"1": Layer(12, 8)}
    save_file(IPAdapter(Projection(8, 12, 2), layers).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="for 1 cross-attentions to a context of 12, and the model has"):
        open_ip_adapter(tmp_path / "other.safetensors", model)
    with pytest.raises(ModelFileError, match="other.bin makes tokens by a network that is not known"):
        projection_of(
            "other.bin",
            {"image_proj.proj.0.weight": torch.ones(2, 2), "image_proj.norm.weight": torch.ones(2)},
        )
