"""The mini world as webdataset shards: `python -m recipes.mini.data --out build/mini/data`.

A shard is a tar of {key}.png (RGB), {key}.json and, for scenes, {key}.layers.png (uint8, 0 background, k the
object of layer k). The same seed gives the same bytes.
"""

import io
import json
import shutil
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from cyclopts import Parameter
from PIL import Image
from rich.progress import track

from inkwash.files import atomic
from recipes.mini.drawings import (
    CLIPART,
    LICENSES,
    NPM,
    Drawing,
    build_drawings,
    digest,
    fetch,
    load_drawings,
)
from recipes.mini.world import Picture, World, recoloured, scene, single

VERSION = 2  # of the pictures: raise it with any change of what a seed gives
PER_SHARD = 2000
HELDOUT_SCENES = 1500
STREAMS = {"plan": 0, "single": 2, "recoloured": 3, "scene": 4, "heldout scene": 5}
Job = tuple[str, int]  # what to make ("single", "recoloured", "scene", "heldout scene") and its index


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """The generator of one picture, so that no picture depends on how many others there are."""
    return np.random.default_rng([seed, STREAMS[name], *index])


# ---------------------------------------------------------------- one sample


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def record(picture: Picture, drawing: Drawing | None) -> dict:
    """The shard's record of a picture. drawing: the one that it shows alone, if it does."""
    about = {"caption": picture.caption, "captions": picture.captions, "kind": picture.kind}
    about["style"] = picture.objects[0].style
    if drawing is not None:
        about |= {
            "slug": drawing.slug,
            "name": drawing.name,
            "common": drawing.common,
            "keywords": drawing.keywords,
        }
    about |= {"width": picture.image.shape[1], "height": picture.image.shape[0]}
    return about | {"objects": [asdict(o) for o in picture.objects], "relations": picture.relations}


def make(job: Job, drawings: list[Drawing], world: World, seed: int) -> tuple[Picture, Drawing | None] | None:
    kind, i = job
    if kind == "single":
        return single(drawings[i], stream(seed, kind, i)), drawings[i]
    if kind == "recoloured":
        # in an order of its own until a drawing has a hue to turn, so that no picture waits for another
        rng = stream(seed, kind, i)
        for j in rng.permutation(len(drawings)):
            drawing = drawings[j]
            if (
                drawing.split == "train"
                and drawing.style != CLIPART
                and (made := recoloured(drawing, rng)) is not None
            ):
                return made, drawing
        return None
    return scene(world, stream(seed, kind, i)), None


# ---------------------------------------------------------------- shards


@cache
def opened(folder: str) -> tuple[list[Drawing], World]:
    drawings = load_drawings(Path(folder))
    return drawings, World([d for d in drawings if d.split == "train"])


