"""An IP-Adapter without a picture sees the vectors that a prior makes of prompts, as diffusers draws by the same vectors."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inkwash
from inkwash.cli import main
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.pipeline.controls import Control
from inkwash.pipeline.prior import open_prior
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import recorded
from inkwash.weights.models.prior import write_prior
from tests.pipeline.test_control_parity import (
    EYE,
    OURS,
    PROMPTS,
    SEED,
    SIZE,
    THEIRS,
    psnr,
    see_by,
    write_ip_adapter,
)
from tests.pipeline.test_prior_pictures import random_prior
from tests.support.peers import their_pipeline
from tests.support.small_controls import first, picture, write_controlnet, write_model
from tests.support.tiny_models import drawn_at_random

PRIOR = {"prior_steps": 6, "prior_cfg_scale": 3.0}


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    write_model("sd1", module_path)
    write_prior(random_prior(dim=EYE["projection_dim"]), module_path / "prior")
    model = inkwash.load(module_path / "sd1")
    for kind in ("plain", "full"):
        (module_path / kind).mkdir()
        write_ip_adapter(model, kind, module_path / kind)
    return module_path


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda: their_pipeline(monkeypatch, folder / "sd1", "StableDiffusionPipeline", [])


def control(folder: Path, kind: str = "plain", **more: Any) -> Control:
    return Control(file=folder / kind / "adapter.safetensors", weight=0.6, **more)


def test_it_draws_what_diffusers_draws_by_the_vector(folder: Path, theirs: Callable[..., Any]) -> None:
    vector = open_prior(folder / "prior")([PROMPTS["prompt"]], [SEED], 6, 3.0)
    seen = torch.stack([torch.zeros_like(vector), vector])
    pipe = see_by(theirs(), folder / "plain")
    wanted = pipe(**THEIRS, **SIZE, ip_adapter_image_embeds=[seen], latents=first(SEED)).images[0]
    model = inkwash.load(folder / "sd1", prior=folder / "prior")
    made = model.text_to_image(**PROMPTS, **OURS, **PRIOR, controls=[control(folder)])[0]
    assert psnr(made, wanted) >= 60
    other = inkwash.load(folder / "sd1").text_to_image(
        **PROMPTS, **OURS, controls=[control(folder, image=picture())]
    )
    assert psnr(made, other[0]) < 50
    of = recorded({RECIPE: json.loads(made.info[RECIPE])})
    assert of.prior == {"name": "prior", "hash": model.prior and model.prior.hash}


def test_each_picture_of_a_batch_has_its_own_vector(folder: Path) -> None:
    model = inkwash.load(folder / "sd1", prior=folder / "prior")
    given: dict[str, Any] = {"controls": [control(folder)], **PRIOR}
    both = model.text_to_image(("a taxi", "a book"), batch_size=2, **OURS, **given)
    alone = model.text_to_image("a book", **OURS | {"seed": SEED + 1}, **given)[0]
    apart = model.text_to_image("a book", cfg_batched=False, **OURS | {"seed": SEED + 1}, **given)[0]
    for other in (both[1], apart):
        assert np.abs(np.asarray(other, int) - np.asarray(alone, int)).max() <= 1
    assert psnr(both[0], both[1]) < 50


def test_the_prior_can_read_another_text(folder: Path) -> None:
    """The prompt is then the model's alone, and empty where the vector alone is drawn."""
    model = inkwash.load(folder / "sd1", prior=folder / "prior")
    draw = partial(model.text_to_image, controls=[control(folder)], **OURS, **PRIOR)
    (own,), (same,) = draw("a book"), draw("a book", prior_prompt="a book")
    (mixed,), (silent,) = draw("a book", prior_prompt="a taxi"), draw("", prior_prompt="a book")
    assert same.tobytes() == own.tobytes() and len({x.tobytes() for x in (own, mixed, silent)}) == 3


def test_the_command_line_draws_and_replays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    used = ["--model", f"{folder}/sd1", "--prior", f"{folder}/prior"]
    adapter = ["--control", f"{folder}/plain/adapter.safetensors"]
    short = ["--steps", "2", "--seed", "1", "--prior-steps", "3"]
    assert main(["generate", "a taxi", *used, *adapter, *short, "--output", "a.png"]) == 0
    assert main(["replay", "a.png", *used, *adapter, "--output", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = inkwash.load(folder / "sd1", prior=folder / "prior")
    with pytest.raises(ValueError, match="prior .*: sd1 draws by words; an IP-Adapter without a picture"):
        model.text_to_image("a taxi")
    with pytest.raises(ValueError, match="noise_level 3: sd1 is not told of noise"):
        model.text_to_image("a taxi", controls=[control(folder)], noise_level=3)
    with pytest.raises(ValueError, match="adapter.* reads a picture's patches or faces"):
        model.text_to_image("a taxi", controls=[control(folder, "full")])
    write_prior(random_prior(dim=8), tmp_path / "narrow")
    narrow = inkwash.load(folder / "sd1", prior=tmp_path / "narrow")
    with pytest.raises(ValueError, match="sees vectors of 24 numbers, and the prior's have 8"):
        narrow.text_to_image("a taxi", controls=[control(folder)])
    with pytest.raises(ValueError, match="reference_only has no picture"):
        model.text_to_image("a taxi", controls=[Control(file="reference_only")])
    network = drawn_at_random(ControlNet(ControlNetConfig(model.unet.config)))
    write_controlnet(network, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="net.safetensors has no picture"):
        model.text_to_image("a taxi", controls=[Control(file=tmp_path / "net.safetensors")])
    path = f"{folder}/plain/adapter.safetensors"
    assert main(["generate", "a taxi", "--model", f"{folder}/sd1", "--control", path]) == 1
    assert "the control adapter.safetensors has no picture" in capsys.readouterr().err
