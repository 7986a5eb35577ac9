"""Pictures and training are the same on another device. Where there is no GPU, a stand-in takes its place."""

import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW

import inkwash
from inkwash.adapters.trainable import TrainableLoRA
from inkwash.adapters.writing import write_adapter
from inkwash.data.buckets import BucketRules
from inkwash.data.dataset import Dataset
from inkwash.data.folders import Subset, read_examples
from inkwash.models.unet import UNet
from inkwash.nn.attention import Context
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.names import SAMPLER_NAMES
from inkwash.prompts.conditioning import Reading
from inkwash.training.conditioning import Conditioner
from inkwash.training.config_methods import LoRAConfig
from inkwash.training.loop import LoopConfig, train
from inkwash.training.objectives import Objective
from inkwash.training.sources import PictureSource
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.trainable.lora import LoRATrainable
from tests.support import other_device as elsewhere
from tests.support.tiny_models import PICTURE, WAYS, variants

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(scope="module", params=["meta", pytest.param("cuda", marks=GPU)], ids=["stand-in", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


def there(device: str) -> AbstractContextManager[None]:
    """Where what is done may be on the device."""
    return elsewhere.elsewhere() if device == "meta" else nullcontext()


def moved(model: Pipeline, device: str) -> Pipeline:
    far = copy.deepcopy(replace(model, refiner=None))
    stages = [far.cond_stage] if far.cond_stage else []
    with there(device):
        for network in (far.unet, far.autoencoder, *(text.model for text in far.text_encoders), *stages):
            network.to(device)
    return replace(far, refiner=model.refiner and moved(model.refiner, device))


@pytest.fixture(scope="module")
def models(tiny: Path, device: str) -> dict[str, tuple[Pipeline, Pipeline]]:
    """Of each kind one here and the same one on the device."""
    return {name: (model, moved(model, device)) for name, model in variants(tiny).items()}


def same(here: list[Image.Image], far: list[Image.Image]) -> None:
    for one, other in zip(here, far, strict=True):
        difference = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))
        assert difference.max() <= 1 and (difference == 0).mean() > 0.99


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_draw(models: dict[str, tuple[Pipeline, Pipeline]], device: str, name: str) -> None:
    way, options = WAYS[name], {"steps": 2, "seed": 3, "batch_size": 2}
    here, far = models[way.variant]
    wanted = way.draw(here, **options)
    with there(device):
        same(wanted, way.draw(far, **options))


