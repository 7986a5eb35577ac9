"""A T2I-Adapter's `config.json`, and its config from the shapes of its tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

from inkwash.models.t2i_adapter import T2IAdapterConfig
from inkwash.weights.configs.schema import Json, Layout

ADAPTER = Layout(
    "t2i-adapter",
    ours={
        "in_channels": 3,
        "channels": [320, 640, 1280, 1280],
        "num_res_blocks": 2,
        "downscale_factor": 8,
        "adapter_type": "full_adapter",
    },
    fixed={},
    free=frozenset(),
)
KINDS = ("full_adapter", "full_adapter_xl", "light_adapter")


def t2i_adapter_json(config: T2IAdapterConfig) -> Json:
    """`config.json` of diffusers' T2IAdapter."""
    kind = KINDS[2 if config.light else config.factor == 16]
    return {
        "_class_name": "T2IAdapter",
        "in_channels": config.hint_channels,
        # a light one's last level has the width of the one before
        "channels": list(config.channels[:-1] if config.light else config.channels),
        "num_res_blocks": config.num_res_blocks,
        "downscale_factor": config.factor,
        "adapter_type": kind,
    }


def t2i_adapter_config_from_json(data: Mapping[str, Any]) -> T2IAdapterConfig:
    """The config of a T2I-Adapter's `config.json`. Raises ModelFileError naming the field that is not covered."""
    read = ADAPTER.read(data)
    if read["adapter_type"] not in KINDS:
        raise ADAPTER.refuse("adapter_type", read["adapter_type"], f"one of {', '.join(KINDS)}")
    light, xl = read["adapter_type"] == KINDS[2], read["adapter_type"] == KINDS[1]
    channels = ADAPTER.each(read, "channels")
    factor = ADAPTER.whole(read, "downscale_factor")
    if factor != (16 if xl else 8):
        raise ADAPTER.refuse("downscale_factor", factor, "16 of full_adapter_xl and 8 of others")
    return T2IAdapterConfig(
        channels=(*channels, channels[-1]) if light else channels,
        num_res_blocks=ADAPTER.whole(read, "num_res_blocks"),
        hint_channels=ADAPTER.whole(read, "in_channels"),
        factor=factor,
        light=light,
    )


def t2i_adapter_table(config: T2IAdapterConfig) -> dict[str, str]:
    """Names of `T2IAdapter` -> those of diffusers' T2IAdapter, without `adapter.` in front."""
    n = config.num_res_blocks
    if config.light:
        return {
            f"body.{i}.body.{j}": f"body.{i}.resnets.{j}"
            for i in range(len(config.channels))
            for j in range(n)
        } | {
            f"body.{i}.{name}": f"body.{i}.{name}"
            for i in range(len(config.channels))
            for name in ("in_conv", "out_conv")
        }
    table = {"conv_in": "conv_in"}
    for i in range(len(config.channels)):
        table[f"body.{n * i}.in_conv"] = f"body.{i}.in_conv"
        for j in range(n):
            table |= {
                f"body.{n * i + j}.{name}": f"body.{i}.resnets.{j}.{name}" for name in ("block1", "block2")
            }
    return table


def t2i_adapter_config(shapes: Mapping[str, Sequence[int]]) -> T2IAdapterConfig:
    """The config of a T2I-Adapter, from its tensors' shapes. Raises ModelFileError naming the tensor that is missing."""
    from inkwash.weights.shapes import at, count

    light = "conv_in.weight" not in shapes
    blocks = count(shapes, "body.")
    # four levels, as every published one has
    n = count(shapes, "body.0.body.") if light else blocks // 4
    of = [f"body.{i}.out_conv.weight" if light else f"body.{n * i}.block1.weight" for i in range(4)]
    seen = at(shapes, "body.0.in_conv.weight" if light else "conv_in.weight", 4)[1]
    factor = 16 if seen in (256, 768) else 8
    return T2IAdapterConfig(tuple(at(shapes, name, 4)[0] for name in of), n, seen // factor**2, factor, light)


def t2i_adapter_structure(names: Mapping[str, Sequence[int]]) -> T2IAdapterConfig:
    """The fields of a config that the table of names depends on, from diffusers' names."""
    from inkwash.weights.shapes import count

    levels = count(names, "body.")
    return T2IAdapterConfig(
        channels=(1,) * levels,
        num_res_blocks=count(names, "body.0.resnets."),
        light="conv_in.weight" not in names,
    )
