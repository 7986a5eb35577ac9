"""ControlNet-LLLite (kohya's): a hint that changes the inputs of some linear layers of the U-Net.

B batch, T tokens, C channels, E width of the hint's embedding. Names are those of the files, behind their layer's.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from inkwash.adapters.control import as_placed, placed
from inkwash.adapters.names import underscored
from inkwash.files import ModelFileError
from inkwash.nn.layers import Linear
from inkwash.weights.checkpoint import Parts, check_finite, fill
from inkwash.weights.names.wrappers import read_model_file

PREFIX = "lllite_unet_"


class LLLiteModule(nn.Module):
    """A network that predicts a change of one layer's input from that input and the hint."""

    def __init__(self, shapes: Mapping[str, torch.Size]):
        super().__init__()
        convs, last = [], 0
        while f"conditioning1.{last}.weight" in shapes:  # every other one is a ReLU
            dim, dim_in, side, _ = shapes[f"conditioning1.{last}.weight"]
            convs += [nn.Conv2d(dim_in, dim, side, stride=side), nn.ReLU()]
            last += 2
        self.conditioning1 = nn.Sequential(*convs[:-1])
        sizes = {name: shapes[f"{name}.0.weight"] for name in ("down", "mid", "up")}
        layers = [nn.Sequential(Linear(dim_in, dim)) for dim, dim_in in sizes.values()]
        self.down, self.mid, self.up = layers

    def see(self, hint: Tensor) -> Tensor:
        """The hint's embedding (B, T, E), of pixels (B, 3, 8H, 8W) in [-1, 1]; it does not depend on the step."""
        return self.conditioning1(hint).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """The change (B, T, C) of the layer's input x (B, T, C)."""
        h = torch.cat([seen.expand(len(x), -1, -1), self.down(x).relu()], dim=2)
        return self.up(self.mid(h).relu())


class LLLite(nn.ModuleDict):
    """The modules of a file, by the names of the U-Net's layers with underscores."""

    def __init__(self, shapes: Mapping[str, Mapping[str, torch.Size]]):
        super().__init__({name: LLLiteModule(inside) for name, inside in shapes.items()})


def open_lllite(path: Path, model: Parts) -> LLLite:
    """The network of a file, on the model's device and in its dtype. Raises ModelFileError where it does not fit."""
    read = as_placed(read_model_file(path).tensors, model)
    tensors = {name.removeprefix(PREFIX): value for name, value in read.items()}
    check_finite(tensors, path.name)
    layers = {
        underscored(name): layer for name, layer in model.unet.named_modules() if isinstance(layer, Linear)
    }
    shapes: dict[str, dict[str, torch.Size]] = {}
    for name, value in tensors.items():
        module, _, rest = name.partition(".")
        shapes.setdefault(module, {})[rest] = value.shape
    for module, inside in shapes.items():
        wanted = layers[module].in_features if module in layers else None
        found = inside.get("up.0.weight", (None,))[0]
        if wanted is None or found != wanted:
            raise ModelFileError(
                f"{path.name} is for another model: {module} takes {found}, and the model's {wanted}"
            )
    try:
        return fill(partial(LLLite, shapes), tensors, path.name).to(*placed(model))
    except KeyError as error:
        raise ModelFileError(f"{path.name} lacks {error.args[0]}") from error
