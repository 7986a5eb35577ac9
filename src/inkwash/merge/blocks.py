"""Weights of a model for each tensor: by the block of the U-Net, the network, or a part of the tensor's name.

Blocks are named as merge tools name them: BASE (what lies outside of the U-Net's blocks), IN00 to the last input block,
M00, and OUT00 to the last output block: 26 for SD1 and SD2, 20 for SDXL.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator

from inkwash.files import ModelFileError
from inkwash.merge.presets import PRESETS
from inkwash.weights.models.single_names import AUTOENCODER, COND_STAGE, OTHERS, TEXT
from inkwash.weights.names.wrappers import UNET

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
SECOND = "conditioner.embedders.1."
SDXL = f"{UNET}label_emb."
BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.")
SPAN = re.compile(r"(?:BASE|M00|(?:IN|OUT)\d\d)(?:-(?:BASE|M00|(?:IN|OUT)\d\d))?")
FULL = 12  # input blocks of SD1 and SD2, which presets are for
LORA_BLOCKS = {  # that have transformers: the short lists of LoRAs' block weights, by a U-Net's inputs and their length
    (12, 17): "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    (9, 12): "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
}
Map = Literal["supermerger", "sd-mecha"]


def component_of(name: str) -> str | None:
    """The network that a single file's tensor belongs to, one of COMPONENTS; None for what no network takes."""
    if OTHERS.match(name):
        return None
    if name.startswith(UNET):
        return "unet"
    if name.startswith(AUTOENCODER):
        return "vae"
    if name.startswith(SECOND):
        return "text_encoder_2"
    return "text_encoder" if name.startswith((*TEXT, COND_STAGE)) else None


def num_inputs(names: Iterable[str]) -> int:
    """Number of a U-Net's input blocks, which equals that of its output blocks."""
    found = [BLOCK.match(name.removeprefix(UNET)) for name in names if name.startswith(UNET)]
    return 1 + max((int(match[2]) for match in found if match), default=-1)


def block_names(inputs: int) -> list[str]:
    """BASE, IN00 ..., M00, OUT00 ... of a U-Net with so many input blocks."""
    return ["BASE", *(f"IN{i:02}" for i in range(inputs)), "M00", *(f"OUT{i:02}" for i in range(inputs))]


def block_of(name: str, inputs: int, by: Map = "supermerger") -> str:
    """The block of a single file's tensor, as supermerger or as sd-mecha counts.

    They differ in the embeddings of the time and of SDXL's vector: IN00 in the one, BASE in the other.
    """
    inner = name.removeprefix(UNET)
    if inner == name:
        return "BASE"
    if match := BLOCK.match(inner):
        return f"{'IN' if match[1] == 'input_blocks' else 'OUT'}{int(match[2]):02}"
    if inner.startswith("middle_block."):
        return "M00"
    if inner.startswith("out."):
        return f"OUT{inputs - 1:02}"
    embeds = inner.startswith(("time_embed.", "label_emb."))
    return "IN00" if embeds and by == "supermerger" else "BASE"


@dataclass(frozen=True)
class Rule:
    """A weight of its own for the tensors of some blocks whose name has one of some pieces of text in it.

    supermerger's "elemental" rules: IN04-IN08 OUT03:attn1,attn2:0.2. No blocks or no pieces: all; NOT first: all others.
    """

    blocks: frozenset[str]
    without: bool
    pieces: tuple[str, ...]
    weight: float

    @classmethod
    def parse(cls, text: str, inputs: int) -> "Rule":
        """Parse a rule. Raises ValueError for other text, and for a block that the U-Net does not have."""
        fields = text.split(":")
        try:
            where, what, weight = (field.strip() for field in fields)
            number = float(weight)
        except ValueError:
            raise ValueError(f"rule {text!r} is not of the form BLOCKS:PIECES:WEIGHT") from None
        words = re.split(r"[\s,]+", where) if where else []
        without, order, blocks = words[:1] == ["NOT"], block_names(inputs), set()
        for word in words[without:]:
            first, _, last = word.partition("-")
            if not SPAN.fullmatch(word) or first not in order or (last or first) not in order:
                raise ValueError(f"rule {text!r}: {word!r} is not a block of {', '.join(order)}")
            blocks |= set(order[order.index(first) : order.index(last or first) + 1])
        pieces = tuple(piece for piece in re.split(r"[\s,]+", what) if piece)
        return cls(frozenset(blocks), without, pieces, number)

    def fits(self, name: str, block: str) -> bool:
        here = not self.blocks or (block in self.blocks) != self.without
        return here and (not self.pieces or any(piece in name for piece in self.pieces))


