"""A fresh LoRA changes nothing, learns alone, and is the same again from its file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inkwash
from inkwash.adapters.low_rank import attach, read_adapter
from inkwash.adapters.trainable import KINDS, TrainableLoRA
from inkwash.adapters.writing import write_adapter
from inkwash.pipeline.api import Pipeline
from inkwash.training.loop import LoopConfig, generator_for, train
from inkwash.training.objectives import Objective
from inkwash.training.sources import Batch
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.trainable.lora import LoRALearner
from tests.adapters.test_low_rank import MANY, randn, seen


@pytest.fixture
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


class Made:
    """Batches of made-up latents and contexts; a batch is of two."""

    size = 2

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        latent = torch.randn(2, 4, 16, 16, generator=rng)[rows]
        return Batch(latent, {"context": torch.randn(2, 7, 8, generator=rng)[rows]})


def task_of(lora: TrainableLoRA, **options) -> DenoisingTask:
    objective = Objective(lora.parts.prediction, **options)
    return DenoisingTask(lora.parts.unet, LoRALearner(lora), Made(), objective, lora.parts.schedule)


def test_fresh_it_changes_nothing(model: Pipeline) -> None:
    before = seen(model)
    lora = TrainableLoRA(model, targets=("to_q", "proj_in", "q_proj", "in_layers.2"))
    assert {target.part for target in lora.targets.values()} == {"unet", "text_encoder"}
    with lora.attached():
        assert all(map(torch.equal, seen(model), before))
    assert not any(layer._forward_hooks for layer in model.unet.modules())
    again = TrainableLoRA(model, targets=("to_q", "proj_in", "q_proj", "in_layers.2"))
    assert all(torch.equal(a, b) for a, b in zip(lora.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"weighting": "min-snr"}, {"loss": "huber"}])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_it_learns_and_the_model_stays(tiny: Path, options: dict, prediction: str) -> None:
    model = inkwash.load(tiny, prediction=prediction)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    task = task_of(TrainableLoRA(model, rank=4, targets=("to_q", "to_v", "to_out.0", "out.2")), **options)
    optimizer, losses = torch.optim.AdamW(task.modules["lora"].parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        for name, loss, _ in task.losses(0, 0, generator_for(0, 0)):  # the same batch, noise and levels  # noqa: B007
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert name == "lora" and losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_a_stopped_training_goes_on_bit_equal(model: Pipeline, tmp_path: Path) -> None:
    whole, first, second = (TrainableLoRA(model, rank=2) for _ in range(3))
    for lora, folder, num in ((whole, "a", 6), (first, "b", 4), (second, "b", 6)):
        train(task_of(lora), LoopConfig(num, warmup_steps=1, save_every=2), tmp_path / folder)
    a, b = (load_file(tmp_path / folder / "state.safetensors") for folder in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a) and len(a) > 8 * len(whole.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_model_learns_and_is_written(
    model: Pipeline, tmp_path: Path, kind: str
) -> None:
    """Attached fresh it changes nothing but roundings; after a step of every tensor its file draws the same."""
    before, state = seen(model), {k: v.clone() for k, v in model.unet.state_dict().items()}
    lora = TrainableLoRA(
        model, rank=2, kind=kind, conv_rank=1, targets=("to_q", "to_v", "ff.net.2"), factor=2
    )
    with lora.attached():
        for made, wanted in zip(seen(model), before, strict=True):
            torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    for _, loss, _ in task_of(lora).losses(0, 0, generator_for(0, 0)):
        loss.backward()
    assert any(parameter.grad.any() for parameter in lora.parameters() if parameter.grad is not None)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with lora.attached():
        wanted = seen(model)
    assert not all(map(torch.equal, wanted, before))
    write_adapter(tmp_path / "a.safetensors", lora.adapter, model, "kohya", torch.float32)
    with attach(model, read_adapter(tmp_path / "a.safetensors", model)):
        for made, want in zip(seen(model), wanted, strict=True):
            torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.unet.state_dict().items())


def test_the_compensated_start_takes_its_product_off(model: Pipeline) -> None:
    """Both factors are random; rank 2 is written as rank 4, whose second half is the start, negative."""
    before = seen(model)
    lora = TrainableLoRA(model, rank=2, compensated=True)
    with lora.attached():
        for made, wanted in zip(seen(model), before, strict=True):
            torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    change = next(iter(lora.adapter.changes.values()))
    assert change.rank == 4 and change.scale == 1 and change.lora_up.all()
    assert not change.difference(torch.empty(0)).abs().gt(1e-5).any()
    for _, loss, _ in task_of(lora).losses(0, 0, generator_for(0, 0)):
        loss.backward()
    learned = [p for p in lora.parameters() if p.requires_grad]
    assert len(learned) == 2 * len(lora.targets) and all(p.grad is not None for p in learned)


def test_alphas_are_of_kinds_of_layers_and_of_paths(model: Pipeline) -> None:
    """The path's comes before that of convolutions, and this before the common one."""
    lora = TrainableLoRA(
        model, rank=4, alpha=2.0, targets=("to_q",), conv_rank=3, conv_alpha=1.0,
        alpha_of=lambda target: 8.0 if "middle_block" in target.path else None,
    )  # fmt: skip
    scales = {target.path: (change.alpha, change.rank) for target, change in lora.adapter.changes.items()}
    assert len({pair for pair in scales.values()}) == 4
    for path, pair in scales.items():
        conv = not path.endswith("to_q")
        usual = 1.0 if conv else 2.0
        assert pair == (8.0 if "middle_block" in path else usual, 3 if conv else 4), path


@pytest.mark.parametrize(("names", "kind"), [("kohya", "lora"), ("peft", "lora"), ("peft", "dora")])
def test_written_and_read_it_is_the_same(model: Pipeline, tmp_path: Path, names: str, kind: str) -> None:
    lora = TrainableLoRA(model, rank=3, alpha=1.5, targets=("to_q", "to_out.0", "q_proj", "fc1"), kind=kind)
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
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 is not in 1 to 1024"),
        ({"alpha": -1.0}, "alpha -1.0 is not a positive number"),
        ({"targets": ["to_q", "to_w"]}, "no layer's path ends in 'to_w'"),
        ({"kind": "lyco"}, "kind 'lyco' is not one of lora, dora"),
        ({"kind": "oft", "compensated": True}, "only lora starts so, and the kind is oft"),
        ({"rank_of": lambda target: 0}, "every layer's rank is 0"),
    ],
)
def test_what_can_t_be_made_is_said(model: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainableLoRA(model, **options)


def test_what_can_t_be_written_is_said(model: Pipeline, tmp_path: Path) -> None:
    lora = TrainableLoRA(model, rank=1)
    with pytest.raises(ValueError, match="names 'civitai' is not one of kohya, peft"):
        write_adapter(tmp_path / "a.safetensors", lora.adapter, model, "civitai")
    with torch.no_grad():
        next(lora.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match="lora_down.weight has values that are not finite in float16"):
        write_adapter(tmp_path / "a.safetensors", lora.adapter, model)
    assert not list(tmp_path.iterdir())
