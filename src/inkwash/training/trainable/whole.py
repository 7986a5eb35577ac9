"""A model's own weights that learn."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from inkwash.diffusion.denoiser import EDM
from inkwash.models.bert import BERT
from inkwash.models.conditions import ClassEmbedder, SemanticRescaler
from inkwash.models.t5 import T5
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.api import Pipeline
from inkwash.training.config_methods import FinetuneConfig
from inkwash.training.initialise import preserve_variance
from inkwash.training.trainable import Trainable, Weights
from inkwash.weights import configs
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import DTYPES, Checkpoint, Component
from inkwash.weights.models.convert import LAYOUTS, cast, read_checkpoint
from inkwash.weights.models.folder import dumped
from inkwash.weights.scheduler import (
    PREDICTION_TYPES,
    edm_scheduler_json,
    is_edm,
    read_prediction,
    scheduler_json,
)

SCHEDULER = "scheduler/scheduler_config.json"


class WholeTrainable(Trainable):
    """The U-Net, or those of its layers that the config names, and the text encoders where they have a rate.

    Raises ValueError where a name is in no layer's path, and for a prediction or a T5 that a single file can't hold.
    """

    name = "model"

    def __init__(self, model: Pipeline, config: FinetuneConfig):
        self.config, self.unet, self.prediction = config, model.unet.train(), model.prediction
        if config.prediction == "edm" and config.layout == "single":
            raise ValueError("prediction edm needs layout diffusers; a single file has no mark of it")
        if config.layout == "single" and any(isinstance(one.model, T5) for one in model.text_encoders):
            raise ValueError(
                f"{model.name} reads T5, which has no layout as a single file; give layout diffusers"
            )
        self.changes_text = config.text_lr > 0
        named = list(self.unet.named_parameters())
        for part in config.train:
            if not any(part in name for name, _ in named):
                raise ValueError(
                    f"train {part!r} is in no layer's path; such are input_blocks.1, attn2, middle_block"
                )
        for name, parameter in named:
            parameter.requires_grad_(not config.train or any(part in name for part in config.train))
        networks: dict[str, nn.Module] = {"unet": self.unet}
        if isinstance(model.cond_stage, ClassEmbedder | BERT | SemanticRescaler):
            networks["cond_stage"] = model.cond_stage.requires_grad_(True).train()
        for k, encoder in enumerate(model.text_encoders if self.changes_text else ()):
            networks[f"text_encoder_{k}"] = encoder.model.requires_grad_(True).train()
        self.module: nn.ModuleDict = nn.ModuleDict(networks)

    def rate_factor(self, parameter: str) -> float:
        return self.config.text_lr / self.config.lr if parameter.startswith("text_encoder_") else 1.0

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        """Write the model with its new weights, as a single file or a folder."""
        c = self.config
        checkpoint = read_checkpoint(model_path(c.model, c.variant, c.offline), variant=c.variant)
        checkpoint = predicting(checkpoint, self.prediction, c.zero_snr)
        parts: dict[str, Weights] = {name: {} for name in self.module}
        for key, value in weights.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value.detach().cpu()
        texts = tuple(
            replace(text, tensors=parts[f"text_encoder_{k}"]) if f"text_encoder_{k}" in parts else text
            for k, text in enumerate(checkpoint.text)
        )
        unet = Component(self.unet.config, parts["unet"])
        small, said = dict(checkpoint.texts), dict(checkpoint.metadata) | metadata
        if unet.config != checkpoint.unet.config and "unet/config.json" in small:
            # a folder's own description is of a U-Net that saw less
            side = checkpoint.default_size // checkpoint.autoencoder.config.factor
            small["unet/config.json"] = dumped(configs.unet_json(unet.config, side))
        cond = checkpoint.cond_stage
        if cond and "cond_stage" in parts:
            cond = replace(cond, tensors=parts["cond_stage"])
        made = replace(checkpoint, unet=unet, text=texts, cond_stage=cond, texts=small, metadata=said)
        path = folder / (f"{folder.name}.safetensors" if c.layout == "single" else "model")
        LAYOUTS[c.layout](cast(made, DTYPES[c.save_dtype]), path)
        return path


def predicting(checkpoint: Checkpoint, prediction: str, zero_snr: bool) -> Checkpoint:
    """The checkpoint, saying what its network now predicts and whether its schedule ends in pure noise.

    A folder's scheduler says so; of a single file, markers that ComfyUI reads too, beside the metadata.
    """
    said = checkpoint.scheduler
    known = said.get("prediction_type", "epsilon") is not None and read_prediction(said)
    if known == prediction and (not zero_snr or said.get("rescale_betas_zero_snr")):
        return checkpoint
    if prediction in EDM:
        made = edm_scheduler_json(prediction)
    elif is_edm(said):
        made = scheduler_json(prediction, zero_terminal_snr=zero_snr)
    else:
        own = {"prediction_type": PREDICTION_TYPES[prediction]}
        made = {**said, **own, **({"rescale_betas_zero_snr": True} if zero_snr else {})}
    texts, others = dict(checkpoint.texts), dict(checkpoint.others)
    if SCHEDULER in texts:
        texts[SCHEDULER] = dumped(made)
    marks = {"v_pred": prediction == "v", "ztsnr": bool(made.get("rescale_betas_zero_snr"))}
    others = {name: value for name, value in others.items() if marks.get(name, True)}
    others |= {name: torch.zeros(0) for name, is_so in marks.items() if is_so and not texts}
    if prediction == "edm_v" and not texts:
        others |= {f"edm_vpred.{end}": torch.tensor(made[end]) for end in ("sigma_min", "sigma_max")}
    return replace(checkpoint, scheduler=made, texts=texts, others=others)


def widened(unet: UNet, channels: int, num_classes: int | None = None) -> UNet:
    """A copy of the network with more input channels, and classes, that have no effect yet: their weights are 0."""
    config = replace(unet.config, in_channels=unet.config.in_channels + channels, num_classes=num_classes)
    made, first = UNet(config), "input_blocks.0.0.weight"
    tensors = unet.state_dict()
    tensors[first] = F.pad(tensors[first], (0, 0, 0, 0, 0, channels))
    if num_classes is not None:
        tensors["label_emb.weight"] = torch.zeros(num_classes, 4 * config.channels)
    made.load_state_dict(tensors)
    return channels_last(made)


def told_guidance(unet: UNet, dim: int = 256) -> UNet:
    """A copy of the network with an input for the guidance scale (Meng et al. 2023), which has no effect yet."""
    made = UNet(replace(unet.config, time_cond_dim=dim))
    tensors = unet.state_dict() | {"time_cond_proj.weight": torch.zeros(unet.config.channels, dim)}
    made.load_state_dict(tensors)
    return channels_last(made)


def from_scratch(unet: UNet, seed: int) -> UNet:
    """A network of the same architecture with random weights."""
    torch.manual_seed(seed)
    return channels_last(preserve_variance(UNet(unet.config)))
