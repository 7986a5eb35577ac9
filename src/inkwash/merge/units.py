"""Hidden units of a model's networks, and where their weights lie: what may change places without changing the function.

A permutation of units is exact where all that makes them and all that takes them is permuted alike. A GroupNorm lets units
change places within its groups, and its groups as wholes; an attention those of a head, and its heads as wholes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

from torch import nn

from inkwash.models.autoencoder import AttnBlock, Autoencoder, Decoder, Encoder, Middle, ResnetBlock
from inkwash.models.clip import CLIPText
from inkwash.models.unet import UNet
from inkwash.nn.attention import (
    AttentionBlock,
    BasicTransformerBlock,
    SpatialTransformer,
    TextAttentionBlock,
)
from inkwash.nn.blocks import Downsample, ResBlock, Upsample


@dataclass(frozen=True)
class Place:
    """Location of units: in a tensor, along an axis, from `start` on."""

    name: str
    axis: int
    start: int = 0


@dataclass(eq=False)
class Units:
    """Units that have one order wherever they lie.

    norms: of each norm, the units before which a group of it ends. shared: whether groups hold other units too.
    """

    size: int
    places: list[Place] = field(default_factory=list)
    norms: set[frozenset[int]] = field(default_factory=set)
    shared: bool = False

    @property
    def cells(self) -> list[range]:
        """Runs of units that may change places with one another."""
        ends = {0, self.size}.union(*self.norms)
        return [range(*pair) for pair in pairwise(sorted(ends))]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are matched at once. blocks: how many blocks change places as wholes, the same ones in all members; 0:
    units stay within their cells."""

    members: tuple[Units, ...]
    blocks: int

    @classmethod
    def of(cls, units: Units) -> "Group":
        whole = not units.shared and len(units.norms) <= 1
        return cls((units,), len(units.cells) if whole else 0)


Wire = list[Units]  # side by side along an axis


