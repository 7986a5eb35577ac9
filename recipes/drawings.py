"""First stages, a class-conditional model and a DDPM of `mini`'s drawings, from random weights.

`python -m recipes.drawings all`, or data, train NAME, evaluate NAME, sheets. Each resumes where it was stopped.
N pictures, D feature width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from cyclopts import App
from PIL import Image
from rich.progress import track
from torch import Tensor

import inkwash
from inkwash.metrics.estimates import share_estimate
from inkwash.metrics.fidelity import psnr
from inkwash.metrics.frechet import frechet_estimate, group_moments
from inkwash.pipeline.images import in_mode, to_images, to_pixels
from inkwash.training.run import trained
from inkwash.weights.checkpoint import build as built
from inkwash.weights.models.component import read_component
from recipes.mini.drawings import NPM, load_drawings, normal, npm_json
from recipes.openmoji import CentroidClassifier, features_of, figure, opened, record, save, write_sheet

BUILD, MINI = Path("build/drawings"), Path("build/mini")
SIDE, SMALL = 64, 32  # of what first stages and classes learn from, and of what pixels do
KINDS = {  # a class and how the subgroups of its emoji begin, in emojibase's words
    "building": ("place-building", "place-religious"),
    "clock": ("time",),
    "clothing": ("clothing",),
    "face": tuple(
        f"face-{x}"
        for x in "affection concerned glasses hat negative neutral sleepy smiling tongue unwell".split()
    ),
    "fruit": ("food-fruit", "food-vegetable"),
    "hand": ("hand",),
    "heart": ("heart",),
    "mammal": ("animal-mammal",),
    "person": ("person-role", "person-gesture"),
    "sign": ("alphanum", "av-symbol", "zodiac"),
    "vehicle": ("transport-ground",),
    "bird": ("animal-bird",),
}
COMMON: dict[str, Any] = {
    "buckets": False,
    "flip": True,
    "precision": "bf16",
    "lr_schedule": "cosine",
    "save_every": 100,
    "seed": 1,
}
STAGE: dict[str, Any] = COMMON | {
    "data": "train",
    "resolution": SIDE,
    "width": 32,
    "res_blocks": 1,
    "batch_size": 4,
    "lr": 1e-3,
    "warmup": 50,
    "steps": 2000,
    "perceptual": "st-alex",
    "perceptual_weight": 0.2,
    "disc_weight": 0,
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl-f4": ("autoencoder", STAGE | {"design": "kl-f4"}),
    "kl-f8": ("autoencoder", STAGE | {"design": "kl-f8"}),
    "vq-f4": ("autoencoder", STAGE | {"design": "vq-f4", "codebook_size": 1024}),
    "vq-f8": ("autoencoder", STAGE | {"design": "vq-f8", "codebook_size": 1024}),
    "class": (
        "class",
        COMMON
        | {"design": "ldm-cin256", "width": 96, "channel_mult": (1, 2, 2), "first_stage": "vq-f4/autoencoder"}
        | {
            "data": "train-kinds",
            "resolution": SIDE,
            "batch_size": 32,
            "lr": 6e-4,
            "warmup": 100,
            "ema": 0.995,
        }
        | {"steps": 1500, "weight_decay": 0.0},
    ),
    "pixels": (
        "unconditional",
        COMMON
        | {
            "design": "ddpm-cifar10",
            "width": 32,
            "channel_mult": (1, 2, 4),
            "data": "train-small",
            "resolution": SMALL,
        }
        | {"batch_size": 32, "lr": 6e-4, "warmup": 100, "ema": 0.995, "steps": 6000, "weight_decay": 0.0},
    ),
}
STAGES = [name for name, (method, _) in RUNS.items() if method == "autoencoder"]
BATCH = 50  # pictures that are drawn at once
NUM = 1500  # pictures of a Fréchet distance; more than the 1,280 features
COLUMNS = 12  # of a sheet
STEPS = (10, 25, 50, 100)  # of a sampler
T = TypeVar("T")
Name = Literal["kl-f4", "kl-f8", "vq-f4", "vq-f8", "class", "pixels"]
app = App(help=__doc__)


def kinds_of(mini: Path) -> dict[str, str]:
    """The class of each emoji's slug that has one."""
    package, version, _ = NPM["names"]
    archive = mini / f"downloads/{package}-{version}.tgz"
    names = npm_json(archive, "meta/groups.json")["subgroups"]
    found = {}
    for entry in npm_json(archive, "en/data.json"):
        group = names.get(str(entry.get("subgroup")), "")  # type: ignore[attr-defined]
        found |= {normal(entry["label"]): kind for kind, starts in KINDS.items() if group.startswith(starts)}  # type: ignore[index]
    return found


