"""Training speed in pictures a second, with the kernels and with torch alone.

`python benchmarks/training.py [ROW ...] [--rounds 5] [--threads 2] [--out FILE]`
`python benchmarks/training.py memory [ROW ...] [--out FILE]`: the peak of a training with the options for little memory.

Rows: steps of `mini`'s recipe by batch, of a LoRA of rank 8 beside SD1 in bfloat16, and of all of SD1 with float32 weights
under autocast, the latter two of one picture of 256x256. Both sides run the training loop's own step on random weights, in
processes of their own that take turns; of SD1, which fills the memory, they run one after the other, twice. Seconds are
the least of all rounds, `busy` those of all processors together, which other programs disturb less. For `mini`, also
how far the whole gradient is from float32's. Results go to FILE beside those of other rows.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cyclopts import App
from torch import Tensor, nn

from inkwash.adapters.trainable import TrainableLoRA
from inkwash.bench.worker import peak_memory
from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.kernels.cpu import processor
from inkwash.kernels.library import load
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.blocks import channels_last
from inkwash.process import keep_memory
from inkwash.training.checkpointing import checkpoint_activations
from inkwash.training.loop import LoopConfig, Task, make_states, one_step
from inkwash.training.objectives import Objective
from inkwash.training.sources import Batch
from inkwash.training.tasks.denoising import DenoisingTask
from inkwash.training.trainable import Learner
from inkwash.training.trainable.lora import LoRALearner
from inkwash.weights.families import FAMILIES
from recipes.mini.recipe import UNET
from recipes.mini.tasks import TextToImageTask

app = App(help=__doc__)
ROWS = {"mini 32": 32, "mini 128": 128, "sd1 lora": 1, "sd1": 1}  # pictures of a step
SMALL = {"sd1": 256, "sdxl lora": 512}  # pixels a side
SIDES = {"torch": "0", "kernels": "1"}  # values of INKWASH_KERNELS
NUM, RANK = 64, 8  # pictures of `mini` and SD1 to choose from; of the LoRA


def network(config: UNetConfig, dtype: torch.dtype = torch.float32) -> UNet:
    """Random, and no layer zero, so that every gradient is worked for."""
    torch.manual_seed(0)
    made = channels_last(UNet(config)).to(dtype)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return made


class RandomBatches:
    """Random latents of SD1, 256x256, or of another U-Net and size, and its conditions, drawn anew each time."""

    size = 1

    def __init__(self, config: UNetConfig = UNetConfig(), side: int = 256):
        self.config, self.side = config, side // 8

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        cond = {"context": torch.randn(1, 77, self.config.context_dim or 0, generator=rng)}
        if self.config.vector_dim:
            cond["vector"] = torch.randn(1, self.config.vector_dim, generator=rng)
        return Batch(torch.randn(1, 4, self.side, self.side, generator=rng), cond)


def small_task(row: str, side: int) -> tuple[Task, LoopConfig]:
    """A task as it takes the least memory, from cached pictures and captions, of one picture of side x side."""
    schedule = NoiseSchedule(torch.cumprod(1 - sqrt_linear_betas(), 0))
    config = UNetConfig() if row == "sd1" else FAMILIES["sdxl"].unet
    if row == "sd1":
        unet, learner = network(config), Learner()
        learner.name, learner.module = "model", unet
        loop = LoopConfig(1000, optimizer="adafactor", max_grad_norm=0, fused_backward=True, ema_decay=None)
    else:
        torch.set_default_dtype(torch.bfloat16)  # never in float32, whose peak would be the figure
        unet = network(config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        parts: Any = SimpleNamespace(unet=unet, text_encoders=(), schedule=schedule, prediction="eps")
        learner, loop = LoRALearner(TrainableLoRA(parts, RANK)), LoopConfig(1000, ema_decay=None)
    checkpoint_activations(unet)
    batches = RandomBatches(config, side)
    return DenoisingTask(unet, learner, batches, Objective(), schedule, precision="bf16"), loop


def task(row: str) -> Task:
    schedule = NoiseSchedule(torch.cumprod(1 - sqrt_linear_betas(), 0))
    if row == "sd1 lora":
        unet = network(UNetConfig(), torch.bfloat16).requires_grad_(False)
        parts: Any = SimpleNamespace(unet=unet, text_encoders=(), schedule=schedule, prediction="eps")
        return DenoisingTask(
            unet, LoRALearner(TrainableLoRA(parts, RANK)), RandomBatches(), Objective(), schedule
        )
    config, side = (UNetConfig(), 32) if row == "sd1" else (UNET, 16)
    means = torch.randn(NUM, config.in_channels, side, side)
    contexts = torch.randn(NUM, 77, config.context_dim or 0)
    choices = [[i] for i in range(NUM)]
    return TextToImageTask(
        network(config),
        means,
        torch.ones_like(means),
        contexts,
        choices,
        torch.ones(NUM),
        schedule,
        ROWS[row],
        "v",
    )


def distance() -> float:
    """Relative distance of the gradient of `mini`'s U-Net under autocast from that in float32."""
    unet, batch = network(UNET), 16
    x, noise = torch.randn(2, batch, 8, 16, 16).contiguous()
    t, context = torch.linspace(0, 999, batch), torch.randn(batch, 77, UNET.context_dim or 0)

    def gradient(autocast: bool) -> Tensor:
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            made = unet(x.contiguous(memory_format=torch.channels_last), t, context)
        (made.float() - noise).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])

    made, exact = gradient(True), gradient(False)
    return ((made - exact).norm() / exact.norm()).item()


