"""Memory and time of each of several processes that train one model together.

`torchrun --nproc-per-node 2 benchmarks/ranks.py [--parallel fsdp] [--model mini] [--steps 10] [--out FILE]`

All of a model's U-Net learns by AdamW from random pictures, two a process. Bytes of its share of weights, moments and
average; the process's peak; the median seconds of a step. The first process prints the most of all.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from cyclopts import run as command
from PIL import Image

from inkwash.bench.worker import peak_memory
from inkwash.training.config_methods import FinetuneConfig
from inkwash.training.distributed import leave_world, local
from inkwash.training.loop import make_states, one_step
from inkwash.training.run import Run, prepare


def measure(
    *, parallel: Literal["ddp", "fsdp"] = "ddp", model: str = "mini", steps: int = 10, out: Path | None = None
) -> None:
    """Train, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(int(os.environ.get("RANK", "0")))
        for k in range(8):
            noise = random.integers(0, 255, (128, 128, 3), np.uint8)
            Image.fromarray(noise).save(Path(folder) / f"{k}.png")
        config = FinetuneConfig(
            data=(folder,), output=f"{folder}/run", model=model, parallel=parallel, batch_size=2, cache="none",
            precision="fp32", ema=0.99, buckets=False, resolution=(128, 128), threads=1,
        )  # fmt: skip
        run = prepare("text-to-image", config)
        assert isinstance(run, Run)
        states, seconds = make_states(run.task, run.loop), []
        for step in range(steps):
            begin = time.perf_counter()
            one_step(run.task, run.loop, step, states, run.world)
            seconds.append(time.perf_counter() - begin)
        weights = [local(p) for p in run.model.unet.parameters()]
        slots = [
            local(s) for o in states.optimizers.values() for one in o.state.values() for s in one.values()
        ]
        averages = [local(value) for ema in states.emas.values() for value in ema.average.values()]
        found = {
            f"{name} MiB": round(sum(one.nbytes for one in some) / 2**20, 1)
            for name, some in (("weights", weights), ("moments", slots), ("average", averages))
        } | {"peak MiB": round(peak_memory("cpu") / 2**20), "seconds": round(statistics.median(seconds), 3)}
        found = {key: most(value) for key, value in found.items()}
        if run.world.is_first:
            about = {
                "model": model,
                "parallel": parallel,
                "processes": run.world.size,
                "torch": torch.__version__,
            }
            print(json.dumps(about | found))
            if out:
                rows = json.loads(out.read_text("utf-8")) if out.exists() else []
                out.write_text(json.dumps([*rows, about | found], indent=1) + "\n", "utf-8")
        run.world.wait()
        leave_world()


def most(value: float) -> float:
    """The most of all processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total, dist.ReduceOp.MAX)
    return total.item()


if __name__ == "__main__":
    command(measure)
