"""An unseen style taught to `mini`: `python -m recipes.openmoji all`, or data, check, train NAME, evaluate NAME, sheet.

OpenMoji (CC-BY-SA-4.0) is in none of `mini`'s data. A run is `lora`, another kind at as many parameters (`dora`, `loha`,
`lokr`), or `hypernetwork`, which learn the style; or `dreambooth` or `textual-inversion`, which learn one drawing.
N pictures, D feature width.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from cyclopts import App
from PIL import Image
from rich.progress import track
from torch import Tensor

import inkwash
from inkwash.explain.tiles import contact_sheet
from inkwash.files import atomic, write_text
from inkwash.metrics.estimates import Estimate, mean_estimate, share_estimate
from inkwash.metrics.networks import FeatureNetwork, open_network
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.images import in_mode, to_pixels
from inkwash.training.run import trained
from inkwash.weights.bytes.tensor_file import read_tensors, write_tensors
from recipes.mini.drawings import (
    SIDE,
    STYLES,
    digest,
    emoji_names,
    icon_svg,
    load_drawings,
    npm_json,
    render_svg,
    run,
)
from recipes.mini.words import noun

PACKAGE, VERSION = "@iconify-json/openmoji", "1.2.29"
SHA256 = "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"
BUILD, MINI = Path("build/openmoji"), Path("build/mini")
NUM_LEARNED, NUM_ASKED = 300, 100  # drawings that are trained on, and names that are asked for
NUM_DRAWN = 50  # of those names
SUBJECT, CLASS, TOKEN = "macaw", "a parrot", "sks"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
STYLE: dict[str, Any] = {
    "data": "style",
    "batch_size": 8,
    "lr": 1e-3,
    "steps": 240,
    "warmup": 20,
    "precision": "bf16",
    "lr_schedule": "cosine",
    "caption_dropout": 0.1,
    "save_every": 20,
    "seed": 1,
}
KIND: dict[str, Any] = STYLE | {"targets": TARGETS, "lr": 4e-4, "steps": 600}
DRAWING: dict[str, Any] = STYLE | {"data": "subject", "batch_size": 4, "caption_dropout": 0.0}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", KIND | {"rank": 16}),
    "dora": ("lora", KIND | {"kind": "dora", "rank": 16}),
    "loha": ("lora", KIND | {"kind": "loha", "rank": 8}),
    "lokr": ("lora", KIND | {"kind": "lokr", "rank": 32, "factor": 2}),
    "hypernetwork": ("hypernetwork", STYLE),
    "dreambooth": (
        "dreambooth",
        DRAWING
        | {"instance_prompt": f"a {TOKEN} parrot", "class_prompt": CLASS, "class_pictures": 32, "rank": 16}
        | {"targets": TARGETS, "lr": 4e-4, "steps": 400, "sample_cfg_scale": 4.0},
    ),
    "textual-inversion": (
        "textual-inversion",
        DRAWING
        | {"token": TOKEN, "num_vectors": 4, "template": "object", "init_word": "parrot", "lr": 5e-3}
        | {"steps": 600},
    ),
}
Name = Literal["lora", "dora", "loha", "lokr", "hypernetwork", "dreambooth", "textual-inversion"]
SUBJECT_PROMPTS = {
    "mini": f"{CLASS}, openmoji style",
    "dreambooth": f"a {TOKEN} parrot",
    "textual-inversion": f"a drawing of {TOKEN}",
}
Figure = float | list[float]
app = App(help=__doc__)


@app.command
def data(*, build: Path = BUILD, mini: Path = MINI) -> None:
    """Fetch OpenMoji and write the pictures to learn, one drawing at four sizes, and the names to ask for."""
    archive = build / f"{PACKAGE.removeprefix('@').replace('/', '-')}-{VERSION}.tgz"
    build.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        run(["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"], build)
    if (found := digest(archive)) != SHA256:
        raise ValueError(f"{archive} has sha256 {found}, not the pinned {SHA256}: delete it and run again")
    icons = npm_json(archive, "icons.json")
    labels = npm_json(mini / "downloads/emojibase-data-17.0.0.tgz", "en/data.json")
    name_of = emoji_names(labels)  # type: ignore[arg-type]
    shared = sorted({d.slug for d in load_drawings(mini / "data") if d.common} & set(icons["icons"]))
    order = np.random.default_rng(0).permutation(len(shared))
    learned = [shared[i] for i in order[NUM_ASKED:][:NUM_LEARNED]]
    asked = [shared[i] for i in order[:NUM_ASKED]]
    for folder, slugs in (("style", learned), ("asked", asked), ("others", [shared[i] for i in order[400:]])):
        (build / folder).mkdir(exist_ok=True)
        for slug in track(slugs, folder):
            on_white(drawn(icons, slug)).save(build / folder / f"{slug}.png")
            write_text(build / folder / f"{slug}.txt", f"{noun(name_of(slug)[0])}, openmoji style")
    (build / "subject").mkdir(exist_ok=True)
    for k, (size, x, y) in enumerate(((128, 0, 0), (104, 4, 20), (112, 16, 4), (96, 16, 16))):
        page = Image.new("RGB", (SIDE, SIDE), "white")
        page.paste(on_white(drawn(icons, SUBJECT)).resize((size, size), Image.Resampling.LANCZOS), (x, y))
        page.save(build / "subject" / f"{k}.png")
        write_text(build / "subject" / f"{k}.txt", f"a {TOKEN} parrot")


def drawn(icons: dict, slug: str) -> np.ndarray:
    """A drawing's pixels, uint8 (S, S, 4). Raises ValueError where it can't be rendered."""
    pixels = render_svg(icon_svg(icons, slug), tight=True)
    if pixels is None:
        raise ValueError(f"{slug} of {PACKAGE} {VERSION} can't be rendered")
    return pixels


def on_white(pixels: np.ndarray) -> Image.Image:
    return in_mode(Image.fromarray(np.ascontiguousarray(pixels)), "RGB")


@app.command
def train(name: Name, *, build: Path = BUILD, minutes: float = 0.0, steps: int = 0) -> None:
    """Train one of the runs, or resume it."""
    method, options = RUNS[name]
    options = options | {"data": str(build / options["data"])} | ({"steps": steps} if steps else {})
    path = trained(method, **options, output=str(build / name), minutes=minutes)
    print(path)


# ---------------------------------------------------------------- the judge


class CentroidClassifier:
    """The nearest of several groups' means, by EfficientNet-Lite0's features in units of what varies within a group.

    rows: features (N, D) by group.
    """

    def __init__(self, rows: dict[str, Tensor]):
        self.groups = list(rows)
        self.means = torch.stack([each.mean(0) for each in rows.values()])
        within = torch.cat([each - each.mean(0) for each in rows.values()])
        covariance = within.T @ within / len(within)
        ridge = 0.1 * covariance.diagonal().mean()
        values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance)))
        self.whitening = vectors * values.rsqrt()

    def __call__(self, features: Tensor) -> list[str]:
        """The group of each row (N, D)."""
        distances = torch.cdist(features @ self.whitening, self.means @ self.whitening)
        return [self.groups[i] for i in distances.argmin(1)]


@cache
def judges_network() -> FeatureNetwork:
    return open_network("efficientnet-lite0")


def features_of(images: Sequence[Image.Image]) -> Tensor:
    """Pooled features (N, D)."""
    network = judges_network()
    parts = [images[i : i + 8] for i in range(0, len(images), 8)]
    return torch.cat(
        [network(torch.cat([to_pixels(one) for one in part])).pooled for part in track(parts, "features")]
    )


def opened(folder: Path) -> dict[str, Image.Image]:
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))}


def known(build: Path, mini: Path) -> dict[str, Tensor]:
    """Features of 200 drawings of each style, of names that are asked for nowhere; kept in a file."""
    place = build / "known.safetensors"
    if place.exists():
        return {style: read_tensors(place).tensors[style] for style in (*STYLES, "openmoji")}
    slugs = list(opened(build / "others"))[:200]
    drawings = {
        (d.style, d.slug): d for d in load_drawings(mini / "data") if d.slug in set(slugs) and d.common
    }
    found = {}
    for style in STYLES:
        images = [on_white(drawings[style, slug].pixels) for slug in slugs if (style, slug) in drawings]
        found[style] = features_of(images)
    others = opened(build / "others")
    found["openmoji"] = features_of([others[slug] for slug in slugs])
    write_tensors(place, found, {})
    return found


@app.command
def check(*, build: Path = BUILD, mini: Path = MINI) -> None:
    """The judge's accuracy on real drawings of the names that are asked for, by style."""
    judge, real = CentroidClassifier(known(build, mini)), opened(build / "asked")
    drawings = {
        (d.style, d.slug): on_white(d.pixels)
        for d in load_drawings(mini / "data")
        if d.slug in real and d.common
    }
    rates = {}
    for style in STYLES:
        images = [drawings[style, slug] for slug in real if (style, slug) in drawings]
        rates[style] = share(judge(features_of(images)), style)
    rates["openmoji"] = share(judge(features_of(list(real.values()))), "openmoji")
    print(json.dumps(rates))
    write_text(build / "judge.json", json.dumps(rates, indent=1))


