"""What `mini` can do, measured: the fixed protocol behind its card. N pictures, D feature width."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from inkwash.metrics.fidelity import frechet_distance, psnr
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.pipeline.model import Model
from inkwash.pipeline.text_to_image import Request, text_to_image
from inkwash.weights.files import atomic
from recipes.mini.classifier import Classifier
from recipes.mini.parts import common_names
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import STYLES

NUM_PROMPTS = 500
STEPS, CFG_SCALE, SAMPLER = 20, 5.0, "dpmpp_2m"
SCENES = [
    "a red apple left of a blue book on a green background, noto style",
    "a rocket above a house on a light blue background, twemoji style",
    "a cat right of a tree on a yellow background, fluent style",
    "a guitar below a star on a purple background, emojione style",
    "a soccer ball in front of a car on a white background, fluent flat style",
    "a green heart left of a red heart on a white background, twemoji style",
    "a pizza above a cup on an orange background, noto style",
    "a penguin left of a snowman on a blue background, emojione style",
]
NAMES = [
    "taxi", "cat face", "rocket", "pizza", "red apple", "guitar", "umbrella", "soccer ball",
    "penguin", "rose", "snowman", "locomotive", "alarm clock", "birthday cake", "dolphin", "light bulb",
    "ghost", "crown", "mushroom", "owl", "sailboat", "sunflower", "tiger face", "watermelon",
    "key", "bee", "castle", "cactus",
]  # fmt: skip


@torch.inference_mode()
def reconstruction(model: AutoencoderKL, pictures: Pictures, judge: Classifier, batch: int = 32) -> dict[str, float]:
    """Mean PSNR of held-out pictures through the first stage, and the Fréchet distance to them."""
    ratios, before, after = [], [], []
    for rows in track(torch.arange(len(pictures.records)).split(batch), "reconstruction"):
        pixels = pictures.pixels(rows)
        made = model.decode(model.encode(pixels).mean).clamp(-1, 1)
        ratios.append(psnr(made, pixels))
        before.append(judge.embed(pixels))
        after.append(judge.embed(made))
    everything = torch.cat(ratios)
    drawings = torch.tensor([r["kind"] != "clipart" for r in pictures.records])
    return {
        "psnr": float(everything.mean()),
        "psnr_without_clipart": float(everything[drawings].mean()),
        "frechet_distance": frechet_distance(torch.cat(before), torch.cat(after)),
        "pictures": len(everything),
    }


def prompted(data: Path) -> list[dict]:
    """The fixed prompts: drawn from all pairs of a common name and a style, held-out ones among them."""
    drawings = [d for d in json.loads((data / "drawings.json").read_text()) if d["common"]]
    return random.Random(0).sample(sorted(drawings, key=lambda d: d["index"]), NUM_PROMPTS)


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    arrays = [torch.from_numpy(np.asarray(image)) for image in images]
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def draw(model: Model, prompts: Sequence[str], cfg_scale: float = CFG_SCALE, batch: int = 16) -> Tensor:
    """A picture for each prompt, seed k for prompt k: pixels (N, 3, S, S)."""
    made = []
    for start in track(range(0, len(prompts), batch), "pictures"):
        made += many(model, prompts[start : start + batch], start, cfg_scale)
    return pixels_of(made)


def many(model: Model, prompts: Sequence[str], seed: int, cfg_scale: float) -> list[Image.Image]:
    """One batch of different prompts, through the pipeline that everyone uses."""
    request = Request(
        prompt=tuple(prompts), steps=STEPS, cfg_scale=cfg_scale, sampler=SAMPLER, seed=seed, batch_size=len(prompts)
    )
    return text_to_image(model, request)


@torch.inference_mode()
def recognition(judge: Classifier, pixels: Tensor, names: Tensor, styles: Tensor) -> dict[str, float]:
    """How many pictures the judge takes for what was asked for."""
    logits = [judge(torch.nn.functional.avg_pool2d(chunk, 2)) for chunk in pixels.split(64)]
    by_name, by_style = (torch.cat(parts) for parts in zip(*logits, strict=True))
    top5 = by_name.topk(5, dim=1).indices
    return {
        "name_top1": float((by_name.argmax(1) == names).float().mean()),
        "name_top5": float((top5 == names[:, None]).any(1).float().mean()),
        "style_top1": float((by_style.argmax(1) == styles).float().mean()),
    }
