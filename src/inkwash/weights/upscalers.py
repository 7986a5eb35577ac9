"""Pixel upscalers in files of their own: what they are by their tensors, from every dialect to our names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.compact import CompactConfig
from inkwash.models.rrdb import RRDBConfig
from inkwash.models.swinir import Ending, SwinIRConfig
from inkwash.weights import shapes
from inkwash.weights.bytes.tensor_file import TensorFile
from inkwash.weights.checkpoint import Component, check_component
from inkwash.weights.kinds import kind_of
from inkwash.weights.names.keymap import Table, translate
from inkwash.weights.names.wrappers import read_model_file
from inkwash.weights.shapes import Shapes

Config = RRDBConfig | CompactConfig | SwinIRConfig
NAMES = {RRDBConfig: "RRDBNet", CompactConfig: "SRVGGNetCompact", SwinIRConfig: "SwinIR"}
DENSE = [(block, conv) for block in range(1, 4) for conv in range(1, 6)]  # convolutions of a residual block
BY_THREE = re.compile(r"(?<![0-9])(3x|x3)(?![0-9])", re.IGNORECASE)  # in the name of a file, such as 3x_lines
# of SwinIR's files: what follows from the sizes
FIXED = re.compile(r".*\.attn\.relative_position_index$|.*\.attn_mask$")


def read_upscaler(path: Path) -> tuple[Component[Config], float]:
    """An upscaler's config and tensors under our names, and the factor that its file is for.

    Of ESRGAN, BSRGAN, Real-ESRGAN, SwinIR, or ncnn, whose graphs may make the network's picture smaller again. Raises
    ModelFileError for another file, and naming the first tensor that is missing, unknown or does not fit.
    """
    return upscaler_of(read_model_file(path))


def upscaler_of(file: TensorFile) -> tuple[Component[Config], float]:
    """The upscaler of a file that is already read."""
    kind = kind_of(file.tensors)
    if kind != "upscaler":
        raise ModelFileError(f"{file.path} is of the kind {kind}, and no upscaler")
    try:
        tensors = from_ncnn(file) if file.format == "ncnn" else file.tensors
        component = under_our_names(tensors, file.path.stem)
        check_component(component)
    except ModelFileError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    return component, component.config.scale * file.metadata.get("resize", 1.0)


def from_ncnn(file: TensorFile) -> dict[str, Tensor]:
    """ncnn's tensors, which lie in the order in which they are used, under our names."""
    tensors, kinds = file.tensors, file.metadata["layers"]
    if "PReLU" in kinds:
        return {
            name.replace("ncnn.", "body.").replace(".slope", ".weight"): value
            for name, value in tensors.items()
        }
    num_doublings = kinds.count("Interp") - (file.metadata["resize"] != 1)
    num_blocks, rest = divmod(kinds.count("Convolution") - num_doublings - 4, 15)
    if rest:
        raise ModelFileError(
            f"its {kinds.count('Convolution')} convolutions are those of no network that is covered"
        )
    order = [
        "conv_first",
        *(f"body.{n}.rdb{b}.conv{k}" for n in range(num_blocks) for b, k in DENSE),
        "conv_body",
        *(f"conv_up{k + 1}" for k in range(num_doublings)),
        *("conv_hr", "conv_last"),
    ]
    return translate(tensors, {name: f"ncnn.{i}" for i, name in enumerate(order)}, inverse=True)


def under_our_names(tensors: Mapping[str, Tensor], name: str = "") -> Component[Config]:
    """Rename an upscaler's tensors from any dialect. name: the file's name, the only sign of an upscaler by 3."""
    if "body.1.weight" in tensors:
        return Component(compact_config(shapes.of(tensors)), dict(tensors))
    if any(name.startswith("layers.") for name in tensors):
        own = {name: value for name, value in tensors.items() if not FIXED.match(name)}
        return Component(swinir_config(shapes.of(own)), own)
    if "model.0.weight" in tensors:
        tensors = translate(tensors, old_names(shapes.of(tensors)), inverse=True)
    elif "trunk_conv.weight" in tensors:
        tensors = translate(tensors, TRUNK, inverse=True)
    config = rrdb_config(shapes.of(tensors))
    if config.num_doublings == config.unshuffle == 1 and BY_THREE.search(name):
        config = replace(config, step=3)
    return Component(config, dict(tensors))


# from our names to BSRGAN's and RealSR's
TRUNK: Table = {
    **{f"body.{{}}.rdb{b}.conv{k}": f"RRDB_trunk.{{}}.RDB{b}.conv{k}" for b, k in DENSE},
    **{f"body.{{}}.rdb{b}.conv1x1": f"RRDB_trunk.{{}}.RDB{b}.conv1x1" for b in range(1, 4)},
    **{f"conv_up{k}": f"upconv{k}" for k in range(1, 4)},
    **{"conv_first": "conv_first", "conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_last": "conv_last"},
}


