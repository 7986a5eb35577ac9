"""How far each sampler gets in few steps, on `mini`: a Fréchet distance for each number of steps.

`python benchmarks/samplers.py [--build build/mini] [--pictures 40] [--out benchmarks/results/samplers.json]`

The protocol is that of `recipes/mini/evaluate.py`: captions of held-out pictures, seed k for caption k, cfg_scale 5,
the uniform schedule, and the judge's features against those of 500 real held-out pictures. The same captions and
seeds for all, so that cells compare. Each finished cell is written at once; the same command goes on from there, and
writes the table beside it.
"""

import json
import os
import platform
import random
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch import Tensor

import inkwash
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.files import atomic
from inkwash.metrics.frechet import frechet_distance
from inkwash.pipeline.model import Model
from inkwash.pipeline.names import SAMPLER_NAMES
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import TASKS
from inkwash.prompts.attention import escape
from recipes.mini import parts
from recipes.mini.classifier import Classifier
from recipes.mini.evaluate import CFG_SCALE, NUM_PROMPTS, pixels_of
from recipes.mini.pictures import load_pictures

STEPS = (5, 10, 20, 50)
BATCH = 20
app = App(help=__doc__)


@torch.inference_mode()
def embedded(judge: Classifier, pixels: Tensor) -> Tensor:
    return torch.cat([judge.embed(chunk) for chunk in pixels.split(50)])


def drawn(model: Model, captions: list[str], sampler: str, steps: int) -> tuple[Tensor, float]:
    """Pixels of a picture for each caption, and how often the network was called for one."""
    calls: list[int] = []
    counting = model.unet.register_forward_hook(lambda module, args, out: calls.append(len(out) // 2))
    images = []
    for first in range(0, len(captions), BATCH):
        some = tuple(captions[first : first + BATCH])
        options = {"steps": steps, "sampler": sampler, "schedule": "uniform", "cfg_scale": CFG_SCALE}
        images += TASKS["text_to_image"].draw(
            model, TextToImageRequest(prompt=some, seed=first, batch_size=len(some), **options), {}
        )
    counting.remove()
    return pixels_of(images), sum(calls) / len(captions)


def table(report: dict[str, Any]) -> str:
    rows = ["| sampler | calls at 20 steps | " + " | ".join(f"{n} steps" for n in STEPS) + " |"]
    rows.append("|---" * (len(STEPS) + 2) + "|")
    for name, cells in report["cells"].items():
        some = [cells.get(str(n)) or cells.get("any") for n in STEPS]
        calls = f"{some[2]['calls']:.0f}" if some[2] else ""
        rows.append(
            f"| `{name}` | {calls} | " + " | ".join(f"{c['fd']:.1f}" if c else "" for c in some) + " |"
        )
    return "\n".join(rows)


@app.default
def main(
    *,
    build: Path = Path("build/mini"),
    pictures: int = 40,
    dtype: str = "bfloat16",
    out: Path = Path("benchmarks/results/samplers.json"),
) -> None:
    """Measure what is not measured yet, and write the table.

    build: the recipe's folder, for its judge and its held-out pictures. pictures: for each cell. dtype: of `mini`.
    """
    model = inkwash.load("mini", dtype=getattr(torch, dtype))
    judge, heldout = parts.load_classifier(build, "judge"), load_pictures(build / "data", "heldout")
    rows = [i for i, r in enumerate(heldout.records) if r["kind"] != "clipart"]
    rows = random.Random(0).sample(rows, NUM_PROMPTS)
    real = embedded(judge, heldout.pixels(torch.tensor(rows)))
    captions = [escape(heldout.records[i]["caption"]) for i in rows[:pictures]]

    settings = {"model": model.hash, "pictures": pictures, "dtype": dtype, "cfg_scale": CFG_SCALE}
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if report and report["settings"] != settings:
        raise ValueError(f"{out} holds cells of {report['settings']}, and these are {settings}")
    report = report or {
        "benchmark": "samplers",
        "settings": settings,
        "cells": {n: {} for n in SAMPLER_NAMES},
    }
    report["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report["torch"] = torch.__version__
    for steps in STEPS:
        for sampler in SAMPLERS:
            key = "any" if sampler == "dpm_adaptive" else str(steps)  # it takes as many as it wants
            if key in report["cells"].setdefault(sampler, {}):
                continue
            pixels, calls = drawn(model, captions, sampler, steps)
            distance = frechet_distance(embedded(judge, pixels), real)
            report["cells"][sampler][key] = {"fd": round(distance, 2), "calls": round(calls, 1)}
            with atomic(out) as partial:
                partial.write_text(json.dumps(report, indent=1) + "\n")
            print(f"{sampler}, {steps} steps: {distance:.2f}, {calls:.1f} calls", flush=True)
    # what stands above the table stays
    page = out.with_suffix(".md")
    text = page.read_text().partition("| sampler |")[0] if page.exists() else "# Samplers on `mini`\n\n"
    with atomic(page) as partial:
        partial.write_text(f"{text}{table(report)}\n")


if __name__ == "__main__":
    app()
