"""Cost of an evaluation, and growth of its distances with the damage to pictures.

`python benchmarks/evaluate.py speed [--pictures 10000] [--dtype bf16] [--out FILE.json]`
`python benchmarks/evaluate.py laws FOLDER [--pictures 600] [--out docs/pictures/evaluate-laws.svg]`

`speed` writes so many pictures of 128x128 to a temporary folder, and measures seconds, processor seconds and peak memory of
reading and seeing them by EfficientNet-Lite0, and of each figure beside as many features. `laws` takes a folder of pictures,
spoils half of them by noise, by blur and by leaving kinds out, and draws the kernel distance to the other half. Both need
`inkwash fetch-metrics`.
"""

import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cyclopts import App
from PIL import Image
from torch import Tensor

from inkwash.explain.drawing import write_plots
from inkwash.explain.plots import Point, scatter
from inkwash.files import write_text
from inkwash.kernels.cpu import processor
from inkwash.metrics.estimates import TooFewSamplesError
from inkwash.metrics.figures import seen
from inkwash.metrics.frechet import frechet_estimate, group_moments
from inkwash.metrics.inception_score import inception_score
from inkwash.metrics.kernel import kid
from inkwash.metrics.manifold import diversity, manifold_figures
from inkwash.metrics.networks import FeatureNetwork, open_network
from inkwash.metrics.pictures import picture_set

app = App(help=__doc__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measured(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """Run `work`; return its result, and the seconds, processor seconds and MiB of peak memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found, {
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
        "peak_mib": round(peak),
    }


@app.command
def speed(
    *, pictures: int = 10_000, dtype: Literal["fp32", "bf16"] = "bf16", out: Path | None = None
) -> None:
    """Measure every step on so many pictures."""
    random = np.random.default_rng(0)
    network = open_network("efficientnet-lite0", dtype=DTYPES[dtype])
    steps: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(pictures):
            small = Image.fromarray(random.integers(0, 255, (16, 16, 3)).astype(np.uint8))
            small.resize((128, 128), Image.Resampling.BICUBIC).save(
                Path(folder) / f"{k:06}.png", compress_level=1
            )
        found, steps["features"] = measured(lambda: seen(network, picture_set(Path(folder)).batches()))
    made, logits = found.pooled, found.logits  # pyright: ignore[reportAttributeAccessIssue]
    real = made[torch.randperm(len(made))] + 0.1 * torch.randn_like(made)
    for name, work in {
        "frechet_distance": lambda: frechet_estimate(group_moments(made), group_moments(real)),
        "kid": lambda: kid(made, real),
        "inception_score": lambda: inception_score(logits),
        "precision to coverage": lambda: manifold_figures(real, made),
        "diversity": lambda: diversity(made),
    }.items():
        try:
            _, steps[name] = measured(work)
        except TooFewSamplesError as error:  # of a trial with fewer pictures
            print(error)
    total = round(sum(step["seconds"] for step in steps.values()), 1)
    report = {
        "benchmark": "evaluate",
        "pictures": pictures,
        "dtype": dtype,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": total,
        "steps": steps,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if out:
        write_text(out, text + "\n")


def noisy(pixels: Tensor, amount: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + amount * noise).clamp(-1, 1)


def blurred(pixels: Tensor, amount: float) -> Tensor:
    side = max(8, round(pixels.shape[-1] / (1 + amount)))
    small = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    return torch.nn.functional.interpolate(small, pixels.shape[2:], mode="bicubic").clamp(-1, 1)


def look(network: FeatureNetwork, pixels: Tensor) -> Tensor:
    return seen(network, pixels.split(32)).pooled


@app.command
def laws(folder: Path, *, pictures: int = 600, out: Path = Path("docs/pictures/evaluate-laws.svg")) -> None:
    """Draw the kernel distance over noise, blur and the share of pictures that is left out, one plot beside the other."""
    network: FeatureNetwork = open_network("efficientnet-lite0")
    whole = torch.cat(list(picture_set(folder).batches()))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:pictures]
    made, real = whole[order[: pictures // 2]], whole[order[pictures // 2 :]]
    wanted, clean = look(network, real), look(network, made)
    # in the order of what they differ most in, so that whole kinds of pictures go first
    similar = (clean @ torch.linalg.svd(clean - clean.mean(0), full_matrices=False).Vh[0]).argsort()
    spoilt: dict[str, Iterator[tuple[float, Tensor]]] = {
        "noise, standard deviation": (
            (a, look(network, noisy(made, a)) if a else clean) for a in (0, 0.05, 0.1, 0.2, 0.4)
        ),
        "blur, pixels": ((a, look(network, blurred(made, a)) if a else clean) for a in (0, 0.5, 1, 2, 4)),
        "share of pictures left out": (
            (a, clean[similar[: round(len(clean) * (1 - a))]]) for a in (0, 0.2, 0.4, 0.6, 0.8)
        ),
    }
    plots = []
    for name, each in spoilt.items():
        points = []
        for amount, features in each:
            estimate = kid(features, wanted)
            print(f"{name}, {amount:g}: {estimate}", flush=True)
            points.append(Point(amount, estimate.value, "", estimate.low, estimate.high))
        plots.append(scatter(points, name, "KID"))
    write_plots(plots, out, across=3)


if __name__ == "__main__":
    app()
