"""Trains `mini` from nothing: `python -m recipes.mini STEP [--reduced] [--minutes M] [--device cuda]`.

The steps, in order: data (`python -m recipes.mini.data`), classifier features, autoencoder, clip, latents, unet,
classifier judge, evaluate, export; `all` runs what is left of them. Each goes on where it was stopped.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from cyclopts import App

from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.discriminator import PatchDiscriminator
from inkwash.models.perceptual import PerceptualDistance
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import train
from recipes.mini import parts
from recipes.mini.classifier import Classifier
from recipes.mini.pictures import load_pictures
from recipes.mini.recipe import AUTOENCODERS, FULL, REDUCED, STYLES, UNET, Recipe
from recipes.mini.tasks import AutoencoderTask, ClassifierTask, CLIPTask, TextToImageTask

app = App(help=__doc__)
BUILD = Path("build/mini")


def recipe(reduced: bool) -> Recipe:
    return REDUCED if reduced else FULL


@app.command
def classifier(
    which: Literal["features", "judge"],
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Train the classifier whose features measure perceptual distance, or the one that judges."""
    r = recipe(reduced)
    pictures = load_pictures(build / "data", "train")
    names = parts.common_names(build / "data")
    # other seed, other width: the two share nothing
    config = replace(r.classifier, seed={"features": 1, "judge": 2}[which])
    torch.manual_seed(config.seed)
    model = Classifier(len(names), len(STYLES), parts.CLASSIFIER_WIDTHS[which]).to(device)
    model.to(memory_format=torch.channels_last)
    train(ClassifierTask(model, pictures, names, STYLES, r.classifier_batch), config, build / which, minutes)


@app.command
def autoencoder(
    choice: str = next(iter(AUTOENCODERS)),
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Train a first stage; `choice` names its f and its latent channels."""
    r = recipe(reduced)
    if choice not in AUTOENCODERS:
        raise ValueError(f"first stage {choice!r} is not one of {', '.join(AUTOENCODERS)}")
    torch.manual_seed(r.autoencoder.seed)
    model = AutoencoderKL(AUTOENCODERS[choice])
    preserve_variance(model)
    # starts with little noise on the latents, which would drown the picture before there is one
    torch.nn.init.constant_(model.quant_conv.bias[model.config.latent_channels :], -4.0)
    model.to(device, memory_format=torch.channels_last)
    discriminator = PatchDiscriminator(32, 2).to(device, memory_format=torch.channels_last)
    features = parts.load_classifier(build, "features").to(device, memory_format=torch.channels_last)
    task = AutoencoderTask(
        model,
        discriminator,
        PerceptualDistance(features.features),
        load_pictures(build / "data", "train"),
        r.autoencoder_batch,
        disc_start=r.disc_start,
    )
    train(task, r.autoencoder, build / "autoencoder" / choice, minutes)


@app.command
def clip(
    *, build: Path = BUILD, reduced: bool = False, minutes: float = math.inf, device: str = "cpu"
) -> None:
    """Train the text encoder, with a vision tower, on pictures and their captions."""
    r = recipe(reduced)
    pictures = load_pictures(build / "data", "train")
    tokenizer = parts.make_tokenizer(build, pictures)
    torch.manual_seed(r.clip.seed)
    pair = parts.make_clip(tokenizer).to(device)
    train(CLIPTask(pair, tokenizer, pictures, r.clip_batch), r.clip, build / "clip", minutes)


@app.command
def latents(choice: str = next(iter(AUTOENCODERS)), *, build: Path = BUILD, device: str = "cpu") -> None:
    """Encode all pictures and captions once, and measure the scale factor."""
    parts.cache_latents(build, choice, device)


@app.command
def unet(
    *, build: Path = BUILD, reduced: bool = False, minutes: float = math.inf, device: str = "cpu"
) -> None:
    """Train the U-Net on the cached latents."""
    r = recipe(reduced)
    cached = parts.load_latents(build)
    torch.manual_seed(r.unet.seed)
    from inkwash.models.unet import UNet

    model = UNet(UNET).to(device, memory_format=torch.channels_last)
    task = TextToImageTask(model, *cached, schedule=parts.noise_schedule(), batch=r.unet_batch)
    train(task, r.unet, build / "unet", minutes)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        print("stopped and saved; the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
