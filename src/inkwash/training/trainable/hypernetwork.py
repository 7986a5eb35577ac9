"""Small networks before the keys and values of every attention, as AUTOMATIC1111 trains them. C width of the tokens."""

from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from inkwash.adapters.hypernetwork import ACTIVATIONS, Residual, attentions
from inkwash.adapters.low_rank import Attachment
from inkwash.files import atomic
from inkwash.pipeline.api import Pipeline
from inkwash.training.config_methods import HypernetworkConfig
from inkwash.training.trainable import Trainable, Weights
from inkwash.weights.bytes.paths import nearest


class HypernetworkTrainable(Trainable):
    """A pair of networks for each width of tokens that the U-Net attends to.

    Raises ValueError for an activation that is not known, and a structure that does not begin and end with 1.
    """

    name = "hypernetwork"

    def __init__(self, model: Pipeline, config: HypernetworkConfig):
        self.config, widths = config, config.layer_structure
        if widths[0] != 1 or widths[-1] != 1:
            raise ValueError(f"layer_structure {','.join(map(str, widths))} does not begin and end with 1")
        if config.activation.lower() not in ACTIVATIONS:
            raise ValueError(
                f"activation {config.activation!r} is unknown{nearest(config.activation, ACTIVATIONS)}"
            )
        self.attentions = list(attentions(model))
        if not self.attentions:
            raise ValueError(f"{model.name} has no attention to a prompt that a hypernetwork could change")
        torch.manual_seed(config.seed)
        sizes = sorted({attention.to_k.in_features for attention in self.attentions})
        self.module: nn.ModuleDict = nn.ModuleDict(
            {str(size): nn.ModuleList(self.network(size) for _ in range(2)) for size in sizes}
        )
        self.module.to(model.device)

    def network(self, size: int) -> nn.Sequential:
        """Linear layers of these multiples of the width, with the activation between them; all begin near zero."""
        layers: list[nn.Module] = []
        structure = self.config.layer_structure
        for k, (a, b) in enumerate(pairwise(structure)):
            linear = nn.Linear(int(size * a), int(size * b))
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            activation = self.config.activation.lower()
            if (
                k + 2 < len(structure) and activation != "linear"
            ):  # which has no place in AUTOMATIC1111's numbering
                layers.append(ACTIVATIONS[activation]())
            if self.config.layer_norm:
                layers.append(nn.LayerNorm(int(size * b)))
        return nn.Sequential(*layers)

    def attached(self) -> AbstractContextManager[object]:
        changes = []
        for attention in self.attentions:
            pair = self.module[str(attention.to_k.in_features)]
            changes += [(attention.to_k, Residual(pair[0]), 1.0), (attention.to_v, Residual(pair[1]), 1.0)]  # type: ignore[index]
        return Attachment(changes)

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        """A .pt as AUTOMATIC1111 opens it: a pair of state dicts by width, and how they are built."""
        c = self.config
        content: dict[object, object] = {
            int(size): tuple(
                {
                    f"linear.{rest}": value.detach().float().cpu().clone()
                    for key, value in weights.items()
                    for rest in [key.removeprefix(f"{size}.{which}.")]
                    if rest != key
                }
                for which in (0, 1)
            )
            for size in self.module
        }
        content |= {
            "name": folder.name,
            "step": int(metadata.get("ss_steps", 0)),
            "layer_structure": [int(width) if width == int(width) else width for width in c.layer_structure],
            "activation_func": c.activation.lower(),
            "is_layer_norm": c.layer_norm,
            "weight_initialization": "Normal",
            "use_dropout": False,
            "activate_output": False,
            "last_layer_dropout": False,
            "sd_checkpoint": metadata.get("ss_sd_model_hash"),
            "sd_checkpoint_name": metadata.get("ss_sd_model_name"),
        }
        path = folder / f"{folder.name}.pt"
        with atomic(path) as partial:
            torch.save(content, partial)
        return path