@app.command
def data(*, build: Path = BUILD, mini: Path = MINI) -> None:
    """Write the drawings on white as pictures: all of them, those of a class in its folder, and these at 32x32."""
    kinds = kinds_of(mini)
    for drawing in track(load_drawings(mini / "data"), "drawings"):
        image = in_mode(Image.fromarray(drawing.pixels), "RGB")
        name = f"{drawing.style}-{drawing.slug}".replace(" ", "-").replace("/", "-") + ".png"
        kind = kinds.get(drawing.slug)
        places = [(drawing.split, SIDE)]
        if kind:
            places += [(f"{drawing.split}-kinds/{kind}", SIDE), (f"{drawing.split}-small", SMALL)]
        for folder, side in places:
            (build / folder).mkdir(parents=True, exist_ok=True)
            image.resize((side, side), Image.Resampling.LANCZOS).save(build / folder / name)


@app.command
def train(name: Name, *, build: Path = BUILD, minutes: float = 0.0, steps: int = 0) -> None:
    """Train one of the runs, or resume it."""
    method, options = RUNS[name]
    places = {key: str(build / options[key]) for key in ("data", "first_stage") if key in options}
    options = options | places | ({"steps": steps} if steps else {})
    print(trained(method, **options, output=str(build / name), minutes=minutes))


# ---------------------------------------------------------------- the figures


