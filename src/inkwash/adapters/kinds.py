"""Kinds of changes of one layer: a class for each, with the tensors under the names that files have.

A matrix or a convolution is linear in its parameters, so a change of its weight W (out, in, ...) is a layer of its own,
with the change as its weight. Every class says the change; LoRA, which most files are, also applies it without making it.
out, in: the layer's channels; r: the rank; ... a convolution's kernel.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.adapters.change import Change, applied, product, whole


@dataclass(frozen=True, kw_only=True)
class LoRA(Change):
    """up @ down (Hu et al. 2021), for convolutions LoCon; lora_mid (r, r, ...): the kernel of its Tucker form."""

    lora_down: Tensor  # (r, in, ...)
    lora_up: Tensor  # (out, r, 1, 1)
    lora_mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.lora_down.shape[0]

    def fits_shape(self, shape: torch.Size) -> bool:
        if self.dora_scale is not None or self.lora_mid is not None:
            return super().fits_shape(shape)
        up, down = (
            self.lora_up,
            self.lora_down,
        )  # without torch's machinery for shapes, which takes a second to import
        return up.numel() == shape[0] * self.rank and down.numel() == self.rank * shape[1:].numel()

    def difference(self, weight: Tensor) -> Tensor:
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        if self.lora_mid is None:
            return up @ down
        return torch.einsum("or, rs..., si -> oi...", up, self.lora_mid, down)

    def forward(self, layer: nn.Linear | nn.Conv2d, x: Tensor, strength: float) -> Tensor:
        if self.dora_scale is not None or self.lora_mid is not None:
            return super().forward(layer, x, strength)
        down = self.lora_down.to(x.dtype).reshape(self.rank, *layer.weight.shape[1:])
        up = self.lora_up.to(x.dtype).reshape(layer.weight.shape[0], self.rank, *[1] * (down.ndim - 2))
        h = strength * self.scale * applied(layer, x, down, None)
        offset = None if self.diff_b is None else strength * self.diff_b
        return F.linear(h, up, offset) if down.ndim == 2 else F.conv2d(h, up, offset)


@dataclass(frozen=True, kw_only=True)
class LoHa(Change):
    """(w1a @ w1b) * (w2a @ w2b), elementwise (Hyeon-Woo et al. 2022); hada_t1, hada_t2: kernels of the Tucker form,
    whose w_a are (r, out) and not (out, r)."""

    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor
    hada_t1: Tensor | None = None
    hada_t2: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.hada_w1_b.shape[0]

    def difference(self, weight: Tensor) -> Tensor:
        first = product(self.hada_w1_a, self.hada_w1_b, self.hada_t1)
        return first * product(self.hada_w2_a, self.hada_w2_b, self.hada_t2)


@dataclass(frozen=True, kw_only=True)
class LoKr(Change):
    """The Kronecker product of w1 and w2, each whole or of two factors (Yeh et al. 2024, section 3.2)."""

    lokr_w1: Tensor | None = None
    lokr_w1_a: Tensor | None = None
    lokr_w1_b: Tensor | None = None
    lokr_w2: Tensor | None = None
    lokr_w2_a: Tensor | None = None
    lokr_w2_b: Tensor | None = None
    lokr_t2: Tensor | None = None

    @property
    def rank(self) -> int | None:
        factor = self.lokr_w1_b if self.lokr_w1_b is not None else self.lokr_w2_b
        return None if factor is None else factor.shape[0]

    def difference(self, weight: Tensor) -> Tensor:
        w1 = whole(self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b)
        w2 = whole(self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2)
        w2 = w2.reshape(w2.shape[0], -1, *weight.shape[2:])  # its factors hold a convolution's as a matrix
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())


@dataclass(frozen=True, kw_only=True)
class GLoRA(Change):
    """W a1 a2 + b1 b2 (Chavan et al. 2023). Older files have the factors in the other order; shapes say which."""

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor

    @property
    def ordered(self) -> tuple[Tensor, ...]:
        """a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in)."""
        a1, a2, b1, b2 = (factor.flatten(1) for factor in (self.a1, self.a2, self.b1, self.b2))
        return (
            (a1, a2, b1, b2) if a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0] else (a2, a1, b2, b1)
        )

    @property
    def rank(self) -> int:
        return self.ordered[1].shape[0]

    def difference(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = self.ordered
        return torch.einsum("oi..., ij -> oj...", weight, a1 @ a2) + (b1 @ b2).reshape(weight.shape)


@dataclass(frozen=True, kw_only=True)
class IA3(Change):
    """W times a factor of each output channel, or of each input channel (Liu et al. 2022, section 3.3)."""

    weight: Tensor
    on_input: bool

    def difference(self, weight: Tensor) -> Tensor:
        axes = [1] * weight.ndim
        axes[1 if self.on_input else 0] = -1
        return weight * self.weight.reshape(axes)


@dataclass(frozen=True, kw_only=True)
class OFT(Change):
    """Output channels turned block by block by the Cayley transforms of oft_blocks (k, b, b) (Qiu et al. 2023).

    alpha times `out` bounds the blocks' norm; 0 is no bound. rescale: a factor of each output channel.
    """

    oft_blocks: Tensor
    rescale: Tensor | None = None

    def turns(self, weight: Tensor) -> Tensor:
        """The orthogonal matrices, of the blocks' shape."""
        skew = (self.oft_blocks - self.oft_blocks.mT).float()
        bound = (self.alpha or 0) * weight.shape[0]
        if bound:
            skew = skew * (bound / (skew.norm() + 1e-8)).clamp(max=1)
        eye = torch.eye(skew.shape[-1], device=skew.device)
        return ((eye + skew) @ torch.linalg.inv(eye - skew)).to(weight.dtype)

    def rescaled(self, weight: Tensor) -> Tensor:
        return weight if self.rescale is None else weight * self.rescale.reshape(-1, *[1] * (weight.ndim - 1))

    def difference(self, weight: Tensor) -> Tensor:
        blocks = weight.unflatten(0, self.oft_blocks.shape[:2])
        turned = torch.einsum("knm, kn... -> km...", self.turns(weight), blocks).flatten(0, 1)
        return self.rescaled(turned) - weight