def predicted(unet: UNet, x: Tensor, t: Tensor, context: Context, **_: object) -> Tensor:
    """A prediction of all that a U-Net is given, in a few operations."""
    return x.tanh() + (t / 1000 + context.tokens.mean(dim=(1, 2)))[:, None, None, None]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler(
    models: dict[str, tuple[Pipeline, Pipeline]], device: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNet, "forward", predicted)
    here, far = models["plain"]
    wanted = here.text_to_image("a taxi", sampler=sampler, steps=4, seed=3)
    with there(device):
        same(wanted, far.text_to_image("a taxi", sampler=sampler, steps=4, seed=3))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a (red:1.3) [taxi:boat:0.5] AND rain :0.4", "negative_prompt": "[fog]"},
        {"deep_cache": 2},
        {"token_merging": 0.5},
        {"sag_scale": 0.5, "cfg_rescale": 0.7},
        {"pag_scale": 1.0, "guidance_end": 0.5},
        {"mimic_scale": 4.0, "threshold_percentile": 0.9},
        {"perp_neg": 0.5, "negative_prompt": "rain"},
        {"cfg_batched": False},
        {"variation_strength": 0.3, "variation_seed": 5},
        {"seed_resize_from": (24, 40)},
        {"window": 32, "width": 48},
        {"seamless": "both"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_a_request_can_ask_for(
    models: dict[str, tuple[Pipeline, Pipeline]], device: str, options: dict[str, Any]
) -> None:
    here, far = models["plain"]
    options = {"prompt": "a taxi", "steps": 4, "seed": 3} | options
    wanted = here.text_to_image(**options)
    with there(device):
        same(wanted, far.text_to_image(**options))


def test_tiles(tiny: Path, device: str) -> None:
    tiled = inkwash.load(tiny, vae_tile=64, vae_slicing=True)
    options: dict[str, Any] = {"width": 96, "height": 96, "steps": 1, "seed": 3, "batch_size": 2}
    wanted, far = tiled.text_to_image("a taxi", **options), moved(tiled, device)
    with there(device):
        same(wanted, far.text_to_image("a taxi", **options))


def test_offload(tiny: Path, device: str) -> None:
    """The networks come and go, and are here in the end."""
    wanted = inkwash.load(tiny).text_to_image("a taxi", steps=2, seed=3)
    with there(device):
        model = inkwash.load(tiny, device, offload=True)
        same(wanted, model.text_to_image("a taxi", steps=2, seed=3))
        assert model.offload
        model.offload.leave()
    networks = (model.unet, model.autoencoder, *(text.model for text in model.text_encoders))
    assert {weight.device.type for network in networks for weight in network.parameters()} == {"cpu"}


def test_a_lora_in_the_prompt(tiny: Path, tmp_path: Path, device: str) -> None:
    here = inkwash.load(tiny, loras=tmp_path)
    lora = TrainableLoRA(here, rank=2)
    for parameter in lora.parameters():
        nn.init.normal_(parameter, std=0.3)
    write_adapter(tmp_path / "red.safetensors", lora.adapter, here)
    wanted = here.text_to_image("a taxi <lora:red:0.8>", steps=2, seed=3)
    assert wanted[0].tobytes() != here.text_to_image("a taxi", steps=2, seed=3)[0].tobytes()
    far = moved(here, device)
    with there(device):
        same(wanted, far.text_to_image("a taxi <lora:red:0.8>", steps=2, seed=3))


def test_training_goes_on_there(
    tiny: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA of three steps, and one that was stopped after two of them."""
    if device == "meta":  # for which torch has no fused step
        monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **more: AdamW(*args, **more))

    PICTURE.save(tmp_path / "a.png")
    PICTURE.rotate(180).save(tmp_path / "b.png")
    size = PICTURE.size
    pictures = Dataset(read_examples(Subset(tmp_path)), BucketRules(size, enabled=False), 1)

    def losses(model: Pipeline, steps: int, folder: Path) -> list[float]:
        source = PictureSource(model, pictures, Conditioner(model, Reading(), False), None)
        config = LoRAConfig(output="", data=("",), rank=2)
        objective = Objective(model.prediction, weighting="min-snr")
        task = DenoisingTask(model.unet, LoRATrainable(model, config), source, objective, model.schedule)
        train(task, LoopConfig(steps, lr=0.02, log_every=1), folder)
        return [json.loads(line)["lora"] for line in (folder / "log.jsonl").read_text().splitlines()]

    wanted, far = losses(inkwash.load(tiny), 3, tmp_path / "here"), moved(inkwash.load(tiny), device)
    assert len(set(wanted)) == 3
    with there(device):
        assert losses(far, 2, tmp_path / "far") == pytest.approx(wanted[:2], rel=1e-4)
        assert losses(far, 3, tmp_path / "far") == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    "place", [pytest.param("cpu", marks=pytest.mark.full), pytest.param("cuda", marks=GPU)]
)
def test_compiled_draws_the_same(tiny: Path, place: str) -> None:
    """Also another prompt, by the graph that is there, and another size, by one of its own."""
    exact, compiled = (inkwash.load(tiny, place, compile=flag) for flag in (False, True))
    for prompt, width in (("a taxi", 32), ("a boat", 32), ("a taxi", 48), ("a taxi", 32)):
        same(*(model.text_to_image(prompt, width=width, steps=3, seed=3) for model in (exact, compiled)))


def test_the_stand_in_refuses_what_a_gpu_does() -> None:
    with elsewhere.elsewhere():
        here, far = torch.ones(2), torch.ones(2, device="meta")
        assert isinstance(far + 1, elsewhere.Far) and (far + torch.tensor(1.0)).cpu().tolist() == [2, 2]
        assert type((far + far).cpu()) is torch.Tensor and type(here.to("meta")) is elsewhere.Far
        for mixed in (lambda: here + far, lambda: torch.cat([far, here]), lambda: far.add_(here)):
            with pytest.raises(AssertionError, match="of the processor beside those of the device"):
                mixed()