class Walk:
    """Goes through a network from its inputs to its outputs, which keep their order. prefix: of its tensors' names."""

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.units: list[Units] = []
        self.attentions: list[Group] = []

    @property
    def groups(self) -> list[Group]:
        return [*map(Group.of, self.units), *self.attentions]

    def new(self, size: int) -> Wire:
        self.units.append(Units(size))
        return self.units[-1:]

    def at(self, wire: Wire, name: str, axis: int = 0, start: int = 0) -> None:
        for units in wire:
            units.places.append(Place(self.prefix + name, axis, start))
            start += units.size

    def layer(self, name: str, before: Wire, after: Wire, *, bias: bool = True) -> None:
        """A convolution or linear layer from one wire to another."""
        self.at(before, f"{name}.weight", 1)
        self.at(after, f"{name}.weight")
        if bias:
            self.at(after, f"{name}.bias")

    def norm(self, name: str, wire: Wire, groups: int = 1) -> None:
        """A norm over groups of a wire's units, or over all of them."""
        self.at(wire, f"{name}.weight")
        self.at(wire, f"{name}.bias")
        total, start = sum(units.size for units in wire), 0
        for units in wire:
            ends = range(0, total, total // groups)
            inside = frozenset(end - start for end in ends if 0 < end - start < units.size)
            if inside:
                units.norms.add(inside)
                units.shared |= len(wire) > 1
            start += units.size

    def hidden(self, first: str, last: str, before: Wire, after: Wire, size: int) -> None:
        """Two layers with a function of each unit between them."""
        between = self.new(size)
        self.layer(first, before, between)
        self.layer(last, between, after)

    def attention(
        self, names: Iterable[str], before: Wire, keys: Wire, after: Wire, heads: int, *, bias: bool = False
    ) -> None:
        """Layers of queries, keys, values and the output: heads change places, and within one the units of queries and
        keys, or of values and output."""
        q, k, v, out = names
        size = sum(units.size for units in after)
        alike, carried = Units(size), Units(size)
        for name, source, units in ((q, before, alike), (k, keys, alike), (v, keys, carried)):
            self.layer(name, source, [units], bias=bias)
        self.layer(out, [carried], after)
        self.attentions.append(Group((alike, carried), heads))


# ---------------------------------------------------------------- the U-Net


def unet_units(walk: Walk, unet: UNet, context: Wire) -> None:
    """context: its units, none for a context that keeps its order."""
    c = unet.config
    emb = walk.new(4 * c.channels)
    embedders = (
        ["time_embed"] + ["label_emb.0"] * (c.vector_dim is not None) + ["aug_proj"] * c.level_embedding
    )
    for name in embedders:
        walk.hidden(f"{name}.0", f"{name}.2", [], emb, 4 * c.channels)
    if c.num_classes is not None:
        walk.at(emb, "label_emb.weight", 1)
    if c.text_dim is not None:
        walk.layer("encoder_pooling.2", [], emb)
        walk.norm("encoder_pooling.3", emb)
    wire: Wire = []
    skips: list[Wire] = []
    for i, block in enumerate(unet.input_blocks):
        wire = block_units(walk, f"input_blocks.{i}", block, wire, emb, context)
        skips.append(wire)
    wire = block_units(walk, "middle_block", unet.middle_block, wire, emb, context)
    for i, block in enumerate(unet.output_blocks):
        wire = block_units(walk, f"output_blocks.{i}", block, wire + skips.pop(), emb, context)
    walk.norm("out.0", wire, c.norm_groups)
    walk.layer("out.2", wire, [], bias=False)


def block_units(walk: Walk, name: str, block: Any, wire: Wire, emb: Wire, context: Wire) -> Wire:
    for i, layer in enumerate(block):
        at = f"{name}.{i}"
        if isinstance(layer, ResBlock):
            wire = res_block(walk, at, layer, wire, emb)
        elif isinstance(layer, SpatialTransformer):
            transformer(walk, at, layer, wire, context)
        elif isinstance(
            layer, AttentionBlock | TextAttentionBlock
        ):  # heads' parts lie in turns: they keep their order
            walk.norm(f"{at}.norm", wire, layer.norm.num_groups)
            walk.layer(f"{at}.qkv", wire, [])
            walk.layer(f"{at}.proj_out", [], wire)
        else:
            inner = {Downsample: ".op", Upsample: ".conv"}.get(type(layer), "")
            size = layer.get_submodule(inner[1:]).out_channels
            before, wire = wire, walk.new(size)
            walk.layer(f"{at}{inner}", before, wire)
    return wire


def res_block(walk: Walk, name: str, block: Any, wire: Wire, emb: Wire) -> Wire:
    norm, size = block.out_layers[0], block.out_layers[3].out_channels
    between = walk.new(size)
    walk.norm(f"{name}.in_layers.0", wire, norm.num_groups)
    walk.layer(f"{name}.in_layers.2", wire, between)
    walk.layer(f"{name}.emb_layers.1", emb, between)
    if block.scale_shift:
        walk.at(between, f"{name}.emb_layers.1.weight", start=size)
        walk.at(between, f"{name}.emb_layers.1.bias", start=size)
    walk.norm(f"{name}.out_layers.0", between, norm.num_groups)
    before = wire
    if not isinstance(block.skip_connection, nn.Identity):
        wire = walk.new(size)
        walk.layer(f"{name}.skip_connection", before, wire)
    walk.layer(f"{name}.out_layers.3", between, wire)
    return wire


def transformer(walk: Walk, name: str, layer: SpatialTransformer, wire: Wire, context: Wire) -> None:
    size = sum(units.size for units in wire)
    inner = walk.new(size)
    walk.norm(f"{name}.norm", wire, layer.norm.num_groups)
    walk.layer(f"{name}.proj_in", wire, inner)
    for i, block in enumerate(layer.transformer_blocks):
        assert isinstance(block, BasicTransformerBlock)
        at = f"{name}.transformer_blocks.{i}"
        for norm in ("norm1", "norm2", "norm3"):
            walk.norm(f"{at}.{norm}", inner)
        for attention, keys in (("attn1", context if block.only_cross else inner), ("attn2", context)):
            names = [f"{at}.{attention}.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")]
            walk.attention(names, inner, keys, inner, block.attn1.num_heads)
        hidden = 4 * size
        walk.hidden(f"{at}.ff.net.0.proj", f"{at}.ff.net.2", inner, inner, hidden)
        for part in ("weight", "bias"):  # the gates
            walk.at(walk.units[-1:], f"{at}.ff.net.0.proj.{part}", start=hidden)
    walk.layer(f"{name}.proj_out", inner, wire)