def spelled(value: Any) -> Any:
    """A number is a weight for all, a text or list the weights of blocks."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"base": value}
    return {"blocks": value} if isinstance(value, str | list | tuple) else value


class Weights(BaseModel):
    """A parameter of a merge, which may differ between tensors.

    base: of all that nothing below says more of. blocks: a preset's name, or numbers for IN00 to the last OUT, with BASE
    in front or without it, or the 17 (SD1) or 12 (SDXL) of LoRAs' lists, which leave the other blocks the base. components:
    of whole networks, before blocks. rules: see `Rule`; the last one that fits counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: float = 0.5
    blocks: str | tuple[float, ...] | None = None
    block_map: Map = "supermerger"
    components: Mapping[str, float] = {}
    rules: tuple[str, ...] = ()

    @field_validator("components")
    @classmethod
    def known(cls, components: Mapping[str, float]) -> Mapping[str, float]:
        for name in components:
            if name not in COMPONENTS:
                raise ValueError(f"component {name!r} is not one of {', '.join(COMPONENTS)}")
        return components

    @field_validator("blocks")
    @classmethod
    def named(cls, blocks: str | tuple[float, ...] | None) -> str | tuple[float, ...] | None:
        if not isinstance(blocks, str):
            return blocks
        if re.fullmatch(r"[\s\d.,eE+-]+", blocks):
            return tuple(float(number) for number in re.split(r"[\s,]+", blocks.strip(" ,")))
        if blocks.upper() not in PRESETS:
            raise ValueError(f"block weights {blocks!r} are neither numbers nor one of {', '.join(PRESETS)}")
        return blocks.upper()

    @model_validator(mode="after")
    def finite(self) -> Self:
        numbers = [
            self.base,
            *self.components.values(),
            *(() if isinstance(self.blocks, str) else self.blocks or ()),
        ]
        if bad := [number for number in numbers if not isfinite(number)]:
            raise ValueError(f"a weight is {bad[0]}, and not a finite number")
        return self

    def by_block(self, inputs: int) -> dict[str, float]:
        """The weight of each block. Raises ValueError for another number of them than a U-Net has."""
        names = block_names(inputs)
        if self.blocks is None:
            return dict.fromkeys(names, self.base)
        if isinstance(self.blocks, str):
            base, *rest = PRESETS[self.blocks]
            # the first input and output blocks of the larger U-Net, as supermerger fits a preset to SDXL
            values = (base, *rest[:inputs], rest[FULL], *rest[FULL + 1 :][:inputs])
            if inputs > FULL:
                raise ValueError(f"presets are for {FULL} input blocks at most, not {inputs}")
        elif short := LORA_BLOCKS.get((inputs, len(self.blocks))):
            return dict.fromkeys(names, self.base) | dict(zip(short.split(), self.blocks, strict=True))
        else:
            values = self.blocks if len(self.blocks) == len(names) else (self.base, *self.blocks)
        if len(values) != len(names):
            raise ValueError(
                f"block weights: {len(self.blocks)} are given; this U-Net takes {len(names) - 1}, "
                f"{names[1]} to {names[-1]}, or {len(names)} with BASE in front"
            )
        return dict(zip(names, values, strict=True))

    def of(self, names: Iterable[str]) -> "Placed":
        """The weights for the tensors of a checkpoint. Raises ModelFileError where they do not fit its U-Net."""
        inputs = num_inputs(names)
        try:
            return Placed(
                self, inputs, self.by_block(inputs), tuple(Rule.parse(rule, inputs) for rule in self.rules)
            )
        except ValueError as error:
            raise ModelFileError(str(error)) from error


class Strength(Weights):
    """Weights of a share or of an adapter's strength, which is 1 unless it is given."""

    base: float = 1.0


@dataclass(frozen=True)
class Placed:
    """Weights for one kind of U-Net."""

    weights: Weights
    inputs: int
    blocks: Mapping[str, float]
    rules: tuple[Rule, ...]

    def at(self, name: str) -> float:
        """The weight of a tensor by its name in a single file."""
        component, block = component_of(name), block_of(name, self.inputs, self.weights.block_map)
        value = self.blocks[block]
        if component != "unet" and self.weights.block_map == "sd-mecha":
            value = self.weights.base  # networks beside the U-Net are no part of its base block
        value = self.weights.components.get(component or "", value)
        return next((rule.weight for rule in reversed(self.rules) if rule.fits(name, block)), value)


Parameter = Annotated[Weights, BeforeValidator(spelled)]
Share = Annotated[Strength, BeforeValidator(spelled)]
