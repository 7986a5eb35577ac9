"""Runs that train a first stage, or a tiny one beside it. B batch, H W picture size."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inkwash
from inkwash.explain.tiles import labelled_sheet
from inkwash.files import ModelFileError, atomic, write_text
from inkwash.metrics.networks import lpips, st_lpips
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderVQ
from inkwash.models.discriminator import PatchDiscriminator
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.images import to_images
from inkwash.training.config_networks import (
    FirstStageConfig,
    ReconstructionConfig,
    TinyAutoencoderTrainConfig,
)
from inkwash.training.distributed import join_world
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import generator_for
from inkwash.training.methods import Method
from inkwash.training.network_run import NetworkRun, pictures_of
from inkwash.training.pixels import PixelSource
from inkwash.training.settings import check_folder, chosen_precision, loop_config, num_steps
from inkwash.training.tasks.reconstruction import (
    ReconstructionLoss,
    ReconstructionTask,
    by_codes,
    by_kl,
    by_teacher,
)
from inkwash.training.trainable import Weights
from inkwash.weights.bytes.paths import model_path, nearest
from inkwash.weights.checkpoint import DTYPES, Component, build, network_of
from inkwash.weights.first_stages import FIRST_STAGES
from inkwash.weights.models.component import component_kind, read_component, write_component
from inkwash.weights.models.convert import in_dtype, read_checkpoint

MEASURED = 256  # pictures whose latents give the scale factor, and whose likeness is measured


def perceptual_of(c: ReconstructionConfig, device: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The distance of features that a config names."""
    if c.perceptual == "none" or not c.perceptual_weight:
        return None
    if c.perceptual == "lpips":
        return lpips(*map(Path, c.perceptual_files)).to(device)  # type: ignore[arg-type]
    return st_lpips(trunk=c.perceptual.removeprefix("st-")).to(device)


def loss_of(c: ReconstructionConfig) -> ReconstructionLoss:
    return ReconstructionLoss(
        c.reconstruction, perceptual_of(c, c.device), c.perceptual_weight, c.disc_start, c.disc_weight
    )


def judge_of(c: ReconstructionConfig) -> PatchDiscriminator | None:
    """The discriminator; it is there from the first step on, since a run that ends before it may be made longer."""
    if not c.disc_weight:
        return None
    torch.manual_seed(c.seed + 1)
    return PatchDiscriminator(c.disc_width, c.disc_layers).to(c.device)


def new_first_stage(c: FirstStageConfig) -> Component[AutoencoderConfig]:
    """The autoencoder to begin with. Raises ValueError for an unknown design, ModelFileError of files."""
    if c.model:
        path = model_path(c.model)
        part = read_component(path) if component_kind(path) else read_checkpoint(path).autoencoder
        if not isinstance(part.config, AutoencoderConfig):
            raise ModelFileError(f"{path} has no autoencoder with a KL term or a codebook")
        return part
    if c.design not in FIRST_STAGES:
        raise ValueError(f"design {c.design!r} is unknown{nearest(c.design, FIRST_STAGES)}")
    config = FIRST_STAGES[c.design]
    given = {
        "channels": c.width,
        "num_res_blocks": c.res_blocks,
        "latent_channels": c.latent_channels,
        "codebook_size": c.codebook_size,
        "norm_groups": c.width and math.gcd(32, c.width),
    }
    config = replace(config, scale_factor=1.0, **{name: value for name, value in given.items() if value})
    torch.manual_seed(c.seed)
    return Component(config, preserve_variance(network_of(config)(config)).state_dict())


def prepare_first_stage(method: Method, c: FirstStageConfig) -> NetworkRun:
    """A run of an autoencoder, with a KL term or a codebook. Raises ValueError, or ModelFileError of files."""
    check_folder(Path(c.output))
    world, part = join_world(c.device), new_first_stage(c)
    model: Any = channels_last(build(part, c.device)).train().requires_grad_(True)
    whole = c.train == "all"
    if not whole:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        if isinstance(model, AutoencoderVQ):
            model.quantize.requires_grad_(False)
    dataset = pictures_of(c, part.config.factor, 256, world)
    steps = num_steps(c, dataset.batches_per_epoch)
    if isinstance(model, AutoencoderVQ):
        reconstruct = by_codes(model, c.codebook_weight, whole)
    else:
        reconstruct = by_kl(model, c.kl_weight, whole)
    source = PixelSource(dataset, c.on_broken == "stop")
    if isinstance(model, AutoencoderVQ) and not c.model:
        start_codes(model, source, c.seed)
    precision = chosen_precision(c, torch.device(c.device), sum(p.numel() for p in model.parameters()))
    task = ReconstructionTask(
        model, reconstruct, model.decoder.conv_out.weight, source, loss_of(c), judge_of(c), c.accumulation,
        precision, world,
    )  # fmt: skip

    def write(folder: Path, weights: Weights) -> Path:
        measured = (
            whole and not part.config.codebook_size
        )  # codes are not scaled, and kept latents keep their scale
        config = replace(part.config, scale_factor=scale_factor(model, source)) if measured else part.config
        return write_result(
            folder, Component(config, weights), c, figures(model, source, folder, config.scale_factor)
        )

    loop = loop_config(c, steps, precision)
    return NetworkRun(method, c, c.model or c.design, dataset, model, task, loop, precision, world, write)


