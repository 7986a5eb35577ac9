"""A fresh LoRA changes nothing, learns alone, and is the same again from its file."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import inkwash
from inkwash.adapters.low_rank import attach, read_adapter
from inkwash.adapters.trainable import TrainableLoRA
from inkwash.adapters.writing import write_adapter
from inkwash.models.autoencoder import Posterior
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.images import to_pixels
from inkwash.training.loop import LoopConfig, generator_for, train
from inkwash.training.lora import LoRATask
from tests.adapters.test_low_rank import MANY, randn, seen


@pytest.fixture
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def task_of(lora: TrainableLoRA, **options) -> LoRATask:
    pictures = [Posterior(randn(1, 4, 16, 16) + i, 0.1 * randn(1, 4, 16, 16).abs()) for i in range(3)]
    return LoRATask(lora, pictures, randn(3, 7, 8), empty=(randn(7, 8),), caption_dropout=0.2, **options)


def test_fresh_it_changes_nothing(model: Pipeline) -> None:
    before = seen(model)
    lora = TrainableLoRA(model, targets=("to_q", "proj_in", "q_proj", "in_layers.2"))
    assert {target.part for target in lora.targets.values()} == {"unet", "text_encoder"}
    with lora.attached():
        assert all(map(torch.equal, seen(model), before))
    assert not any(layer._forward_hooks for layer in model.unet.modules())
    again = TrainableLoRA(model, targets=("to_q", "proj_in", "q_proj", "in_layers.2"))
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"batch": 2}, {"min_snr_gamma": 5.0}])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_it_learns_and_the_model_stays(tiny: Path, options: dict, prediction: str) -> None:
    model = inkwash.load(tiny, prediction=prediction)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    task = task_of(TrainableLoRA(model, rank=4, targets=("to_q", "to_v", "to_out.0", "out.2")), **options)
    optimizer, losses = torch.optim.AdamW(task.modules["lora"].parameters(), 1e-2), []
    for _ in range(30):
        ((name, loss, _),) = task.losses(0, 0, generator_for(0, 0))  # the same batch, noise and levels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert name == "lora" and losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_a_stopped_training_goes_on_bit_equal(model: Pipeline, tmp_path: Path) -> None:
    whole, first, second = (TrainableLoRA(model, rank=2) for _ in range(3))
    for lora, folder, num in ((whole, "a", 6), (first, "b", 4), (second, "b", 6)):
        task = task_of(lora)
        train(task, LoopConfig(num, warmup_steps=1, save_every=2), tmp_path / folder)
        task.attachment.detach()
    a, b = (load_file(tmp_path / folder / "state.safetensors") for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a) and len(a) > 8 * len(whole.targets)


@pytest.mark.parametrize("names", ["kohya", "peft"])
def test_written_and_read_it_is_the_same(model: Pipeline, tmp_path: Path, names: str) -> None:
    lora = TrainableLoRA(model, rank=3, alpha=1.5, targets=("to_q", "to_out.0", "q_proj", "fc1"))
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with lora.attached():
        wanted = seen(model)
    write_adapter(tmp_path / "a.safetensors", lora.adapter, model, names, torch.float32)
    with attach(model, read_adapter(tmp_path / "a.safetensors", model)):
        assert all(map(torch.equal, seen(model), wanted))


def test_every_kind_is_written(model: Pipeline, tmp_path: Path) -> None:
    bundled: dict[str, Tensor] = {"bundle_emb.odd.string_to_param.*": randn(2, 8)}
    save_file(MANY | bundled, tmp_path / "many.safetensors")
    adapter = read_adapter(tmp_path / "many.safetensors", model)
    write_adapter(tmp_path / "again.safetensors", adapter, model, dtype=torch.float32)
    again = read_adapter(tmp_path / "again.safetensors", model)
    assert adapter.changes.keys() == again.changes.keys() and again.embeddings.keys() == {"odd"}
    with attach(model, adapter):
        wanted = seen(model)
    with attach(model, again):
        assert all(map(torch.equal, seen(model), wanted))
    with pytest.raises(ValueError, match="take kohya's"):
        write_adapter(tmp_path / "peft.safetensors", adapter, model, "peft")
    assert not (tmp_path / "peft.safetensors").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank 0 is not in 1 to 1024"),
        ({"alpha": -1.0}, "alpha -1.0 is not a positive number"),
        ({"targets": ["to_q", "to_w"]}, "no layer's path ends in 'to_w'"),
    ],
)
def test_what_can_t_be_made_is_said(model: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainableLoRA(model, **options)


def test_pictures_and_captions(model: Pipeline) -> None:
    """Latents are the first stage's, contexts the text encoder's."""
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    task = LoRATask.of(TrainableLoRA(model, rank=1), images, ["a taxi", "a book"], caption_dropout=0.5)
    with torch.no_grad():
        wanted = model.autoencoder.encode(to_pixels(images[1]))
        tokens = torch.tensor(model.text_encoders[0].tokenizer(["a book", ""]))
        contexts = model.text_encoders[0].model(tokens)[0]
    assert torch.equal(task.pictures[1].mean, wanted.mean) and torch.equal(task.pictures[1].std, wanted.std)
    torch.testing.assert_close(task.contexts[1], contexts[0])
    torch.testing.assert_close(task.empty[0], contexts[1])
    assert next(task.losses(0, 0, generator_for(0, 0)))[1].isfinite()
    with pytest.raises(ValueError, match="the caption 'taxi taxi.*' is longer than a chunk"):
        LoRATask.of(TrainableLoRA(model, rank=1), images, ["a", "taxi " * 80])


def test_what_can_t_be_taught_or_written_is_said(model: Pipeline, tmp_path: Path) -> None:
    lora = TrainableLoRA(model, rank=1)
    with pytest.raises(ValueError, match="2 pictures have 3 captions"):
        LoRATask(lora, [Posterior(randn(1, 4, 8, 8), randn(1, 4, 8, 8))] * 2, randn(3, 7, 8))
    with pytest.raises(ValueError, match="teach text_encoder nothing"):
        task_of(TrainableLoRA(model, targets=["q_proj"]))
    with pytest.raises(ValueError, match="names 'civitai' is not one of kohya, peft"):
        write_adapter(tmp_path / "a.safetensors", lora.adapter, model, "civitai")
    with torch.no_grad():
        next(lora.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match="lora_down.weight has values that are not finite in float16"):
        write_adapter(tmp_path / "a.safetensors", lora.adapter, model)
    assert not list(tmp_path.iterdir())