@dataclass(frozen=True, kw_only=True)
class BOFT(OFT):
    """OFT in m stages, each of which turns other channels together (Liu et al. 2024, section 4).

    oft_blocks (m, k, b, b): in stage i a block is of two runs of b/2 channels that lie 2^i b/2 apart, interleaved.
    A strength weighs each stage against no turn, as LyCORIS has it, and not the difference that they make.
    """

    @classmethod
    def matches(cls, tensors: dict[str, Any]) -> bool:
        return super().matches(tensors) and tensors["oft_blocks"].ndim == 4

    def difference(self, weight: Tensor) -> Tensor:
        return self.delta(weight)

    def delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        width = self.oft_blocks.shape[-1]
        eye = torch.eye(width, device=weight.device, dtype=weight.dtype)
        turned = weight
        for i, turns in enumerate(torch.lerp(eye, self.turns(weight), strength)):
            near = (-1, 2, 2**i * (width // 2))
            blocks = turned.unflatten(0, near).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, width))
            blocks = torch.einsum("knm, km... -> kn...", turns, blocks).flatten(0, 1)
            turned = blocks.unflatten(0, (-1, near[2], 2)).transpose(1, 2).flatten(0, 2)
        return self.whole(weight, self.rescaled(turned) - weight)


@dataclass(frozen=True, kw_only=True)
class InputOFT(Change):
    """Inputs turned block by block by the Cayley transforms (I - S)(I + S)^-1 of skew matrices, as peft has it.

    oft_in: S, (k, b, b), or (1, b, b) for one that all blocks share. terms: of the Neumann series that new files were
    trained with in place of the inverse, None for the inverse itself.
    """

    oft_in: Tensor
    terms: int | None = None

    def turns(self) -> Tensor:
        """The matrices that inputs (as rows) are multiplied by."""
        skew = self.oft_in.float()
        if self.terms is None:
            return cayley(skew)
        eye = torch.eye(skew.shape[-1], device=skew.device)
        if self.terms < 3:
            return eye + 2 * skew if self.terms == 2 else eye.expand_as(skew)
        power = skew @ skew
        series = eye + 2 * skew + 2 * power
        for _ in range(3, self.terms - 1):
            power = power @ skew
            series = series + 2 * power
        return series + power @ skew

    def difference(self, weight: Tensor) -> Tensor:
        if weight.ndim != 2:
            raise ValueError("peft's OFT of a convolution is not supported")
        width = self.oft_in.shape[-1]
        blocks = weight.unflatten(1, (-1, width))
        turns = self.turns().to(weight).expand(blocks.shape[1], -1, -1)
        return torch.einsum("okc, knc -> okn", blocks, turns).flatten(1) - weight


@dataclass(frozen=True, kw_only=True)
class InputBOFT(Change):
    """Inputs turned in m stages, each of which turns others together, and outputs scaled, as peft has BOFT.

    boft_in (m, k, b, b): skew matrices; in stage i a block is of two runs of b/2 inputs that lie 2^i b/2 apart, one after
    the other. A convolution's inputs are those of all its kernel's places. boft_s: a factor of each output channel.
    """

    boft_in: Tensor
    boft_s: Tensor

    def difference(self, weight: Tensor) -> Tensor:
        width = self.boft_in.shape[-1]
        turned = weight.flatten(1)
        for i, turns in enumerate(cayley(self.boft_in.float()).to(weight)):
            near = (-1, 2, 2**i, width // 2) if i else (-1, 1, 1, width)
            blocks = turned.unflatten(1, near).transpose(2, 3).flatten(1).unflatten(1, (-1, width))
            blocks = torch.einsum("okc, knc -> okn", blocks, turns).flatten(1)
            turned = blocks.unflatten(1, (-1, near[2], near[1], near[3])).transpose(2, 3).flatten(1)
        return (turned * self.boft_s.reshape(-1, 1)).reshape(weight.shape) - weight


def cayley(skew: Tensor) -> Tensor:
    """(I - S)(I + S)^-1 of skew matrices (..., b, b), orthogonal."""
    eye = torch.eye(skew.shape[-1], device=skew.device)
    return torch.linalg.solve(eye + skew, eye - skew, left=False)


@dataclass(frozen=True, kw_only=True)
class Full(Change):
    """The change itself, of a convolution, a matrix, a norm or a bias alone."""

    diff: Tensor | None = None

    def difference(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if self.diff is None else self.diff


@dataclass(frozen=True, kw_only=True)
class Replaced(Change):
    """Another weight in W's place."""

    set_weight: Tensor

    def difference(self, weight: Tensor) -> Tensor:
        return self.set_weight.reshape(weight.shape) - weight


KINDS: tuple[type[Change], ...] = (
    LoRA,
    LoHa,
    GLoRA,
    IA3,
    BOFT,
    OFT,
    InputOFT,
    InputBOFT,
    Replaced,
    Full,
    LoKr,
)


def change_of(tensors: dict[str, Any]) -> Change:
    """The change that has these tensors. Raises ValueError where no kind does."""
    for kind in KINDS:
        if kind.matches(tensors):
            return kind(**tensors)
    raise ValueError(f"{', '.join(sorted(tensors))} are together no change of a known kind")
