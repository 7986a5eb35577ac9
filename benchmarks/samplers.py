"""Quality of each sampler in few steps, on `mini`: a Fréchet distance with its interval for each number of steps.

`python benchmarks/samplers.py prepare [--build build/mini] [--judged-by outside]`
`python benchmarks/samplers.py draw [--device cuda] [--pictures 1000] [--out benchmarks/results/samplers.json]`

`prepare` puts what is drawn and who judges it into one file of some 10 MB: captions of held-out pictures, the recipe's
judge, and what it sees in all real held-out pictures. `draw` needs that file, `mini`, torch and safetensors, and neither
Pillow nor pydantic, so that it runs where there is a GPU and little else; with the outside judge also its trunk, as
`inkwash fetch-metrics` brings it. Picture k has seed k and caption k in every cell, cfg_scale 5 and the uniform schedule.
Each finished cell is written at once, and the table beside it; the same command goes on from there.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.files import atomic, write_text
from inkwash.kernels.cpu import processor
from inkwash.metrics.frechet import frechet_estimate, group_moments
from inkwash.nn.attention import Context
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import Parts, assemble
from inkwash.weights.hashes import hash_of
from inkwash.weights.models.convert import read_checkpoint
from recipes.mini.classifier import Classifier

STEPS = (5, 10, 20)
TWINS = {"ddim": "euler", "ddpm": "euler_ancestral"}  # equal by default, and so measured once
TWINS |= {twin: name for name, twin in TWINS.items()}
CFG_SCALE = 5.0
MOST = 1000  # captions that are prepared
# of the outside judge's 1,280 features those that real pictures differ most in, so that MOST pictures have a covariance
COMPONENTS = 384

ABOUT = """Fréchet distances over {features} {seen}; small, the 95 % interval of the distance
of infinitely many pictures, which is less. {pictures:,} pictures of held-out captions a cell, beside {real:,} real
held-out ones: the same captions and seeds in every cell, cfg_scale {cfg_scale:g}, the uniform schedule, {dtype}. Bold:
the least of a column, and what its interval does not tell from it. `lcm` and `tcd` are for distilled models;
`dpm_adaptive` takes as many steps as it wants. Calls of the network are those of one picture at 10 steps."""


SEEN = {
    "judge": "features of the recipe's judge",
    "outside": "principal components, of real pictures, of the outside judge's features (EfficientNet-Lite0)",
}
Embed = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) -> features (B, D)


def prepare(build: Path, prepared: Path, device: str, judged_by: Literal["judge", "outside"]) -> None:
    """Write the file that `draw` needs. build: the recipe's folder, of its data and its judges."""
    from recipes.mini import parts
    from recipes.mini.pictures import load_pictures

    judge = parts.load_judge(build, judged_by).to(device)
    heldout = load_pictures(build / "data", "heldout")
    rows = [i for i, record in enumerate(heldout.records) if record["kind"] != "clipart"]
    rows = random.Random(0).sample(rows, len(rows))
    with torch.inference_mode():
        real = torch.cat(
            [judge.embed(heldout.pixels(some).to(device)).cpu() for some in torch.tensor(rows).split(50)]
        )
    about = {
        "judged_by": judged_by,
        "captions": json.dumps([heldout.records[i]["caption"] for i in rows[:MOST]]),
    }
    if isinstance(judge, Classifier):
        tensors = {f"judge.{name}": value.cpu().contiguous() for name, value in judge.state_dict().items()}
        about["halved"] = json.dumps(judge.halved)
    else:
        basis = torch.linalg.eigh(real.T.double().cov())[1][:, -COMPONENTS:].float()
        tensors, real = {"basis": basis.contiguous()}, real @ basis
    with atomic(prepared) as partial:
        save_file(tensors | {"real": real}, partial, about)
    print(f"{prepared}: {len(rows[:MOST]):,} captions, {len(real):,} real pictures")


