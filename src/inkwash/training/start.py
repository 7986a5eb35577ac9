"""The model to train from: one that is there, or a design with random weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import inkwash
from inkwash.diffusion.denoiser import EDM
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, PixelConfig
from inkwash.models.unet import UNet, UNetConfig
from inkwash.pipeline.api import Pipeline
from inkwash.training.config import DiffusionConfig
from inkwash.training.config_conditions import PIXELS, DesignedConfig, UnconditionalConfig
from inkwash.training.initialise import preserve_variance
from inkwash.weights.checkpoint import Checkpoint, Component, network_of
from inkwash.weights.detect import DESIGN
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.component import read_component
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.single import write_single
from inkwash.weights.scheduler import scheduler_json

SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}  # diffusers' names


def open_base(c: DiffusionConfig, dtype: str) -> Pipeline:
    """Open the model that training starts from, with the prediction type and the noise schedule of the config.

    Raises ValueError for zero_snr with a model that predicts eps, which says nothing of the picture in pure noise, and for
    what EDM's objective has not.
    """
    prediction = None if c.prediction == "auto" else c.prediction
    model = inkwash.load(
        c.model, c.device, dtype, prediction=prediction, variant=c.variant, offline=c.offline
    )
    for name, off in (("weighting", "none"), ("input_perturbation", 0)) if model.prediction in EDM else ():
        if (value := getattr(c, name)) != off:
            raise ValueError(f"{name} {value} does not go with prediction {model.prediction}; give {off}")
    if not c.zero_snr:
        return model
    if model.prediction in EDM:
        raise ValueError(f"zero_snr does not go with prediction {model.prediction}")
    if model.prediction == "eps":
        raise ValueError(
            "zero_snr needs a model that predicts v or x0; this one predicts eps (see prediction)"
        )
    return replace(model, schedule=model.schedule.zero_terminal_snr())


def write_start(c: DesignedConfig, folder: Path) -> Path:
    """Write the design's model, its weights by the seed, into the folder of a run, unless it is there; its path.

    Raises ModelFileError for a first stage that does not fit the design.
    """
    family = FAMILIES[c.design]
    alone = family.cond_stage is None  # diffusers has a layout for it
    path = folder / ("start" if alone else "start.safetensors")
    if path.exists():
        return path
    torch.manual_seed(c.seed)
    schedule, unet, stage = family.beta_schedule, family.unet, Component(PixelConfig(), {})
    unet = narrowed(unet, c, (c.resolution or (family.default_size, 0))[0])
    if isinstance(c, UnconditionalConfig):
        schedule = SCHEDULES.get(c.noise_schedule, schedule)
    if c.first_stage:
        stage = read_component(Path(c.first_stage))
        wanted, config = family.unet.out_channels, stage.config
        if not isinstance(config, AutoencoderConfig) or config.latent_channels != wanted:
            raise ModelFileError(
                f"{c.first_stage} is not an autoencoder with {wanted} latent channels, as {c.design} takes"
            )
        kind = "codebook" if family.autoencoder.codebook_size else "KL term"  # type: ignore[union-attr]
        if bool(config.codebook_size) != (kind == "codebook"):
            raise ModelFileError(f"{c.first_stage}: {c.design} takes an autoencoder with a {kind}")
    cond: Component[Any] | None = None
    if family.cond_stage:
        cond = Component(family.cond_stage, network_of(family.cond_stage)(family.cond_stage).state_dict())
    checkpoint = Checkpoint(
        unet=Component(unet, preserve_variance(UNet(unet)).state_dict()),
        autoencoder=stage,
        text=(),
        scheduler=scheduler_json(family.prediction, family.betas, beta_schedule=schedule),
        default_size=(c.resolution or (family.default_size, 0))[0],
        files=(),
        cond_stage=cond,
        metadata={} if unet == family.unet else {DESIGN: c.design},
        # of a single file, which has no other place for it
        others={}
        if alone or not c.first_stage
        else {"scale_factor": torch.tensor(stage.config.scale_factor)},
    )
    if not alone:
        write_single(checkpoint, path)
        return path
    # a folder that a crash left half written would be taken for the model
    partial = folder / ".start.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_folder(checkpoint, partial)
    partial.rename(path)
    return path


def narrowed(unet: UNetConfig, c: DesignedConfig, side: int) -> UNetConfig:
    """A design's network of other widths; of pixels it attends at 16x16, as Ho et al.'s, or at its last level."""
    mult = c.channel_mult or unet.channel_mult
    if not (c.width or c.channel_mult):
        return unet
    if c.design in PIXELS:
        depth = tuple(int(side >> level == 16) for level in range(len(mult)))
        depth = depth if any(depth) else (*depth[:-1], 1)
    else:  # further levels are as the last one
        last = unet.transformer_depth[-1]
        depth = (*unet.transformer_depth, *[last] * len(mult))[: len(mult)]
    return replace(unet, channels=c.width or unet.channels, channel_mult=mult, transformer_depth=depth)