def share(found: Sequence[str], wanted: str) -> float:
    return sum(one == wanted for one in found) / len(found)


# ---------------------------------------------------------------- the figures


def model_after(name: str, build: Path) -> Pipeline:
    """`mini` with a run's result; "mini" is the model before training."""
    if name == "mini":
        return inkwash.load("mini", dtype="bf16")
    if name == "textual-inversion":
        return inkwash.load("mini", dtype="bf16", embeddings=build / name / f"{TOKEN}.safetensors")
    if name == "hypernetwork":
        return inkwash.load("mini", dtype="bf16", hypernetworks=build / name / f"{name}.pt")
    return inkwash.load("mini", dtype="bf16", loras=build / name / f"{name}.safetensors")


def tag(name: str) -> str:
    """The end of a prompt that draws with a run's result."""
    ends = {"mini": "", "textual-inversion": "", "hypernetwork": "<hypernet:hypernetwork:1>"}
    return ends.get(name, f"<lora:{name}:1>")


def drawn_by(name: str, prompts: Sequence[str], build: Path, steps: int = 12) -> list[Image.Image]:
    """A picture of each prompt, the k-th of seed k."""
    model, draw = model_after(name, build), {"steps": steps, "cfg_scale": 5.0, "sampler": "dpmpp_2m"}
    asked = track(list(enumerate(prompts)), f"drawing with {name}")
    return [model.text_to_image(prompt + tag(name), seed=k, **draw)[0] for k, prompt in asked]


