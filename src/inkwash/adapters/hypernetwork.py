"""Hypernetworks as A1111 trains them: small networks before the keys and values of every attention. C width."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inkwash.adapters.low_rank import Attachment
from inkwash.files import ModelFileError
from inkwash.nn.attention import CrossAttention
from inkwash.weights.bytes.tensor_file import TensorFile, read_tensors
from inkwash.weights.checkpoint import Parts, check_finite

NAMES = (
    "ReLU LeakyReLU ELU Hardswish Tanh Sigmoid GELU SiLU Mish SELU CELU ReLU6 Hardtanh Hardsigmoid Softplus Softsign "
    "Tanhshrink LogSigmoid"
)
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"linear": nn.Identity, "swish": nn.Hardswish} | {
    name.lower(): getattr(nn, name) for name in NAMES.split()
}
OLD = {"linear1": "linear.0", "linear2": "linear.1"}  # of the first files
MAX_LAYERS = 64


@dataclass(frozen=True)
class Residual:
    """x + strength * network(x) in place of a layer's input x."""

    network: nn.Sequential

    def like(self, weight: Tensor) -> "Residual":
        """The hypernetwork on a weight's device and in its dtype."""
        return Residual(deepcopy(self.network).to(weight.device, weight.dtype))

    def hooks(self, layer: nn.Module, strength: float) -> list[RemovableHandle]:
        def before(layer: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0]
            weight = next(self.network.parameters())
            if weight.device != x.device:  # a network that comes and goes
                self.network.to(x.device)
            # in training it is float32 beside tokens of bfloat16
            return (x + strength * self.network(x.to(weight.dtype)).to(x.dtype),)

        return [layer.register_forward_pre_hook(before)]


# of each width C, what keys and values are made of
Hypernetwork = Mapping[int, tuple[Residual, Residual]]


def prepare_hypernetwork(parts: Parts, hypernetwork: Hypernetwork, strength: float = 1.0) -> Attachment:
    """The hypernetwork before all attentions of the U-Net that see tokens of its widths, not attached yet."""
    made = []
    for attention in attentions(parts):
        if strength and (found := hypernetwork.get(attention.to_k.in_features)):
            pairs = zip((attention.to_k, attention.to_v), found, strict=True)
            made += [(layer, residual.like(layer.weight), strength) for layer, residual in pairs]
    return Attachment(made)


def attentions(parts: Parts) -> Iterator[CrossAttention]:
    yield from (module for module in parts.unet.modules() if isinstance(module, CrossAttention))


def read_hypernetwork(path: Path | str, parts: Parts) -> Hypernetwork:
    """Read a hypernetwork in A1111's format. Dropout, which matters in training alone, is left out.

    Raises ModelFileError for a width that no attention of the model sees, an activation that is not known, and
    tensors that make no chain of layers from C to C.
    """
    file = read_tensors(Path(path))
    try:
        return hypernetwork_of(file, {attention.to_k.in_features for attention in attentions(parts)})
    except ModelFileError as error:
        raise ModelFileError(f"the hypernetwork {path}: {error}") from error


def hypernetwork_of(file: TensorFile, widths: set[int]) -> Hypernetwork:
    check_finite(file.tensors, "it")
    grouped: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for key, tensor in file.tensors.items():
        width, _, rest = key.partition(".")
        which, _, name = rest.partition(".")
        if not width.isdecimal() or len(width) > 6 or which not in ("0", "1"):
            raise ModelFileError(f"{key} is not a tensor of a hypernetwork")
        if int(width) not in widths:
            allowed = ", ".join(map(str, sorted(widths)))
            raise ModelFileError(f"it changes tokens {width} wide; the model's attentions see {allowed}")
        grouped.setdefault(int(width), ({}, {}))[which == "1"][name] = tensor
    if not grouped:
        raise ModelFileError("it changes nothing")
    about = file.metadata
    name = about.get("activation_func") or "linear"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ModelFileError(f"activation_func {str(name)[:60]!r} is not one of {', '.join(ACTIVATIONS)}")
    last = bool(about.get("activate_output", True))

    def made(tensors: Mapping[str, Tensor], width: int) -> Residual:
        return Residual(network_of(tensors, width, ACTIVATIONS[name], last))

    return {width: (made(pair[0], width), made(pair[1], width)) for width, pair in grouped.items()}


def network_of(
    tensors: Mapping[str, Tensor], width: int, activation: type[nn.Module], last: bool
) -> nn.Sequential:
    """Matrices, each followed by the activation and, where the file has one, a norm. last: also the last one is."""
    places: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        where, _, kind = name.rpartition(".")
        prefix, _, place = OLD.get(where, where).rpartition(".")
        if prefix != "linear" or not place.isdecimal() or len(place) > 3 or kind not in ("weight", "bias"):
            raise ModelFileError(f"{width}'s {name} is not a tensor of a hypernetwork")
        places.setdefault(int(place), {})[kind] = tensor
    num = sum(pair["weight"].ndim == 2 for pair in places.values() if "weight" in pair)
    layers: list[nn.Module] = []
    size, seen = width, 0
    for place, pair in sorted(places.items()):
        weight, bias = pair.get("weight"), pair.get("bias")
        is_matrix = weight is not None and weight.ndim == 2
        wanted = (weight.shape[0], size) if is_matrix and weight is not None else (size,)
        if (
            weight is None
            or bias is None
            or weight.shape != wanted
            or bias.shape != wanted[:1]
            or num > MAX_LAYERS
        ):
            raise ModelFileError(f"{width}'s linear.{place} does not fit tokens {size} wide")
        size_in, size = size, wanted[0]
        made = nn.Linear(size_in, size, device="meta") if is_matrix else nn.LayerNorm(size, device="meta")
        made.load_state_dict({"weight": weight.float(), "bias": bias.float()}, assign=True)
        layers.append(made)
        seen += is_matrix
        if is_matrix and (seen < num or last):
            layers.append(activation())
    if not seen or size != width:
        raise ModelFileError(f"{width}'s layers give tokens {size} wide, not {width}")
    return nn.Sequential(*layers).eval().requires_grad_(False)
