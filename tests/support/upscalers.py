"""Upscalers of a few channels with random weights, and peers' networks of the same."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.models.compact import CompactConfig, SRVGGNetCompact
from inkwash.models.rrdb import RRDBConfig, RRDBNet
from inkwash.models.swinir import SwinIR, SwinIRConfig

SMALL_SWIN: dict[str, Any] = {
    "channels": 24,
    "depths": (2, 2),
    "num_heads": (2, 3),
    "mlp_width": 48,
    "features": 64,
}
CONFIGS: dict[str, Any] = {
    "esrgan x4": RRDBConfig(8, 32, 2),
    "esrgan x2 by one doubling": RRDBConfig(8, 32, 3, 1),
    "real-esrgan x2": RRDBConfig(8, 32, 2, unshuffle=2),
    "real-esrgan x1": RRDBConfig(8, 32, 2, unshuffle=4),
    "esrgan x8": RRDBConfig(8, 32, 1, 3),
    "esrgan x1": RRDBConfig(8, 32, 2, 0),
    "esrgan+ x4": RRDBConfig(8, 32, 2, plus=True),
    "compact x4": CompactConfig(8, 3),
    "compact x2": CompactConfig(8, 2, 2),
    "compact x1": CompactConfig(8, 2, 1),
    "swinir classical x4": SwinIRConfig(**SMALL_SWIN),
    "swinir classical x3": SwinIRConfig(**SMALL_SWIN, scale=3),
    "swinir lightweight x2": SwinIRConfig(**SMALL_SWIN, scale=2, ending="pixelshuffledirect"),
    "swinir real x4": SwinIRConfig(**SMALL_SWIN, ending="nearest+conv"),
    "swinir-l real x4": SwinIRConfig(**SMALL_SWIN, ending="nearest+conv", three_convs=True),
    "swinir denoising": SwinIRConfig(**SMALL_SWIN, scale=1, ending=""),
    "swinir jpeg": SwinIRConfig(**SMALL_SWIN | {"window": 7}, scale=1, ending=""),
}
CLASSES = {RRDBConfig: RRDBNet, CompactConfig: SRVGGNetCompact, SwinIRConfig: SwinIR}


def network(config: Any, seed: int = 0) -> nn.Module:
    """Random weights, of a size that keeps pictures within a few times their range."""
    made = CLASSES[type(config)](config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
            continue
        fan = parameter[0].numel() if parameter.ndim > 1 and "table" not in name else 25
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return made


def spandrel(tensors: Mapping[str, Tensor]) -> nn.Module:
    """spandrel's network of these tensors. What imports torchvision there is given an empty one, then taken away."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stubs = {name: ModuleType(name) for name in names if "spandrel" not in sys.modules}
    for stub in stubs.values():
        vars(stub).update(InterpolationMode=None, rotate=None, normalize=None)
    sys.modules.update(stubs)
    try:
        from spandrel import MAIN_REGISTRY
    finally:
        for name in stubs:
            del sys.modules[name]
    return MAIN_REGISTRY.load(dict(tensors)).model.eval()