@app.command
def evaluate(
    name: Name | Literal["mini"], *, build: Path = BUILD, mini: Path = MINI, num: int = NUM_DRAWN
) -> None:
    """Draw with a run's result, and measure it; "mini" is the model before training.

    A style, on unseen names: the share of pictures that the judge takes for OpenMoji, the share whose nearest
    OpenMoji drawing of these names, style aside, is that of their own, and its median rank. A drawing: the share whose
    nearest of 1,200 drawings is the subject, its median rank, and the mean similarity. Shares and means with their 95 %
    intervals.
    """
    figures: dict[str, Figure] = {}
    if name not in ("dreambooth", "textual-inversion"):
        asked = {path.stem: path.read_text() for path in sorted((build / "asked").glob("*.txt"))}
        slugs = list(asked)[:num]
        images = drawn_by(name, [asked[slug] for slug in slugs], build)
        judge, features = CentroidClassifier(known(build, mini)), features_of(images)
        found = judge(features)
        figures["style recognised"] = figure(
            share_estimate(torch.tensor([one == "openmoji" for one in found]))
        )
        real = opened(build / "asked")
        wanted = features_of([real[slug] for slug in slugs])
        # what all of a set share is its style, and is taken off
        likeness = similarity(features - features.mean(0), wanted - wanted.mean(0))
        figures |= ranked(likeness, torch.arange(len(slugs)), "name")
        save(images, build / name / "pictures")
    if name in SUBJECT_PROMPTS:
        images = drawn_by(name, [SUBJECT_PROMPTS[name]] * 24, build)
        likeness = likeness_to_subject(images, build, mini)
        figures |= ranked(likeness, torch.zeros(len(images), dtype=torch.long), "subject")
        figures["subject similarity"] = figure(mean_estimate(likeness[:, 0]))
        save(images, build / name / "subject")
    record(build, name, figures)


