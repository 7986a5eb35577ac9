"""Runs that train CLIP."""

from pathlib import Path

import torch
from torch import nn

from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.training.config_networks import ClipConfig
from inkwash.training.distributed import join_world
from inkwash.training.methods import Method
from inkwash.training.network_run import NetworkRun, pictures_of
from inkwash.training.pixels import PixelSource
from inkwash.training.settings import check_folder, chosen_precision, loop_config, num_steps
from inkwash.training.tasks.contrast import CLIP, ContrastiveTask
from inkwash.training.trainable import Weights
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import DTYPES
from inkwash.weights.models.clip_folder import read_clip, write_clip
from inkwash.weights.models.convert import read_checkpoint


def prepare_clip(method: Method, c: ClipConfig) -> NetworkRun:
    """A run of CLIP. Raises ValueError, or ModelFileError of files."""
    check_folder(Path(c.output))
    world = join_world(c.device)
    tokenizer = Tokenizer.clip()
    if c.tokenizer:
        texts = [
            t.tokenizer
            for t in read_checkpoint(model_path(c.tokenizer)).text
            if isinstance(t.tokenizer, Tokenizer)
        ]
        if not texts:
            raise ModelFileError(f"{c.tokenizer} has no tokenizer of CLIP's kind")
        tokenizer = texts[0]
    if c.model:
        text, vision, scale, tokenizer = read_clip(Path(c.model))
        model = CLIP(text, vision)
        model.logit_scale.data.fill_(scale)
    else:
        model = new_clip(c, tokenizer)
    model = model.to(c.device).train().requires_grad_(True)
    side = model.config[1].image_size
    if c.resolution and c.resolution != (side, side):
        raise ValueError(f"resolution {c.resolution[0]} is not the {side} of {c.model}")
    dataset = pictures_of(
        c.model_copy(update={"resolution": (side, side)}), model.config[1].patch_size, side, world
    )
    steps = num_steps(c, dataset.batches_per_epoch)
    precision = chosen_precision(c, torch.device(c.device), sum(p.numel() for p in model.parameters()))
    source = PixelSource(dataset, c.on_broken == "stop")
    task = ContrastiveTask(model, tokenizer, source, c.accumulation, precision, world)

    def write(folder: Path, weights: Weights) -> Path:
        cast = {name: value.to(DTYPES[c.save_dtype]) for name, value in weights.items()}
        write_clip(folder / "clip", model.config, cast, tokenizer)
        return folder / "clip"

    loop = loop_config(c, steps, precision)
    return NetworkRun(method, c, c.model or "a new CLIP", dataset, model, task, loop, precision, world, write)


def new_clip(c: ClipConfig, tokenizer: Tokenizer) -> CLIP:
    """Both towers with random weights."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer.vocab), width=c.width, num_layers=c.layers, num_heads=c.width // c.head_width,
        mlp_width=4 * c.width, eos_token=tokenizer.end, projection_dim=c.projection,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        width=c.vision_width, num_layers=c.vision_layers, num_heads=c.vision_width // c.head_width,
        mlp_width=4 * c.vision_width, image_size=(c.resolution or (224,))[0], patch_size=c.patch,
        projection_dim=c.projection,
    )  # fmt: skip
    torch.manual_seed(c.seed)
    model = CLIP(CLIPText(text), CLIPVision(vision))
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)  # CLIP's own; torch's 1 learns slowly
    return model