def old_names(names: Shapes) -> Table:
    """A table from our names to ESRGAN's first ones, which number a chain of layers, activations and doublings included."""
    last = max(
        (int(name.split(".")[1]) for name in names if re.match(r"model\.\d{1,3}\.weight$", name)), default=0
    )
    num_doublings = (last - 4) // 3
    return {
        **{f"body.{{}}.rdb{b}.conv{k}": f"model.1.sub.{{}}.RDB{b}.conv{k}.0" for b, k in DENSE},
        **{f"body.{{}}.rdb{b}.conv1x1": f"model.1.sub.{{}}.RDB{b}.conv1x1" for b in range(1, 4)},
        **{f"conv_up{k}": f"model.{3 * k}" for k in range(1, num_doublings + 1)},
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{max(0, shapes.count(names, 'model.1.sub.') - 1)}",
        "conv_hr": f"model.{last - 2}",
        "conv_last": f"model.{last}",
    }


def rrdb_config(names: Shapes) -> RRDBConfig:
    """The config of an RRDBNet from our names and their shapes."""
    channels, seen = shapes.at(names, "conv_first.weight", 4)[:2]
    out = shapes.at(names, "conv_last.weight", 4)[0]
    unshuffle = isqrt(seen // out)
    num_doublings = sum(f"conv_up{k}.weight" in names for k in range(1, 6))
    if out * unshuffle**2 != seen or 2**num_doublings < unshuffle:
        raise ModelFileError(
            f"conv_first sees {seen} channels and conv_last gives {out}, after {num_doublings} doublings: no "
            "factor follows"
        )
    return RRDBConfig(
        channels,
        shapes.at(names, "body.0.rdb1.conv1.weight", 4)[0],
        shapes.count(names, "body."),
        num_doublings,
        unshuffle,
        out,
        out,
        plus="body.0.rdb1.conv1x1.weight" in names,
    )


def compact_config(names: Shapes) -> CompactConfig:
    """The config of an SRVGGNetCompact."""
    channels, seen = shapes.at(names, "body.0.weight", 4)[:2]
    shapes.at(names, "body.1.weight", 1)  # PReLU; other activations have no tensors
    last = shapes.count(names, "body.") - 1
    given = shapes.at(names, f"body.{last}.weight", 4)[0]
    scale = isqrt(given // seen)
    if last < 2 or last % 2 or scale**2 * seen != given:
        raise ModelFileError(f"body.{last} gives {given} channels of {seen}: no factor follows")
    return CompactConfig(channels, last // 2 - 1, scale, seen)


def swinir_config(names: Shapes) -> SwinIRConfig:
    """The config of a SwinIR."""
    attention = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
    channels, seen = shapes.at(names, "conv_first.weight", 4)[:2]
    num_groups = shapes.count(names, "layers.")
    tables = [shapes.at(names, attention.format(i), 2) for i in range(num_groups)]
    ending, scale, features = swinir_ending(names, seen)
    return SwinIRConfig(
        channels=channels,
        depths=tuple(shapes.count(names, f"layers.{i}.residual_group.blocks.") for i in range(num_groups)),
        num_heads=tuple(table[1] for table in tables),
        window=(isqrt(tables[0][0]) + 1) // 2,
        mlp_width=shapes.at(names, "layers.0.residual_group.blocks.0.mlp.fc1.weight", 2)[0],
        scale=scale,
        ending=ending,
        features=features,
        three_convs="conv_after_body.0.weight" in names,
        in_channels=seen,
    )


def swinir_ending(names: Shapes, out: int) -> tuple[Ending, int, int]:
    """The ending of a SwinIR, its factor, and its channels before the last convolution."""
    if "conv_before_upsample.0.weight" not in names:
        if "upsample.0.weight" not in names:
            return "", 1, 64
        return "pixelshuffledirect", isqrt(shapes.at(names, "upsample.0.weight", 4)[0] // out), 64
    features = shapes.at(names, "conv_before_upsample.0.weight", 4)[0]
    if "conv_up1.weight" in names:
        return "nearest+conv", 2 ** sum(f"conv_up{k}.weight" in names for k in range(1, 4)), features
    scale = 1
    while (name := f"upsample.{2 * (scale.bit_length() - 1)}.weight") in names:
        step = isqrt(shapes.at(names, name, 4)[0] // features)
        if step == 3:
            return "pixelshuffle", 3, features
        scale *= 2
    return "pixelshuffle", scale, features


def described(config: Config) -> str:
    """A description for people, such as RRDBNet x4, 64 channels, 23 blocks."""
    size = {
        RRDBConfig: lambda c: f"{c.num_blocks} blocks",
        CompactConfig: lambda c: f"{c.num_convs} convolutions",
        SwinIRConfig: lambda c: f"{sum(c.depths)} blocks, {c.ending or 'no enlarging'}",
    }[type(config)](config)
    return f"{NAMES[type(config)]} x{config.scale}, {config.channels} channels, {size}"
