"""Runs that train a diffusion prior."""

from pathlib import Path

import torch
from torch import nn

from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVision
from inkwash.models.prior import Prior, PriorConfig
from inkwash.pipeline.prior import TextPrior, open_prior
from inkwash.training.config_networks import PriorTrainConfig
from inkwash.training.distributed import World, join_world
from inkwash.training.loop import generator_for
from inkwash.training.methods import Method
from inkwash.training.network_run import NetworkRun, pictures_of
from inkwash.training.objectives import Objective
from inkwash.training.pixels import PixelSource
from inkwash.training.settings import check_folder, chosen_precision, loop_config, num_steps
from inkwash.training.tasks.prior import PriorTask, vectors_of
from inkwash.training.trainable import Weights
from inkwash.weights.checkpoint import DTYPES, Component, TextComponent, TextEncoder
from inkwash.weights.models.clip_folder import read_clip
from inkwash.weights.models.prior import PriorParts, write_prior

MEASURED = 64  # batches of pictures whose vectors' mean and std a new prior takes


def prepare_prior(method: Method, c: PriorTrainConfig) -> NetworkRun:
    """A run of a prior. Raises ValueError, or ModelFileError of files."""
    folder = Path(c.output)
    check_folder(folder)
    world = join_world(c.device)
    text, vision, _, tokenizer = read_clip(Path(c.clip))
    side, dim = vision.config.image_size, vision.config.projection_dim or vision.config.width
    if c.resolution and c.resolution != (side, side):
        raise ValueError(f"resolution {c.resolution[0]} is not the {side} of {c.clip}")
    if c.model:
        prior = open_prior(c.model, c.device)
        if prior.network.config.vector_dim != dim:
            raise ModelFileError(
                f"{c.model} gives vectors of {prior.network.config.vector_dim} numbers, and {c.clip} {dim}"
            )
    else:
        if {text.config.width, text.config.projection_dim} != {dim}:
            raise ModelFileError(
                f"{c.clip}: its texts are {text.config.width} wide, its vectors {dim}; a prior reads one width alone"
            )
        prior = TextPrior(new_prior(c, dim).to(c.device), TextEncoder(text.to(c.device), tokenizer), c.bound)
    network, vision = prior.network.train().requires_grad_(True), vision.to(c.device)
    for statistics in (network.clip_mean, network.clip_std):
        statistics.requires_grad_(False)
    data = c.model_copy(update={"resolution": (side, side)})
    dataset = pictures_of(data, vision.config.patch_size, side, world)
    source = PixelSource(dataset, c.on_broken == "stop")
    if not c.model and not (folder / "state.safetensors").exists():  # which has them
        measure(network, vision, source, min(MEASURED, dataset.batches_per_epoch), c.seed)
    precision = chosen_precision(c, torch.device(c.device), sum(p.numel() for p in network.parameters()))
    objective = Objective("x0", timesteps=c.timesteps)
    task = PriorTask(prior, vision, source, objective, c.accumulation, precision, world)
    reads = prior.text

    def write(folder: Path, weights: Weights) -> Path:
        made, words = (
            {name: value.cpu().to(DTYPES[c.save_dtype]) for name, value in tensors.items()}
            for tensors in (weights, reads.model.state_dict())
        )
        tower = TextComponent(reads.model.config, words, reads.tokenizer)
        parts = PriorParts(Component(network.config, made), tower, prior.bound, prior.spacing)
        write_prior(parts, folder / "prior")
        return folder / "prior"

    loop = loop_config(c, num_steps(c, dataset.batches_per_epoch), precision)
    name = c.model or "a new prior"
    return NetworkRun(method, data, name, dataset, network, task, loop, precision, world, write)


def new_prior(c: PriorTrainConfig, dim: int) -> Prior:
    """A prior with random weights."""
    torch.manual_seed(c.seed)
    network = Prior(PriorConfig(dim, c.heads, c.head_width, c.layers))
    for name in ("positional_embedding", "prd_embedding"):
        nn.init.normal_(getattr(network, name), std=0.02)
    return network


@torch.no_grad()
def measure(network: Prior, vision: CLIPVision, source: PixelSource, num_batches: int, seed: int) -> None:
    """Set the mean and the std of the vectors that the network sees to those of the first batches' pictures."""
    device, whole = network.clip_mean.device, World().rows(source.size)
    batches = (source.batch(k, generator_for(seed, k), whole).pixels for k in range(num_batches))
    vectors = torch.cat([vectors_of(vision, pixels.to(device)) for pixels in batches])
    network.clip_mean.copy_(vectors.mean(0, keepdim=True))
    network.clip_std.copy_(vectors.std(0, keepdim=True).clamp(min=1e-5))
