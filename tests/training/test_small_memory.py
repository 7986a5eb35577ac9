"""Options for small memory: they change what is kept, and no result."""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import inkwash
from inkwash.training import checkpointing
from inkwash.training.fused_backward import FusedBackward
from inkwash.training.loop import LoopConfig, train
from inkwash.training.run import trained
from tests.kernels.test_kernels import needs_kernels
from tests.training.test_training import Adversaries, same

CONFIG = LoopConfig(6, lr=1e-2, warmup_steps=2, save_every=6, log_every=1, ema_decay=0.9, max_grad_norm=0)


def options(pictures: Path, tiny: Path, output: Path, **more: object) -> dict[str, object]:
    own: dict[str, object] = {
        "model": str(tiny),
        "data": str(pictures),
        "output": str(output),
        "buckets": False,
    }
    return own | {"steps": 2, "lr": 1e-2, "batch_size": 2, "log_every": 1} | more


def states(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize(
    ("optimizer", "muon"), [("adamw", 0.0), ("adamw", 2.0), ("adafactor", 0.0), ("sgd", 0.0)]
)
def test_a_fused_backward_steps_as_a_plain_one(tmp_path: Path, optimizer: str, muon: float) -> None:
    """Weights, moments, averages and losses of a generator and its discriminator, bit for bit."""
    plain, fused = Adversaries(late=2), Adversaries(late=2)
    config = replace(CONFIG, optimizer=optimizer, muon=muon)
    train(plain, config, tmp_path / "plain")
    train(fused, replace(config, fused_backward=True), tmp_path / "fused")
    assert plain.seen == fused.seen
    assert same(states(tmp_path / "plain"), states(tmp_path / "fused"))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("plain", "fused")]
    assert logs[0] == logs[1]


@needs_kernels
def test_training_imports_no_compiler(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    """torch's takes a second and 70 MB, and its optimizers ask for it when they are made."""
    given = options(pictures, tiny, tmp_path / "run")
    code = (
        "import sys; from inkwash.training.run import trained; "
        f"trained('lora', **{given!r}); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_gradients_are_freed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, alive = Adversaries(late=100), []
    stepping = FusedBackward.stepping

    def counting(self: FusedBackward, *of: object):
        step = stepping(self, *of)  # type: ignore[arg-type]

        def counted(parameter: Tensor) -> None:
            alive.append(sum(p.grad is not None for p in task.generator.parameters()))
            step(parameter)

        return counted

    monkeypatch.setattr(FusedBackward, "stepping", counting)
    train(task, replace(CONFIG, fused_backward=True), tmp_path)
    assert len(alive) == 6 * len(list(task.generator.parameters())) and set(alive) == {1}


def test_a_loss_that_is_not_finite_skips_a_fused_update(tmp_path: Path) -> None:
    task = Adversaries(late=100, bad_steps=(3,))
    config = replace(CONFIG, num_steps=3, save_every=1, fused_backward=True)
    train(task, config, tmp_path)
    before = states(tmp_path)
    train(task, replace(config, num_steps=4), tmp_path)
    learned = [key for key in before if "generator" in key and "running" not in key and "num_" not in key]
    assert learned and all(torch.equal(before[key], states(tmp_path)[key]) for key in learned)
    assert "NaN" in (tmp_path / "log.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "needs max_grad_norm 0, and it is 1"),
        ({"max_grad_norm": 0, "accumulation": 2}, "needs accumulation 1, and it is 2"),
        ({"max_grad_norm": 0, "optimizer": "prodigy"}, "does not go with optimizer prodigy"),
        ({"max_grad_norm": 0, "precision": "fp16"}, "does not go with precision fp16"),
    ],
)
def test_what_waits_for_all_gradients_is_refused(
    more: dict[str, object], said: str, pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        trained("text-to-image", **options(pictures, tiny, tmp_path / "run", fused_backward=True, **more))


def test_a_model_learns_by_a_fused_backward(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    more = {"max_grad_norm": 0, "ema": 0.9}
    for name, fused in (("plain", False), ("fused", True)):
        trained("text-to-image", **options(pictures, tiny, tmp_path / name, **more, fused_backward=fused))
    assert same(states(tmp_path / "plain"), states(tmp_path / "fused"))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {"block_swap": 9}),
        ("lora", {"block_swap": 3, "gradient_checkpointing": True, "kind": "dora"}),
        ("text-to-image", {"gradient_checkpointing": True}),
        ("text-to-image", {"train": ["out.2"], "block_swap": 9}),
    ],
)
def test_blocks_that_come_and_go_change_no_result(
    method: str, more: dict[str, object], pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    plain = {key: value for key, value in more.items() if key in ("kind", "train")}
    trained(method, **options(pictures, tiny, tmp_path / "plain", **plain))
    trained(method, **options(pictures, tiny, tmp_path / "small", **more))
    assert same(states(tmp_path / "plain"), states(tmp_path / "small"))


def test_one_block_is_there_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the copies that are made in both passes, none outlives its block's gradients."""
    unet = inkwash.load(tiny).unet
    sizes = [
        sum(p.nbytes for p in block.parameters())
        for block in unet.modules()
        if isinstance(block, checkpointing.Block)
    ]
    chosen = checkpointing.swap_blocks(unet, len(sizes))
    assert len(chosen) == len(sizes)
    alive: dict[int, int] = {}
    most = [0, 0, 0]  # bytes at once, in all, and copies
    copied = checkpointing.copied

    def counting(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
        made = copied(weight, device)
        assert made.data_ptr() != weight.data_ptr()
        number = most[2]
        alive[number] = made.nbytes
        weakref.finalize(made, alive.pop, number)
        most[:] = max(most[0], sum(alive.values())), most[1] + made.nbytes, number + 1
        return made

    monkeypatch.setattr(checkpointing, "copied", counting)
    x = torch.randn(1, unet.config.in_channels, 8, 8, requires_grad=True)
    made = unet(x, torch.tensor([5]), torch.randn(1, 7, unet.config.context_dim or 0))
    gc.collect()
    assert not alive  # nothing waits for the gradients
    made.square().mean().backward()
    gc.collect()
    assert not alive and x.grad is not None
    assert most[1] == 2 * sum(sizes)
    assert most[0] < 0.7 * sum(sizes)


def test_blocks_that_learn_can_not_go(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_swap 1 is more than the 0 of 9 blocks that stay as they are"):
        trained("text-to-image", **options(pictures, tiny, tmp_path / "run", block_swap=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_swapped_blocks_leave_the_gpu(tiny: Path) -> None:
    """The same gradients, and at rest the weights of no block."""
    whole, small = (inkwash.load(tiny, "cuda", "fp32").unet for _ in range(2))
    before = torch.cuda.memory_allocated()
    blocks = checkpointing.swap_blocks(small, 9)
    assert torch.cuda.memory_allocated() < before
    assert all(p.device.type == "cpu" and p.is_pinned() for block in blocks for p in block.parameters())
    x, gradients = torch.randn(1, small.config.in_channels, 8, 8, device="cuda"), []
    for unet in (whole, small):
        given = x.clone().requires_grad_()
        context = torch.ones(1, 7, small.config.context_dim or 0, device="cuda")
        unet(given, torch.tensor([5], device="cuda"), context).square().mean().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients)
