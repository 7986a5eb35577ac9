"""Choices that make drawing faster and change the picture a little: how much of each.

`python benchmarks/choices.py mini [--build build/mini] [--pictures 100] [--out benchmarks/results/choices.json]`
`python benchmarks/choices.py sd1 [--sizes 512 768 1024] [--out benchmarks/results/choices.json]`

mini: against its exact pictures, 20 steps of dpmpp_2m by the protocol of `benchmarks/samplers.py`: the PSNR of each
picture to the exact one, the Fréchet distance to 500 real held-out pictures, and processor time. sd1: what each one
saves at full size, random weights in bfloat16: the calls that a picture is made of are timed at one thread, in turn,
and its 20 steps added up. Rows that are there are left out, so a stopped run goes on; the table beside is written anew.
"""

import copy
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from PIL import Image
from torch import Tensor

import inkwash
from inkwash.bench.random_model import write_random
from inkwash.files import atomic
from inkwash.kernels.cpu import processor
from inkwash.metrics.fidelity import psnr
from inkwash.metrics.frechet import frechet_distance
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.models.unet import Kept
from inkwash.nn.blocks import channels_last
from inkwash.nn.int8 import in_int8
from inkwash.pipeline.denoising.token_merging import TokenMerging
from inkwash.pipeline.model import Model
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import TASKS
from inkwash.prompts.attention import escape
from recipes.mini import parts
from recipes.mini.classifier import Classifier
from recipes.mini.evaluate import NUM_PROMPTS, pixels_of
from recipes.mini.pictures import load_pictures

STEPS = 20
# a sampler without fresh noise, or fewer steps would draw other pictures
EXACT = {"steps": STEPS, "sampler": "dpmpp_2m", "schedule": "uniform", "cfg_scale": 5.0}
TINY, INT8 = "tiny autoencoder", "int8"  # rows of the exact options, with a model that differs
ROWS: dict[str, dict[str, Any]] = {
    "exact": {},
    "18 steps": {"steps": 18},
    "15 steps": {"steps": 15},
    "12 steps": {"steps": 12},
    "10 steps": {"steps": 10},
    "7 steps": {"steps": 7},
    "deep_cache 2": {"deep_cache": 2},
    "deep_cache 3": {"deep_cache": 3},
    "deep_cache 5": {"deep_cache": 5},
    "token_merging 0.25": {"token_merging": 0.25},
    "token_merging 0.5": {"token_merging": 0.5},
    "token_merging 0.75": {"token_merging": 0.75},
    "guidance to 0.8": {"guidance_end": 0.8},
    "guidance to 0.6": {"guidance_end": 0.6},
    "guidance 0.1 to 0.8": {"guidance_start": 0.1, "guidance_end": 0.8},
    "guidance 0.2 to 0.7": {"guidance_start": 0.2, "guidance_end": 0.7},
    TINY: {},
    INT8: {},
}
BATCH = 20
OUT = Path("benchmarks/results/choices.json")
app = App(help=__doc__)


def drawn(model: Model, captions: list[str], options: dict[str, Any]) -> tuple[Tensor, float]:
    """Pixels of a picture for each caption, and the seconds of the processor for one."""
    begin, images = time.process_time(), []
    for first in range(0, len(captions), BATCH):
        some = tuple(captions[first : first + BATCH])
        request = TextToImageRequest(prompt=some, seed=first, batch_size=len(some), **(EXACT | options))
        images += TASKS["text_to_image"].draw(model, request, {})
    return pixels_of(images), (time.process_time() - begin) / len(captions)


@torch.inference_mode()
def embedded(judge: Classifier, pixels: Tensor) -> Tensor:
    return torch.cat([judge.embed(chunk) for chunk in pixels.split(50)])


