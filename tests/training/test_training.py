"""The loop: a stopped run goes on as if it had not been, files are whole, and bad numbers do no harm."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.training import checkpoints
from inkwash.training.ema import EMA
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import LoopConfig, generator_for, make_optimizers, train

FILES = ["log.jsonl", "state-previous.safetensors", "state.safetensors"]


class Adversaries:
    """A generator and a discriminator that starts at `late`, on noise: as an autoencoder is trained."""

    def __init__(self, late: int = 4, bad_steps: tuple[int, ...] = (), stop_at: int | None = None):
        torch.manual_seed(0)
        layers = {"first": nn.Linear(4, 8), "norm": nn.BatchNorm1d(8), "transformer": nn.Linear(8, 4)}
        self.generator = nn.Sequential(OrderedDict(layers))
        self.judge = nn.Linear(4, 1)
        self.modules = {"generator": self.generator, "judge": self.judge}
        self.late, self.bad_steps, self.stop_at = late, bad_steps, stop_at
        self.seen: list[float] = []

    def losses(self, step: int, micro: int, rng: torch.Generator):
        if step == self.stop_at and micro == 0:
            os.kill(os.getpid(), signal.SIGINT)
        x = torch.randn(8, 4, generator=rng)
        made = self.generator(x)
        loss = (made - x.flip(1)).square().mean()
        if step in self.bad_steps:
            loss = loss * math.nan
        if step >= self.late:
            loss = loss - 0.1 * self.judge(made).mean()
        self.seen.append(loss.item())
        yield "generator", loss, {"size": made.abs().mean().item()}
        if step >= self.late:
            yield "judge", (self.judge(made.detach()) - self.judge(x)).square().mean(), {}


CONFIG = LoopConfig(
    12, lr=1e-2, warmup_steps=3, decay_steps=4, num_micro_batches=2, save_every=3, log_every=1, ema_decay=0.9
)


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("muon", [0.0, 5.0])
@pytest.mark.parametrize("stop", [1, 4, 5, 9])
def test_a_stopped_run_goes_on_bit_equal(tmp_path: Path, stop: int, muon: float) -> None:
    """Losses, weights, averages, optimizers and log, with accumulation, around the discriminator's start."""
    whole, config = Adversaries(), replace(CONFIG, muon=muon)
    train(whole, config, tmp_path / "whole")
    first, second = Adversaries(stop_at=stop), Adversaries()
    with pytest.raises(KeyboardInterrupt):
        train(first, config, tmp_path / "halves")
    assert len(first.seen) == 2 * (stop + 1)  # the step that was running is ended and saved
    train(second, config, tmp_path / "halves")
    assert first.seen + second.seen == whole.seen
    assert same(tensors(tmp_path / "halves"), tensors(tmp_path / "whole"))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("halves", "whole")]
    assert logs[0] == logs[1]


def test_a_killed_run_goes_on_from_its_last_save(tmp_path: Path) -> None:
    """After a kill the log may run ahead of the state and end in half a line; both are mended."""
    whole = Adversaries()
    train(whole, CONFIG, tmp_path / "whole")

    class Killed(Exception):
        pass

    class Dies(Adversaries):
        def losses(self, step: int, micro: int, rng: torch.Generator):
            if step == 8:
                raise Killed
            yield from super().losses(step, micro, rng)

    with pytest.raises(Killed):
        train(Dies(), CONFIG, tmp_path / "killed")
    log = tmp_path / "killed" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 9, "gener')
    resumed = Adversaries()
    train(resumed, CONFIG, tmp_path / "killed")
    assert resumed.seen == whole.seen[2 * 6 :]
    killed, uninterrupted = (tmp_path / name / "state.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == uninterrupted.read_bytes()
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 13))