# ---------------------------------------------------------------- autoencoder and text encoder


def autoencoder_units(walk: Walk, stage: Autoencoder) -> None:
    c = stage.config
    moments, codes = walk.new(stage.encoder.conv_out.out_channels), walk.new(c.latent_channels)
    encoder, decoder = stage.encoder, stage.decoder
    wire = walk.new(encoder.conv_in.out_channels)
    walk.layer("encoder.conv_in", [], wire)
    for i, level in enumerate(encoder.down):
        wire = level_units(walk, f"encoder.down.{i}", level, wire)
    last_units(walk, "encoder", encoder, middle(walk, "encoder.mid", encoder.mid, wire), moments)
    walk.layer("quant_conv", moments, [], bias=False)
    walk.layer("post_quant_conv", [], codes)
    wire = walk.new(decoder.conv_in.out_channels)
    walk.layer("decoder.conv_in", codes, wire)
    wire = middle(walk, "decoder.mid", decoder.mid, wire)
    for i, level in reversed(list(enumerate(decoder.up))):
        wire = level_units(walk, f"decoder.up.{i}", level, wire)
    last_units(walk, "decoder", decoder, wire, [])


def last_units(walk: Walk, name: str, half: Encoder | Decoder, wire: Wire, after: Wire) -> None:
    walk.norm(f"{name}.norm_out", wire, half.norm_out.num_groups)
    walk.layer(f"{name}.conv_out", wire, after)


def level_units(walk: Walk, name: str, level: Any, wire: Wire) -> Wire:
    for i, (block, attention) in enumerate(zip_longest(level.block, level.attn)):
        wire = resnet_block(walk, f"{name}.block.{i}", block, wire)
        if attention:
            one_head(walk, f"{name}.attn.{i}", attention, wire)
    if level.resample:
        before, wire = wire, walk.new(sum(units.size for units in wire))
        walk.layer(f"{name}.{level.resample}.conv", before, wire)
    return wire


def middle(walk: Walk, name: str, mid: Middle, wire: Wire) -> Wire:
    wire = resnet_block(walk, f"{name}.block_1", mid.block_1, wire)
    if hasattr(mid, "attn_1"):
        one_head(walk, f"{name}.attn_1", mid.attn_1, wire)
    return resnet_block(walk, f"{name}.block_2", mid.block_2, wire)


def resnet_block(walk: Walk, name: str, block: ResnetBlock, wire: Wire) -> Wire:
    size = block.conv1.out_channels
    before, between = wire, walk.new(size)
    walk.norm(f"{name}.norm1", wire, block.norm1.num_groups)
    walk.layer(f"{name}.conv1", wire, between)
    walk.norm(f"{name}.norm2", between, block.norm2.num_groups)
    if hasattr(block, "nin_shortcut"):
        wire = walk.new(size)
        walk.layer(f"{name}.nin_shortcut", before, wire)
    walk.layer(f"{name}.conv2", between, wire)
    return wire


def one_head(walk: Walk, name: str, block: AttnBlock, wire: Wire) -> None:
    walk.norm(f"{name}.norm", wire, block.norm.num_groups)
    names = [f"{name}.{part}" for part in ("q", "k", "v", "proj_out")]
    walk.attention(names, wire, wire, wire, heads=1, bias=True)


def text_units(walk: Walk, text: CLIPText) -> Wire:
    """Collect a text encoder's units. Returns the context's."""
    c = text.config
    wire = walk.new(c.width)
    for name in ("token_embedding", "position_embedding"):
        walk.at(wire, f"text_model.embeddings.{name}.weight", 1)
    for i in range(c.num_layers):
        at = f"text_model.encoder.layers.{i}"
        names = [f"{at}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        walk.norm(f"{at}.layer_norm1", wire)
        walk.attention(names, wire, wire, wire, c.num_heads, bias=True)
        walk.norm(f"{at}.layer_norm2", wire)
        walk.hidden(f"{at}.mlp.fc1", f"{at}.mlp.fc2", wire, wire, c.mlp_width)
    walk.norm("text_model.final_layer_norm", wire)
    if c.projection_dim is not None:
        walk.layer("text_projection", wire, [], bias=False)
    return wire