def write_shard(task: tuple[str, str, int, list[Job], int]) -> Counter[str]:
    """Writes one tar unless it is there, and counts its pictures by kind."""
    folder, split, number, jobs, seed = task
    path = Path(folder) / f"{split}-{number:05d}.tar"
    counts: Counter[str] = Counter()
    if path.exists():
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".json") and (file := tar.extractfile(info)):
                    counts[json.load(file)["kind"]] += 1
        return counts
    drawings, world = opened(folder)
    with atomic(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, job in enumerate(jobs):
            if (made := make(job, drawings, world, seed)) is None:
                continue
            picture, drawing = made
            key = f"{split}-{number:05d}-{i:05d}"
            add(tar, f"{key}.png", png(picture.image))
            add(tar, f"{key}.json", json.dumps(record(picture, drawing), ensure_ascii=False).encode())
            if picture.kind == "scene":
                add(tar, f"{key}.layers.png", png(picture.layers))
            counts[picture.kind] += 1
    return counts


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its time and owner are 0, so that the bytes depend on the pictures only
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def plan(
    drawings: list[Drawing], seed: int, scenes: int, recoloured: int, heldout_scenes: int
) -> dict[str, list[Job]]:
    """The pictures of each split, shuffled."""
    jobs: dict[str, list[Job]] = {
        split: [("single", d.index) for d in drawings if d.split == split] for split in ("train", "heldout")
    }
    jobs["train"] += [("recoloured", i) for i in range(recoloured)] + [("scene", i) for i in range(scenes)]
    jobs["heldout"] += [("heldout scene", i) for i in range(heldout_scenes)]
    rng = stream(seed, "plan")
    return {split: [listed[i] for i in rng.permutation(len(listed))] for split, listed in jobs.items()}


def write_shards(out: Path, jobs: dict[str, list[Job]], seed: int, workers: int) -> dict[str, dict[str, int]]:
    """Writes the shards that are missing; returns counts by split and kind."""
    tasks = [
        (str(out), split, number, listed[start : start + PER_SHARD], seed)
        for split, listed in jobs.items()
        for number, start in enumerate(range(0, len(listed), PER_SHARD))
    ]
    counts: dict[str, Counter[str]] = {split: Counter() for split in jobs}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = track(pool.map(write_shard, tasks), "writing shards", total=len(tasks))
        for task, found in zip(tasks, results, strict=True):
            counts[task[1]] += found
    return {split: dict(sorted(found.items())) for split, found in counts.items()}


# ---------------------------------------------------------------- the command


def build(
    out: Annotated[Path, Parameter(help="folder of the shards")] = Path("build/mini/data"),
    downloads: Annotated[
        Path | None, Parameter(help="folder of the archives; beside `out` if not given")
    ] = None,
    seed: Annotated[int, Parameter(help="everything is drawn from it")] = 0,
    scenes: Annotated[int, Parameter(help="number of training scenes")] = 12_000,
    recoloured: Annotated[int, Parameter(help="number of recoloured drawings")] = 4_000,
    workers: Annotated[int, Parameter(help="number of processes")] = 2,
    quick: Annotated[
        bool, Parameter(help="a small world for a trial: 40 names, 200 scenes, 60 recoloured")
    ] = False,
) -> None:
    """Fetches, renders and composes the mini world; keeps what is there already from the same settings."""
    for name, value in (
        ("seed", seed),
        ("scenes", scenes),
        ("recoloured", recoloured),
        ("workers", workers - 1),
    ):
        if value < 0:
            raise ValueError(
                f"{name} is {value + (name == 'workers')}; it must be at least {int(name == 'workers')}"
            )
    if quick:
        scenes, recoloured = min(scenes, 200), min(recoloured, 60)
    archives = fetch(downloads or out.parent / "downloads")
    settings = {
        "version": VERSION,
        "seed": seed,
        "scenes": scenes,
        "recoloured": recoloured,
        "quick": quick,
        "archives": {path.name: digest(path) for path in archives.values()},
    }
    out.mkdir(parents=True, exist_ok=True)
    started, manifest = out / "settings.json", out / "manifest.json"
    if not started.exists() or json.loads(started.read_text()) != settings:
        for old in (*out.glob("train*"), *out.glob("heldout*"), *out.glob("drawings.*"), manifest):
            old.unlink(missing_ok=True)  # shards of other settings, and what was cached from them
        with atomic(started) as partial:
            partial.write_text(json.dumps(settings, indent=1))
    if manifest.exists():
        print(f"{out} is complete")
        return
    counts = out / "drawings.counts.json"
    if not counts.exists():
        found = build_drawings(archives, out, seed, workers, quick)
        with atomic(counts) as partial:
            partial.write_text(json.dumps(found, indent=1))
    jobs = plan(load_drawings(out), seed, scenes, recoloured, 50 if quick else HELDOUT_SCENES)
    pictures = write_shards(out, jobs, seed, workers)
    shutil.copyfile(Path(__file__).with_name("ATTRIBUTION.md"), out / "ATTRIBUTION.md")
    packages = {style: f"{name}@{version}" for style, (name, version, _) in NPM.items()} | {
        CLIPART: "openclipart-svg"
    }
    about = {"settings": settings, "licenses": LICENSES, "packages": packages}
    about |= {"drawings": json.loads(counts.read_text()), "pictures": pictures}
    with atomic(manifest) as partial:
        partial.write_text(json.dumps(about, indent=1, ensure_ascii=False))
    print(json.dumps(pictures))


if __name__ == "__main__":
    cyclopts.run(build)