def record(build: Path, name: str, figures: Mapping[str, object]) -> None:
    """Print a run's figures, and keep them beside those of other runs."""
    print(name, json.dumps(figures))
    place = build / "figures.json"
    found = json.loads(place.read_text()) if place.exists() else {}
    write_text(place, json.dumps(found | {name: figures}, indent=1))


def figure(estimate: Estimate) -> list[float]:
    """Value, low and high end of its 95 % interval."""
    return [round(each, 3) for each in (estimate.value, estimate.low, estimate.high)]


def similarity(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of each row (N, D) with each of the others (M, D), (N, M)."""
    return F.normalize(rows, dim=1) @ F.normalize(others, dim=1).T


def ranked(likeness: Tensor, wanted: Tensor, what: str) -> dict[str, Figure]:
    """The share of rows (N, M) whose greatest value is the wanted one, and the median rank of that, 1 being the first."""
    own = likeness.gather(1, wanted[:, None])
    ranks = 1 + (likeness > own).sum(1)
    return {
        f"{what} recognised": figure(share_estimate(ranks == 1)),
        f"{what}'s median rank": ranks.median().item(),
    }


def likeness_to_subject(images: Sequence[Image.Image], build: Path, mini: Path) -> Tensor:
    """Similarity of each picture (N) to the subject, which is first, and to the drawings of `known`."""
    pool = torch.cat(
        [features_of([Image.open(build / "subject/0.png").convert("RGB")]), *known(build, mini).values()]
    )
    return similarity(features_of(images) - pool.mean(0), pool - pool.mean(0))


def save(images: Sequence[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        image.save(folder / f"{k:03d}.png")


@app.command
def sheet(*, build: Path = BUILD, out: Path = Path("docs/pictures"), columns: int = 10) -> None:
    """The first pictures of each run that was measured, a row each, below real drawings, or beside the subject."""
    names = ("mini", *RUNS)
    real, subject = opened(build / "asked"), Image.open(build / "subject/0.png").convert("RGB")
    rows = [list(opened(build / name / "pictures").values())[:columns] for name in names]
    write_sheet(out / "openmoji-style.png", [list(real.values())[:columns], *rows], columns)
    rows = [list(opened(build / name / "subject").values())[: columns - 1] for name in names]
    write_sheet(out / "openmoji-subject.png", [[subject, *row] for row in rows if row], columns)


def write_sheet(path: Path, rows: Sequence[Sequence[Image.Image]], columns: int) -> None:
    made = contact_sheet([image for row in rows for image in row], columns)
    with atomic(path) as partial:
        made.quantize(64).save(partial, "PNG", optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


@app.command(name="all")
def everything(*, build: Path = BUILD, mini: Path = MINI) -> None:
    """Every step that is left, in order."""
    if not (build / "subject/3.txt").exists():
        data(build=build, mini=mini)
    check(build=build, mini=mini)
    evaluate("mini", build=build, mini=mini)
    for name in RUNS:
        train(name, build=build)  # type: ignore[arg-type]
        evaluate(name, build=build, mini=mini)  # type: ignore[arg-type]
    sheet(build=build)


if __name__ == "__main__":
    app()