def opened(prepared: Path, device: str) -> tuple[Embed, str, Tensor, list[str]]:
    """The judge's features of pixels, which judge it is, the real pictures' features (N, D) and the captions of a
    prepared file."""
    with safe_open(prepared, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    real, captions = tensors.pop("real"), json.loads(about["captions"])
    if "basis" in tensors:
        from recipes.mini import outside

        whole, basis = outside.make(1).eval().to(device), tensors["basis"].to(device)
        return lambda pixels: whole.embed(pixels) @ basis, outside.NAME, real, captions
    state = {name.removeprefix("judge."): value for name, value in tensors.items()}
    sizes = (len(state[f"{name}.weight"]) for name in ("names", "styles", "stem"))
    judge = Classifier(*sizes, halved=json.loads(about["halved"]))
    judge.load_state_dict(state)
    return judge.eval().to(device).embed, "judge", real, captions


class Drawing:
    """`mini` and its captions, encoded once."""

    @torch.inference_mode()
    def __init__(self, model: Parts, captions: Sequence[str], device: str, batch: int):
        self.model, self.device, self.batch = model, device, batch
        (text,) = model.text_encoders
        tokens = torch.tensor(text.tokenizer([*captions, ""]), device=device)
        rows = [text.model(some, text.skip, text.final_norm)[0] for some in tokens.split(256)]
        *self.contexts, self.empty = torch.cat(rows)
        self.calls = 0  # of the network, times the pictures in each

    def network(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The U-Net for samplers, which compute in float32."""
        self.calls += len(x)
        latent = x.to(context.dtype).contiguous(memory_format=torch.channels_last)
        return self.model.unet(latent, t, self.remembered(context)).float()

    @lru_cache(maxsize=2)  # noqa: B019  one lives as long as the program
    def remembered(self, context: Tensor) -> Context:
        return Context(context)

    def pictures(self, rows: Sequence[int], sampler: str, steps: int) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of these captions, in 256 levels as pictures are kept."""
        model, stage = self.model, self.model.autoencoder.config
        side = model.default_size // stage.factor
        context = torch.stack([self.contexts[k] for k in rows])
        empty = self.empty.expand(len(rows), -1, -1).contiguous()
        denoise = precondition(self.network, model.prediction, model.schedule)
        D = cfg(denoise, {"context": context}, {"context": empty}, CFG_SCALE)
        noise = NoiseSource(rows, (stage.latent_channels, side, side), self.device)
        sigmas = SCHEDULES["uniform"](steps, model.schedule)
        *_, last = SAMPLERS[sampler](D, noise() * sigmas[0].item(), sigmas, noise=noise)
        pixels = model.autoencoder.decode(last.x.to(context.dtype)).float().clamp(-1, 1)
        return ((pixels + 1) * 127.5).round() / 127.5 - 1

    @torch.inference_mode()
    def features(self, embed: Embed, sampler: str, steps: int) -> tuple[Tensor, float]:
        """The judge's features of a picture of each caption, and the number of network calls for one."""
        self.calls = 0
        rows = range(len(self.contexts))
        batches = [rows[first : first + self.batch] for first in range(0, len(rows), self.batch)]
        seen = torch.cat([embed(self.pictures(some, sampler, steps)).cpu() for some in batches])
        return seen, self.calls / 2 / len(rows)


def page(report: dict[str, Any]) -> str:
    """The report as a page: a row a sampler, a column for each number of steps."""
    settings, cells = report["settings"], report["cells"]
    drawn = [n for n in STEPS if any(str(n) in at for at in cells.values())]
    columns = {n: {name: at.get(str(n)) or at.get("any") for name, at in cells.items()} for n in drawn}
    best = [min((c["fd"], c["high"]) for c in column.values() if c) for column in columns.values()]
    lines = [
        "# Samplers on `mini`",
        "",
        *wrap(ABOUT.format(seen=SEEN[settings["judged_by"]], **settings), 120),
        "",
        f"Model {settings['model']}, judge {settings['judge']}, on {report['machine']}, torch {report['torch']}.",
        "",
        "| sampler | calls | " + " | ".join(f"{n} steps" for n in drawn) + " |",
        "|---" * (len(drawn) + 2) + "|",
    ]
    for name in cells:
        calls = f"{at['calls']:.0f}" if (at := cells[name].get("10") or cells[name].get("any")) else ""
        row = [column[name] for column in columns.values()]
        lines.append(f"| `{name}` | {calls} | " + " | ".join(map(cell, row, best)) + " |")
    return "\n".join(lines) + "\n"


def cell(found: dict[str, float] | None, best: tuple[float, float]) -> str:
    if found is None:
        return ""
    value = f"**{found['fd']:.1f}**" if found["low"] <= best[1] else f"{found['fd']:.1f}"
    return f"{value} <small>{found['low']:.1f} to {found['high']:.1f}</small>"


def draw(options: argparse.Namespace) -> None:
    """Take the measurements that are missing."""
    device, dtype = options.device, getattr(torch, options.dtype)
    embed, judged_by, real, captions = opened(options.prepared, device)
    checkpoint = read_checkpoint(model_path(options.model))
    drawing = Drawing(
        assemble(checkpoint, device, dtype), captions[: options.pictures], device, options.batch
    )
    settings = {
        "model": hash_of(checkpoint.files)[:10],
        "judge": hash_of([options.prepared])[:10],
        "pictures": len(drawing.contexts),
        "judged_by": judged_by,
        "real": len(real),
        "features": real.shape[1],
        "dtype": options.dtype,
        "cfg_scale": CFG_SCALE,
    }
    out: Path = options.out
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if report and report["settings"] != settings:
        raise ValueError(
            f"{out} holds cells of {report['settings']}, and these are {settings}: give another --out"
        )
    report = report or {"benchmark": "samplers", "settings": settings, "cells": {n: {} for n in SAMPLERS}}
    report["machine"] = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{processor().get('model name', 'a processor')}, {torch.get_num_threads()} threads"
    )
    report["torch"] = torch.__version__
    wanted = group_moments(real)
    for steps in options.steps:
        for sampler in options.samplers:
            key = "any" if sampler == "dpm_adaptive" else str(steps)
            cells = report["cells"]
            if key in cells.setdefault(sampler, {}):
                continue
            twin = cells.get(TWINS.get(sampler), {}).get(key)
            cells[sampler][key] = twin or measured(drawing, embed, wanted, sampler, steps)
            write_text(out, json.dumps(report, indent=1) + "\n")
            write_text(out.with_suffix(".md"), page(report))
            print(f"{sampler}, {steps} steps: {cells[sampler][key]}", flush=True)


def measured(
    drawing: Drawing, embed: Embed, wanted: Sequence[Any], sampler: str, steps: int
) -> dict[str, float]:
    """A cell: the distance and its interval, network calls for a picture, and seconds. wanted: moments of real pictures."""
    start = time.perf_counter()
    seen, calls = drawing.features(embed, sampler, steps)
    found = frechet_estimate(group_moments(seen), wanted)
    figures = {"fd": found.value, "low": found.low, "high": found.high, "calls": calls}
    figures["seconds"] = time.perf_counter() - start
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    """Run the command of the options; an error ends in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])  # not cyclopts: see above
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "draw"):
        commands.add_parser(name).add_argument(
            "--prepared", type=Path, default=Path("build/samplers.safetensors")
        )
        commands.choices[name].add_argument("--device", default="cpu")
    commands.choices["prepare"].add_argument("--build", type=Path, default=Path("build/mini"))
    commands.choices["prepare"].add_argument("--judged-by", default="judge", choices=list(SEEN))
    add = commands.choices["draw"].add_argument
    add("--model", default="mini")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--pictures", type=int, default=MOST)
    add("--batch", type=int, default=100)
    add("--steps", type=int, nargs="+", default=STEPS, choices=STEPS)
    add("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    add("--out", type=Path, default=Path("benchmarks/results/samplers.json"))
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            prepare(options.build, options.prepared, options.device, options.judged_by)
        else:
            draw(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
