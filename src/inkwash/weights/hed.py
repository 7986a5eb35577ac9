"""HED's weights in files of their own: ControlNet's, those of PyTorch's port of the Caffe model, and Keras's."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.hed import HEDConfig
from inkwash.weights import shapes
from inkwash.weights.checkpoint import Component, check_component
from inkwash.weights.names.wrappers import read_model_file

MEAN = (122.67891434, 116.66876762, 104.00698793)  # red, green, blue, of the Caffe model
NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv")  # in the port's names
KERAS = re.compile(r"(?:block(\d)\.layers\.conv2d(?:_(\d))?|dsn(\d)|(fuse))\.vars\.([01])")
PORT = re.compile(r"(?:net|module)(?:Vgg(\w{3})\w*\.(\d)|Score(\w{3})\w*|(Combine)\.0)\.(weight|bias)")


def read_hed(path: Path) -> Component[HEDConfig]:
    """HED's config and tensors under ControlNet's names. Raises ModelFileError for another file."""
    tensors = read_model_file(path).tensors
    try:
        if any(KERAS.fullmatch(name) for name in tensors):
            tensors = of_caffe({from_keras(name): for_torch(value) for name, value in tensors.items()})
        elif any(PORT.fullmatch(name) for name in tensors):
            tensors = of_caffe({from_port(name): value for name, value in tensors.items()})
        if "block1.projection.weight" not in tensors:
            raise ModelFileError("these are not HED's weights")
        component = Component(hed_config(tensors), dict(tensors))
        check_component(component)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return component


def hed_config(tensors: Mapping[str, Tensor]) -> HEDConfig:
    """The config of a HED from our names and their shapes."""
    names = shapes.of(tensors)
    stages = [k for k in range(1, 6) if f"block{k}.projection.weight" in names]
    return HEDConfig(
        tuple(shapes.at(names, f"block{k}.projection.weight", 4)[1] for k in stages),
        tuple(shapes.count(names, f"block{k}.convs.") for k in stages),
        "fuse.weight" in names,
    )


def of_caffe(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of pictures as Caffe's, blue first and without their mean, as of pictures, red first."""
    first = shapes.at(shapes.of(tensors), "block1.convs.0.weight", 4)
    if first[1] != 3:
        raise ModelFileError(f"block1.convs.0.weight sees {first[1]} channels; 3 are wanted")
    flipped = tensors["block1.convs.0.weight"].flip(1)
    return tensors | {"block1.convs.0.weight": flipped, "norm": torch.tensor(MEAN).view(1, 3, 1, 1)}


def for_torch(value: Tensor) -> Tensor:
    """Keras's (K, K, in, out) as (out, in, K, K)."""
    return value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value


def from_keras(name: str) -> str:
    """Our name of one of Keras's."""
    match = KERAS.fullmatch(name)
    if not match:
        raise ModelFileError(f"{name[:200]} is not a tensor of HED")
    block, conv, side, fuse, part = match.groups()
    layer = "fuse" if fuse else f"block{side}.projection" if side else f"block{block}.convs.{conv or 0}"
    return f"{layer}.{('weight', 'bias')[int(part)]}"


def from_port(name: str) -> str:
    """Our name of one of the port's, where convolutions, activations and halvings are numbered together."""
    match = PORT.fullmatch(name)
    stage = next((word for word in (match[1], match[3]) if word), None) if match else None
    if not match or (stage and stage not in NUMBERS):
        raise ModelFileError(f"{name[:200]} is not a tensor of HED")
    if match[4]:
        return f"fuse.{match[5]}"
    block = f"block{NUMBERS.index(str(stage)) + 1}"
    return f"{block}.convs.{int(match[2]) // 2}.{match[5]}" if match[2] else f"{block}.projection.{match[5]}"