@app.command
def mini(
    *,
    build: Path = Path("build/mini"),
    pictures: int = 100,
    rows: tuple[str, ...] = tuple(ROWS),
    sheet: Path | None = None,
    out: Path = OUT,
) -> None:
    """Measure the rows that are not there yet. build: the recipe's folder, for its judge, its held-out pictures and its
    tiny autoencoder. sheet: a picture of the first ten of each row that is measured, a line each."""
    torch.set_num_threads(1)
    model = inkwash.load("mini", dtype=torch.bfloat16)
    judge, heldout = parts.load_classifier(build, "judge"), load_pictures(build / "data", "heldout")
    kept = [i for i, r in enumerate(heldout.records) if r["kind"] != "clipart"]
    kept = random.Random(0).sample(kept, NUM_PROMPTS)
    real = embedded(judge, heldout.pixels(torch.tensor(kept)))
    captions = [escape(heldout.records[i]["caption"]) for i in kept[:pictures]]
    report = opened(out)
    settings = {"model": model.hash, "pictures": pictures, "dtype": "bfloat16", "steps": STEPS}
    if report["mini"] and report["settings"] != settings:
        raise ValueError(f"{out} holds rows of {report['settings']}, and these are {settings}")
    report["settings"] = settings
    exact, exact_seconds = drawn(model, captions, {})
    lines = [exact[:10]]
    for name in (row for row in rows if row not in report["mini"]):
        other: dict[str, Any] = {TINY: {"parts": [build / "tiny/vae"]}, INT8: {"int8": True}}
        used = inkwash.load("mini", dtype=torch.bfloat16, **other[name]) if name in other else model
        pixels, seconds = (exact, exact_seconds) if name == "exact" else drawn(used, captions, ROWS[name])
        near = psnr(pixels, exact).sort().values
        report["mini"][name] = {
            "psnr": round(float(near.median()), 1),
            "psnr_worst_tenth": round(float(near[len(near) // 10]), 1),
            "frechet_distance": round(frechet_distance(embedded(judge, pixels), real), 1),
            "time": round(seconds / exact_seconds, 2),
        }
        write(report, out)
        print(name, report["mini"][name], flush=True)
        lines.append(pixels[:10])
    if sheet:
        whole = torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1)
        Image.fromarray(((whole + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sheet)


@app.command
@torch.inference_mode()
def sd1(*, sizes: tuple[int, ...] = (512, 768, 1024), runs: int = 2, out: Path = OUT) -> None:
    """Measure the sizes that are not there yet. runs: of each call, of which the fastest counts."""
    torch.set_num_threads(1)
    report = opened(out)
    with tempfile.TemporaryDirectory() as scratch:
        write_random("sd1", "bfloat16", Path(scratch) / "sd1")
        model = inkwash.load(Path(scratch) / "sd1", dtype=torch.bfloat16)
        for size in (size for size in sizes if str(size) not in report["sd1"]):
            seconds = timed(calls(model, size // 8), runs)
            exact = STEPS * seconds["guided"] + seconds["decode"]
            made = {name: round(whole(name, seconds) / exact, 2) for name in ROWS}
            report["sd1"][str(size)] = {"time": made, "seconds": {k: round(v, 3) for k, v in seconds.items()}}
            write(report, out)
            print(size, report["sd1"][str(size)], flush=True)


def calls(model: Model, side: int) -> dict[str, Callable[[], object]]:
    """The network calls that make pictures of (8 side)^2 pixels, by name."""
    network = model.network()
    x, t = torch.randn(2, 4, side, side), torch.full((2,), 500.0)
    context = torch.randn(2, 77, 768).bfloat16()
    latent = torch.randn(1, 4, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
    tiny = channels_last(TinyAutoencoder(TinyAutoencoderConfig()).bfloat16()).eval()
    rounded = copy.deepcopy(model.unet)  # the same weights in memory once more
    in_int8(rounded)
    kept = Kept()
    network(x, t, context=context, kept=kept)  # from now on its depths are there
    merged = {
        f"merged {ratio}": lambda ratio=ratio: TokenMerging(network, model.unet, ratio)(x, t, context=context)
        for ratio in (0.25, 0.5, 0.75)
    }
    return {
        "guided": lambda: network(x, t, context=context),
        "not guided": lambda: network(x[:1], t[:1], context=context[:1]),
        "shallow": lambda: network(x, t, context=context, kept=kept),
        **merged,
        INT8: lambda: rounded(x.bfloat16(), t, context=context),
        "decode": lambda: model.autoencoder.decode(latent),
        "tiny decode": lambda: tiny.decode(latent),
    }


def timed(what: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The fewest seconds of the processor that each took, in turn, after one that does not count."""
    best = dict.fromkeys(what, math.inf)
    for k in range(runs + 1):
        for name, call in what.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin) if k else math.inf
    return best


def whole(name: str, seconds: dict[str, float]) -> float:
    """Seconds of a picture by this row's options: its steps' calls and its decoding."""
    row = ROWS[name]
    steps = row.get("steps", STEPS)
    first, last = (math.ceil(row.get(f"guidance_{end}", k) * steps) for k, end in enumerate(("start", "end")))
    deep = math.ceil(steps / row.get("deep_cache", 1))
    kind = INT8 if name == INT8 else f"merged {row['token_merging']}" if "token_merging" in row else "guided"
    guided = seconds[kind]
    calls = deep * guided + (steps - deep) * seconds["shallow"]
    if last - first < steps:
        calls = (last - first) * guided + (steps - last + first) * seconds["not guided"]
    return calls + seconds["tiny decode" if name == TINY else "decode"]


def opened(out: Path) -> dict[str, Any]:
    report = json.loads(out.read_text()) if out.exists() else {"benchmark": "choices", "mini": {}, "sd1": {}}
    cpu = processor().get("model name", platform.machine())
    return report | {"machine": {"cpu": cpu, "threads": 1}, "torch": torch.__version__}


def write(report: dict[str, Any], out: Path) -> None:
    """The figures, and the table beside them; what stands above the table stays."""
    with atomic(out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    page = out.with_suffix(".md")
    text = (
        page.read_text().partition("| choice |")[0] if page.exists() else "# Faster, a little different\n\n"
    )
    with atomic(page) as partial:
        partial.write_text(f"{text}{table(report)}\n")


def table(report: dict[str, Any]) -> str:
    sizes = sorted(report["sd1"], key=int)
    head = ["choice", "PSNR", "a tenth is below", "Fréchet distance", "time, `mini`"]
    head += [f"time, SD1 at {size}" for size in sizes]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for name in ROWS:
        row = report["mini"].get(name, {})
        cells = [row.get(key, "") for key in ("psnr", "psnr_worst_tenth", "frechet_distance", "time")]
        cells = ["∞", "∞", *cells[2:]] if name == "exact" and row else cells
        cells += [report["sd1"][size]["time"].get(name, "") for size in sizes]
        lines.append(" | ".join([name, *map(str, cells)]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


if __name__ == "__main__":
    app()
