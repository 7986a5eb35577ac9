"""ncnn's pair of files: a graph as text, .param, and the weights of its layers one after the other, .bin.

Tensors are named by their layers' places among those with weights: ncnn.0.weight, ncnn.0.bias, ncnn.1.slope. The
metadata hold the kinds of all layers in their order, and what the graph does that weights don't say.
"""

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inkwash.files import ModelFileError

MAGIC = b"7767517"
MAX_TEXT = 16 << 20  # bytes of a graph
MAX_LAYERS = 100_000
FP16, FP32, INT8 = 0x01306B47, 0x0002C056, 0x000D4B38  # before a layer's weights; 0 is float32 too
# layers without weights that the networks covered are made of
PLAIN = {"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle"}


class Layer(NamedTuple):
    """A line of the graph. params: numbers by their keys, lists where ncnn has arrays."""

    kind: str
    name: str
    params: dict[int, Any]

    def number(self, key: int, default: int = 0) -> int:
        """A whole number that isn't negative. Raises ModelFileError for another value."""
        value = self.params.get(key, default)
        if (not isinstance(value, float) and not isinstance(value, int)) or value < 0 or value != int(value):
            raise ModelFileError(f"its layer {self.name[:80]} has {str(value)[:80]} as parameter {key}")
        return int(value)


def read_ncnn(graph: mmap.mmap, weights: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of both files. Raises ModelFileError where they don't fit each other to the last byte."""
    layers = list(read_graph(graph))
    tensors: dict[str, Tensor] = {}
    at = 0
    for layer in layers:
        if layer.kind in PLAIN:
            continue
        prefix = f"ncnn.{len({name.rpartition('.')[0] for name in tensors})}"
        if layer.kind == "Convolution":
            made, at = convolution(layer, weights, at)
        elif layer.kind == "PReLU":
            slope, at = plain(weights, at, layer.number(0))
            made = {"slope": slope}
        else:
            raise ModelFileError(f"its layer {layer.name[:80]} is a {layer.kind[:80]}, which is not covered")
        tensors |= {f"{prefix}.{part}": value for part, value in made.items()}
    if at != len(weights):
        raise ModelFileError(f"its weights take {at:,} bytes, and the .bin has {len(weights):,}")
    return tensors, {"layers": [layer.kind for layer in layers], "resize": resized(layers)}


def read_graph(data: mmap.mmap) -> Iterator[Layer]:
    """The lines of a graph."""
    if len(data) > MAX_TEXT:
        raise ModelFileError(f"its graph has {len(data):,} bytes; at most {MAX_TEXT:,} are read")
    lines = data[:].decode("utf-8", "replace").split("\n")[2:]
    lines = [line.split() for line in lines if line.strip()]
    if len(lines) > MAX_LAYERS:
        raise ModelFileError(f"its graph has {len(lines):,} layers; at most {MAX_LAYERS:,} are read")
    for words in lines:
        try:
            kind, name, num_in, num_out = words[0], words[1], int(words[2]), int(words[3])
            pairs = [word.split("=", 1) for word in words[4 + num_in + num_out :]]
            yield Layer(kind, name, {int(key): value_of(int(key), text) for key, text in pairs})
        except (IndexError, ValueError):
            raise ModelFileError(
                f"its graph has the line {' '.join(words)[:80]!r}, which is not a layer"
            ) from None


def value_of(key: int, text: str) -> int | float | list[float]:
    """A parameter's value: a number, or of keys below -23300 as many as the first one says."""
    if key <= -23300:
        return [float(number) for number in text.split(",")[1:]]
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def convolution(layer: Layer, data: mmap.mmap, at: int) -> tuple[dict[str, Tensor], int]:
    """Weight (out, in, K, K) and bias (out,), and where the next layer's begin."""
    out, side, size = layer.number(0), layer.number(1), layer.number(6)
    odd = layer.number(11, side) != side or layer.number(2, 1) != 1 or layer.number(3, 1) != 1
    if odd or layer.number(4) != side // 2 or not out or not side or size % (out * side**2):
        raise ModelFileError(f"its layer {layer.name[:80]} is not a convolution that keeps the size")
    flat, at = flagged(data, at, size)
    made = {"weight": flat.view(out, -1, side, side)}
    if layer.number(5):
        made["bias"], at = plain(data, at, out)
    return made, at


def flagged(data: mmap.mmap, at: int, num: int) -> tuple[Tensor, int]:
    """Values of the type that the four bytes before them say."""
    flag = int.from_bytes(data[at : at + 4], "little")
    if flag == FP16:
        values, end = plain(data, at + 4, num, torch.float16)
        return values, end + end % 4  # filled up to four bytes
    if flag in (0, FP32):
        return plain(data, at + 4, num)
    raise ModelFileError(
        f"its weights are {'int8' if flag == INT8 else 'quantized'}; fp32 and fp16 are covered"
    )


def plain(data: mmap.mmap, at: int, num: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, int]:
    """Values that lie there, copied, and where they end."""
    end = at + num * dtype.itemsize
    if not num or end > len(data):
        raise ModelFileError(f"its .bin ends before the {num:,} values at byte {at:,}")
    return torch.frombuffer(bytearray(data[at:end]), dtype=dtype), end


def resized(layers: list[Layer]) -> float:
    """The factor of all resizing in the graph that comes last; 1.0 where a layer with weights does."""
    last = layers[-1] if layers else None
    if last is None or last.kind != "Interp" or last.params.get(1) != last.params.get(2):
        return 1.0
    return float(last.params.get(1, 1.0))