def prepare_tiny(method: Method, c: TinyAutoencoderTrainConfig) -> NetworkRun:
    """A run of a tiny autoencoder beside a model's own. Raises ValueError, or ModelFileError of files."""
    check_folder(Path(c.output))
    world = join_world(c.device)
    teacher = inkwash.load(c.model, c.device, variant=c.variant, offline=c.offline).autoencoder
    if c.start:
        part = read_component(Path(c.start))
    else:
        torch.manual_seed(c.seed)
        config = TinyAutoencoderConfig(channels=c.width, latent_channels=teacher.config.latent_channels)
        part = Component(config, TinyAutoencoder(config).state_dict())
    own = part.config
    if not isinstance(own, TinyAutoencoderConfig) or (own.factor, own.latent_channels) != (
        teacher.config.factor,
        teacher.config.latent_channels,
    ):
        t = teacher.config
        raise ValueError(
            f"a tiny autoencoder has factor {TinyAutoencoderConfig().factor}; {c.model}'s has factor {t.factor} and "
            f"{t.latent_channels} latent channels, which {c.start or 'a new one'} does not fit"
        )
    model: Any = channels_last(build(part, c.device)).train().requires_grad_(True)
    dataset = pictures_of(c, own.factor, 256, world)
    steps = num_steps(c, dataset.batches_per_epoch)
    source = PixelSource(dataset, c.on_broken == "stop")
    precision = chosen_precision(c, torch.device(c.device), sum(p.numel() for p in model.parameters()))
    task = ReconstructionTask(
        model, by_teacher(model, teacher, c.latent_weight), model.decoder[-1].weight, source, loss_of(c),
        judge_of(c), c.accumulation, precision, world,
    )  # fmt: skip

    def write(folder: Path, weights: Weights) -> Path:
        return write_result(folder, Component(own, weights), c, figures(model, source, folder))

    loop = loop_config(c, steps, precision)
    return NetworkRun(method, c, c.model, dataset, model, task, loop, precision, world, write)


def shown(source: PixelSource, num: int) -> Iterator[Tensor]:
    """The first pictures of a dataset, a fixed selection, in batches of one size each."""
    count = k = 0
    while count < min(num, len(source.dataset.examples)):
        pixels = source.batch(k, generator_for(0, k), slice(None)).pixels
        count, k = count + len(pixels), k + 1
        yield pixels


@torch.no_grad()
def start_codes(model: AutoencoderVQ, source: PixelSource, seed: int) -> None:
    """Make latents of the first pictures the codes of a new codebook.

    Codes that begin near 0, far from the latents, leave nearly all latents to a few of them (Łańcucki et al. 2020).
    """
    codes = model.quantize.embedding.weight
    latents = torch.empty(0, codes.shape[1])
    for pixels in shown(source, MEASURED):
        found = model.encoded(pixels.to(codes.device)).permute(0, 2, 3, 1).flatten(0, 2)
        latents = torch.cat([latents, found.cpu()])
        if len(latents) >= 4 * len(codes):
            break
    order = torch.randperm(len(latents), generator=generator_for(seed, 0))
    codes.copy_(latents[order[torch.arange(len(codes)) % len(order)]])


@torch.no_grad()
def scale_factor(model: Any, source: PixelSource) -> float:
    """One over the deviation of the first latents (Rombach et al. 2022, appendix G)."""
    device, latents = next(model.parameters()).device, []
    for k, pixels in enumerate(shown(source, MEASURED)):
        mean, logvar = model.moments(pixels.to(device))
        noise = torch.randn(mean.shape, generator=generator_for(1, k)).to(mean)
        latents.append((mean + (0.5 * logvar).exp() * noise).flatten().cpu())
    return float(1 / torch.cat(latents).std())


@torch.no_grad()
def figures(model: Any, source: PixelSource, folder: Path, scale: float | None = None) -> Mapping[str, float]:
    """The mean PSNR in dB of the first pictures, and a sheet of some of them beside what came back."""
    device, ratios, pairs = next(model.parameters()).device, [], []
    for pixels in shown(source, MEASURED):
        made = model.decode(model.encode(pixels.to(device)).mean).clamp(-1, 1).cpu()
        ratios += (
            10 * torch.log10(4 / (made - pixels).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))
        ).tolist()
        pairs += list(zip(pixels, made, strict=True))[: max(0, 4 - len(pairs))]
    images = [image for pair in pairs for image in to_images(torch.stack(pair))]
    with atomic(folder / "reconstructions.png") as partial:
        labelled_sheet(images, ["picture", "came back"] * len(pairs), "reconstructions").save(partial, "PNG")
    return {"psnr": sum(ratios) / len(ratios)} | ({} if scale is None else {"scale_factor": scale})


def write_result(
    folder: Path, part: Component[Any], c: ReconstructionConfig, said: Mapping[str, float]
) -> Path:
    """Write an autoencoder, and its figures beside it."""
    write_text(folder / "figures.json", json.dumps(said, indent=1))
    path = folder / ("autoencoder" if c.layout == "diffusers" else f"{folder.name}.safetensors")
    write_component(in_dtype(part, DTYPES[c.save_dtype]), path, c.layout)
    return path