def spread(items: Sequence[T], num: int) -> list[T]:
    """`num` of the items, evenly spread over them; all where they are fewer."""
    num = min(num, len(items))
    return [items[k * len(items) // num] for k in range(num)]


def some_of(folder: Path, num: int) -> list[Image.Image]:
    """`num` pictures of a folder and the folders in it, spread over their sorted names."""
    return [Image.open(path).convert("RGB") for path in spread(sorted(folder.rglob("*.png")), num)]


def frechet(features: Tensor, others: Tensor) -> list[float]:
    """Fréchet distance of two sets of features (N, D), with its interval."""
    return figure(frechet_estimate(group_moments(features), group_moments(others)))


@torch.inference_mode()
def stage_figures(name: str, build: Path, num: int) -> dict[str, Any]:
    """PSNR of held-out drawings, and the Fréchet distance of `num` drawings from themselves after the first stage."""
    stage = built(read_component(build / name / "autoencoder"))

    def decoded(images: Sequence[Image.Image]) -> list[Tensor]:
        pixels = [to_pixels(image) for image in images]
        return [stage.decode(stage.encode(one).mean).clamp(-1, 1) for one in track(pixels, name)]

    heldout, some = list(opened(build / "heldout").values()), some_of(build / "train", num)
    made = decoded(heldout)
    ratios = torch.cat([psnr(one, to_pixels(image)) for one, image in zip(made, heldout, strict=True)])
    back = [to_images(one)[0] for one in decoded(some)]
    save([to_images(one)[0] for one in spread(made, COLUMNS)], build / name / "pictures")
    distance = frechet(features_of(back), features_of(some))
    return {"psnr": round(ratios.mean().item(), 2), "frechet distance": distance}


def class_figures(build: Path, num: int) -> dict[str, Any]:
    """The share of drawn pictures that a classifier takes for their class, and of held-out drawings; a Fréchet distance."""
    kinds = (build / "class/classes.txt").read_text("utf-8").split()
    rows = {kind: features_of(list(opened(build / "train-kinds" / kind).values())) for kind in kinds}
    judge, model = CentroidClassifier(rows), inkwash.load(build / "class/class.safetensors", dtype="bf16")
    figures: dict[str, Any] = {}
    real = [(kind, image) for kind in kinds for image in opened(build / "heldout-kinds" / kind).values()]
    shares = {
        "held-out drawings recognised": ([kind for kind, _ in real], features_of([one for _, one in real]))
    }
    images, wanted = [], []
    for label, kind in enumerate(track(kinds, "drawing classes")):
        count = 1 + num * len(rows[kind]) // sum(map(len, rows.values()))  # in the drawings' proportions
        for seed in range(0, count, BATCH):
            options = {"batch_size": min(BATCH, count - seed), "seed": seed, "steps": 25, "cfg_scale": 3.0}
            images += model.text_to_image("", class_label=label, width=SIDE, height=SIDE, **options)
        wanted += [kind] * count
    shares["recognised"] = (wanted, drawn := features_of(images))
    for name, (kind_of_each, features) in shares.items():
        right = [one == kind for one, kind in zip(judge(features), kind_of_each, strict=True)]
        figures[name] = figure(share_estimate(torch.tensor(right)))
    whole = torch.cat(list(rows.values()))
    figures["frechet distance"] = frechet(drawn, whole)
    save([images[wanted.index(kind) + k] for k in range(8) for kind in kinds], build / "class/pictures")
    return figures


def pixel_figures(build: Path, num: int) -> dict[str, Any]:
    """Fréchet distances of the DDPM's pictures from the data by steps, and of one half of the data from the other."""
    model = inkwash.load(build / "pixels/model", dtype="bf16")
    data = features_of(some_of(build / "train-small", 10**6))
    figures: dict[str, Any] = {"halves of the data": frechet(data[::2], data[1::2])}
    for steps in STEPS:
        options = {"sampler": "euler_a", "steps": steps, "batch_size": BATCH}
        seeds = track(range(0, num, BATCH), f"{steps} steps")
        images = [image for seed in seeds for image in model.text_to_image("", seed=seed, **options)]
        figures[f"{steps} steps"] = frechet(features_of(images), data)
        save(images[:COLUMNS], build / f"pixels/{steps}")
        print(steps, figures[f"{steps} steps"], flush=True)
    return figures


@app.command
def evaluate(name: Name, *, build: Path = BUILD, num: int = NUM) -> None:
    """Measure a run's result over `num` pictures; figures have 95 % intervals."""
    if name == "class":
        figures = class_figures(build, num)
    else:
        figures = pixel_figures(build, num) if name == "pixels" else stage_figures(name, build, num)
    record(build, name, figures)


@app.command
def sheets(*, build: Path = BUILD, out: Path = Path("docs/pictures")) -> None:
    """First stages beside the drawings, classes in columns, and the DDPM's pictures by steps."""
    heldout = list(opened(build / "heldout").values())
    rows = [
        spread(heldout, COLUMNS),
        *(list(opened(build / name / "pictures").values()) for name in STAGES),
    ]
    write_sheet(out / "drawings-stages.png", rows, COLUMNS)
    write_sheet(out / "drawings-classes.png", [list(opened(build / "class/pictures").values())], COLUMNS)
    rows = [list(opened(build / f"pixels/{steps}").values()) for steps in STEPS]
    real = some_of(build / "train-small", COLUMNS)
    write_sheet(
        out / "drawings-pixels.png", [[enlarged(one) for one in row] for row in (real, *rows)], COLUMNS
    )


def enlarged(image: Image.Image) -> Image.Image:
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


@app.command(name="all")
def everything(
    *, build: Path = BUILD, mini: Path = MINI, num: int = NUM, out: Path = Path("docs/pictures")
) -> None:
    """Every step that is left, in order."""
    if not (build / "train-small").is_dir():
        data(build=build, mini=mini)
    for name in RUNS:
        train(name, build=build)  # type: ignore[arg-type]
        evaluate(name, build=build, num=num)  # type: ignore[arg-type]
    sheets(build=build, out=out)


if __name__ == "__main__":
    app()