@app.command(show=False)
def worker(row: str, threads: int) -> None:
    """One side: for each line a step, and its figures as a line of JSON."""
    keep_memory()
    torch.set_num_threads(threads)
    trained, config = task(row), LoopConfig(1000)
    states = make_states(trained, config)
    print(json.dumps({"distance": distance() if row == "mini 32" else None}), flush=True)
    for step, _ in enumerate(sys.stdin):
        begin, busy = time.perf_counter(), time.process_time()
        one_step(trained, config, step, states)
        figures = {"seconds": time.perf_counter() - begin, "busy": time.process_time() - busy}
        print(json.dumps(figures | {"peak": peak_memory("cpu")}), flush=True)


@app.command(show=False)
def small(row: str, side: int, steps: int, threads: int) -> None:
    """Take steps of a small task, and print the process's peak."""
    torch.set_num_threads(threads)
    trained, config = small_task(row, side)
    states, weights = make_states(trained, config), peak_memory("cpu")
    logs = [one_step(trained, config, step, states) for step in range(steps)]
    figures = {"after loading": weights, "peak": peak_memory("cpu")}
    gibibytes = {f"{name} GiB": round(value / 2**30, 2) for name, value in figures.items()}
    print(
        json.dumps(gibibytes | {"side": side, "losses": [round(max(one.values()), 4) for one in logs]}),
        flush=True,
    )


@app.command
def memory(*rows: str, steps: int = 2, threads: int = 2, side: int = 0, out: Path | None = None) -> None:
    """The peak of a process that trains all of SD1 at 256x256, and a LoRA of rank 8 beside SDXL at 512x512.

    SD1: float32 weights, bfloat16 products, Adafactor, fused backward. SDXL: bfloat16. Both compute activations twice; text
    encoders and first stage are not there, as with --cache-text and cached latents. side: another one, for a trial.
    """
    found = json.loads(out.read_text("utf-8")) if out and out.exists() else {}
    for row in rows or SMALL:
        if row not in SMALL:
            raise SystemExit(f"there is no row {row!r}, but {', '.join(SMALL)}")
        command = [sys.executable, __file__, "small", row, str(side or SMALL[row]), str(steps), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{row}: {done.stderr[-2000:]}")
        found[f"memory {row}"] = json.loads(done.stdout.splitlines()[-1]) | {
            "version of torch": torch.__version__
        }
        print(row, json.dumps(found[f"memory {row}"]), flush=True)
        if out:
            out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def begun(row: str, side: str, threads: int) -> tuple[subprocess.Popen, dict[str, Any]]:
    command = [sys.executable, __file__, "worker", row, str(threads)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"INKWASH_KERNELS": SIDES[side], "OMP_NUM_THREADS": str(threads)},
    )
    return process, answer(process)


def answer(process: subprocess.Popen) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the worker ended with {process.wait()}")
    return json.loads(line)


def step(process: subprocess.Popen) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def measured(row: str, rounds: int, threads: int) -> dict[str, Any]:
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    about: dict[str, dict[str, Any]] = {}
    groups = [list(SIDES)] if row != "sd1" else [[side] for side in (*SIDES, *SIDES)]
    for group in groups:
        workers = {}
        for side in group:
            workers[side], about[side] = begun(row, side, threads)
        try:
            for number in range(rounds + 1):
                for side, process in workers.items():
                    figures = step(process)
                    if number:  # the first compiles, measures and allocates
                        taken[side].append(figures)
        finally:
            for process in workers.values():
                process.terminate()
                process.wait()
    made: dict[str, Any] = {"pictures": ROWS[row]}
    for side, figures in taken.items():
        least = {key: min(one[key] for one in figures) for key in ("seconds", "busy")}
        made[side] = {
            "pictures/s": round(ROWS[row] / least["seconds"], 2),
            **{key: round(value, 3) for key, value in least.items()},
            "peak GiB": round(max(one["peak"] for one in figures) / 2**30, 2),
        } | {key: round(value, 5) for key, value in about[side].items() if value is not None}
    for key in ("seconds", "busy"):
        made[f"ratio of {key}"] = round(made["kernels"][key] / made["torch"][key], 3)
    return made


@app.default
def main(*rows: str, rounds: int = 5, threads: int = 2, out: Path | None = None) -> None:
    """Measure rows, all where none is named, and print each as it is done."""
    found = json.loads(out.read_text("utf-8")) if out and out.exists() else {}
    for row in rows or ROWS:
        if row not in ROWS:
            raise SystemExit(f"there is no row {row!r}, but {', '.join(ROWS)}")
        cpu = processor().get("model name")
        machine = {"cpu": cpu, "threads": threads, "load": round(os.getloadavg()[0], 1)}
        found[row] = measured(row, rounds, threads) | {
            "machine": machine,
            "version of torch": torch.__version__,
        }
        print(row, json.dumps(found[row], indent=1), flush=True)
        if out:
            out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    assert load() is not None, "there are no kernels here, so both sides are torch"


if __name__ == "__main__":
    app()