def test_a_stopped_process_leaves_whole_files(tmp_path: Path) -> None:
    """SIGINT to a process that trains: it saves, says so by its exit, and leaves nothing half-written."""
    code = f"""
    import torch
    from pathlib import Path
    from tests.training.test_training import Adversaries
    from inkwash.training.loop import LoopConfig, train
    train(Adversaries(stop_at=30), LoopConfig(10**9, save_every=10), Path({str(tmp_path)!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[2], capture_output=True
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-previous.safetensors",
        "state.safetensors",
    ]
    task = Adversaries()
    optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in task.modules.items()}
    emas = {name: EMA(module, 0.9) for name, module in task.modules.items()}
    states = checkpoints.States(task.modules, optimizers, emas)
    assert checkpoints.load_state(tmp_path / "state.safetensors", states) == 31


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    """Also their metadata, which a writer that shuffles it would write in two orders."""
    for k in range(16):
        checkpoints.save_state(tmp_path / str(k), 3, checkpoints.States(Adversaries().modules, {}, {}))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_start_sweeps_what_a_killed_save_left(tmp_path: Path) -> None:
    """Also where nothing is left to train, so that nothing is saved."""
    train(Adversaries(), CONFIG, tmp_path)
    code = """
    import os, signal, sys
    from pathlib import Path
    from inkwash.files import atomic
    with atomic(Path(sys.argv[1]) / "state.safetensors") as partial:
        partial.write_bytes(bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == len(FILES) + 1
    train(Adversaries(), CONFIG, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_failed_save_keeps_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(Adversaries(), replace(CONFIG, num_steps=3), tmp_path)
    before = tensors(tmp_path)

    replace_file = os.replace

    def full_disk(partial: Path, target: Path) -> None:
        if target.name == "state-next.safetensors":
            raise OSError(28, "No space left on device")
        replace_file(partial, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*state-next\.safetensors'"):
        train(Adversaries(), CONFIG, tmp_path)
    assert same(tensors(tmp_path), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.safetensors"]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_newest_state_falls_back_to_the_one_before(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit anywhere, or a cut: the run goes on from three steps earlier and ends as it would have."""
    whole = Adversaries()
    train(whole, CONFIG, tmp_path / "whole")
    train(Adversaries(), replace(CONFIG, num_steps=9), tmp_path / "hurt")
    state, random = tmp_path / "hurt" / "state.safetensors", Random(seed)
    content = bytearray(state.read_bytes())
    if seed % 2:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    else:
        del content[random.randrange(len(content)) :]
    state.write_bytes(content)
    resumed = Adversaries()
    train(resumed, CONFIG, tmp_path / "hurt")
    assert resumed.seen == whole.seen[2 * 6 :] and "trying the state before it" in caplog.text
    assert same(tensors(tmp_path / "hurt"), tensors(tmp_path / "whole"))


def test_a_damaged_or_foreign_state_is_named(tmp_path: Path) -> None:
    train(Adversaries(), replace(CONFIG, num_steps=3), tmp_path)
    state = tmp_path / "state.safetensors"
    other = Adversaries()
    other.modules = {"generator": nn.Linear(4, 4), "judge": other.judge}
    with pytest.raises(ModelFileError, match=r"state\.safetensors is not a state of this training"):
        train(other, CONFIG, tmp_path)
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"state\.safetensors is not a state of this training"):
        train(Adversaries(), CONFIG, tmp_path)


def test_a_state_of_other_trained_parameters_is_named(tmp_path: Path) -> None:
    """Moments go by the parameters' order, so one more frozen parameter would give all that follow another's."""
    train(Adversaries(), replace(CONFIG, num_steps=3), tmp_path)
    before = tensors(tmp_path)
    other = Adversaries()
    next(other.modules["generator"].parameters()).requires_grad_(False)
    with pytest.raises(ModelFileError, match="it trained other parameters of generator"):
        train(other, CONFIG, tmp_path)
    assert same(tensors(tmp_path), before)
    train(Adversaries(), CONFIG, tmp_path)


def test_a_loss_that_is_not_finite_skips_its_update(tmp_path: Path) -> None:
    task, config = Adversaries(late=100, bad_steps=(3,)), replace(CONFIG, num_steps=4, save_every=1)
    train(task, replace(config, num_steps=3), tmp_path)
    before = tensors(tmp_path)
    train(task, config, tmp_path)
    after = tensors(tmp_path)
    unchanged = [key for key in before if "generator" in key and "running" not in key and "num_" not in key]
    assert unchanged
    assert all(torch.equal(before[key], after[key]) for key in unchanged)
    assert "NaN" in (tmp_path / "log.jsonl").read_text().splitlines()[-1]


def test_ten_such_losses_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="not finite in ten steps"):
        train(Adversaries(late=100, bad_steps=tuple(range(1, 40))), replace(CONFIG, num_steps=40), tmp_path)
    # the last state is from before, so the run can go on with other settings
    assert all(value.isfinite().all() for key, value in tensors(tmp_path).items() if "running" not in key)


def test_accumulation_is_one_larger_batch(tmp_path: Path) -> None:
    class Regression:
        def __init__(self, split: int):
            torch.manual_seed(0)
            self.model, self.split = nn.Linear(4, 1), split
            self.modules = {"model": self.model}

        def losses(self, step: int, micro: int, rng: torch.Generator):
            x = torch.randn(8, 4, generator=generator_for(0, step)).chunk(self.split)[micro]
            yield "model", (self.model(x) - x.sum(1, keepdim=True)).square().mean(), {}

    whole, parts = Regression(1), Regression(4)
    config = LoopConfig(5, lr=1e-2, warmup_steps=0)
    train(whole, config, tmp_path / "whole")
    train(parts, replace(config, num_micro_batches=4), tmp_path / "parts")
    torch.testing.assert_close(whole.model.weight, parts.model.weight, rtol=1e-5, atol=1e-6)


def test_each_loss_trains_its_own_module_only(tmp_path: Path) -> None:
    """The generator's loss goes through the judge, which must not learn from it."""
    task = Adversaries(late=0)
    task.losses = lambda step, micro, rng: iter(  # type: ignore[method-assign]
        [("generator", -task.judge(task.generator(torch.randn(8, 4, generator=rng))).mean(), {})]
    )
    before = task.judge.weight.clone()
    train(task, CONFIG, tmp_path)
    assert torch.equal(task.judge.weight, before)
    assert task.judge.weight.grad is None


def test_the_rate_warms_up_stays_and_falls_to_a_tenth() -> None:
    config = LoopConfig(100, lr=1.0, warmup_steps=10, decay_steps=50)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.1)
    assert LoopConfig(100, lr=1.0, warmup_steps=0).lr_at(0) == LoopConfig(100, lr=1.0).lr_at(99) == 1.0


def test_average_of_weights_follows_its_formula() -> None:
    model = nn.BatchNorm1d(1)
    ema = EMA(model, 0.9)
    expected = model.weight.item()
    for step in range(200):
        nn.init.constant_(model.weight, float(step % 7))
        model.running_mean.fill_(float(step))  # type: ignore[union-attr]
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert 180 < ema.average["running_mean"].item() < 199
    assert "num_batches_tracked" not in ema.average
    with pytest.raises(ValueError, match=r"1\.5"):
        EMA(model, 1.5)


def test_randomness_differs_by_seed_step_and_micro_batch() -> None:
    draws = {
        tuple(torch.randn(2, generator=generator_for(seed, step, micro)).tolist())
        for seed in range(3)
        for step in range(5)
        for micro in range(3)
    }
    assert len(draws) == 45
    again = torch.randn(2, generator=generator_for(2, 4, 2))
    assert tuple(again.tolist()) in draws


def test_muon_moves_all_directions_of_a_matrix_alike() -> None:
    """What is learned from few examples moves as far as what all share; AdamW has the rest."""
    module = nn.ModuleDict({"transformer": nn.Linear(8, 8), "conv": nn.Conv2d(2, 2, 1)})
    optimizers = make_optimizers("m", module, LoopConfig(1, muon=1.0))
    counts = {key: sum(len(group["params"]) for group in o.param_groups) for key, o in optimizers.items()}
    assert counts == {"m": 3, "m.muon": 1}
    assert list(make_optimizers("m", module, LoopConfig(1))) == ["m"]
    layer = module["transformer"]
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.outer(torch.ones(8), torch.ones(8)) + 0.2 * torch.eye(8)
    optimizers["m.muon"].step()
    sizes = torch.linalg.svdvals(layer.weight.detach() - before)
    assert sizes.max() / sizes.min() < 2  # the gradient's own are 41 to 1
    assert torch.linalg.cond(layer.weight.grad) > 40


def test_preserved_variance() -> None:
    """Signals keep their size through layers, and what was zero on purpose stays zero."""
    layers = [nn.Linear(256, 256) for _ in range(10)]
    last = nn.Linear(256, 256)
    nn.init.zeros_(last.weight)
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    out = preserve_variance(nn.Sequential(*layers))(x)
    assert 0.7 < out.std().item() < 1.3
    assert not preserve_variance(last).weight.any()


def test_moments_of_channels_last_weights_come_back_in_their_places(tmp_path: Path) -> None:
    """Fused steps pair a weight and its moments by their places in memory."""

    class Convolution:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.modules = {"model": self.model}

        def losses(self, step: int, micro: int, rng: torch.Generator):
            yield "model", self.model(torch.randn(2, 3, 5, 5, generator=rng)).square().mean(), {}

    for steps in (5, CONFIG.num_steps):
        train(Convolution(), replace(CONFIG, num_steps=steps, decay_steps=0), tmp_path / "parted")
    train(Convolution(), replace(CONFIG, decay_steps=0), tmp_path / "plain")
    whole, parted = tensors(tmp_path / "plain"), tensors(tmp_path / "parted")
    assert all(torch.equal(value, parted[key]) for key, value in whole.items())
