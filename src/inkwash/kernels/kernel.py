"""A fast path beside its twin in plain torch, and which of them a call takes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inkwash.kernels import cpu, library

log = logging.getLogger("inkwash.kernels")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # as the library's functions end


@dataclass(frozen=True)
class Kernel:
    """A fast path beside its twin in plain torch; calling it takes the fast one where it can be had.

    plain: the twin. fast: the same of the library and contiguous-enough arguments. fits: whether these arguments
    are what `fast` takes, and faster there. example: arguments that fit, on which the two are compared before the
    first use; 2 % off, and the twin is used from then on. gradient: the same with gradients by the first `inputs`
    arguments alone; it is given the kernel, then the arguments. taught: the kernel that takes its place where
    something learns, if it fits.
    Under autocast it takes what already has autocast's type, whatever its parameters have.
    """

    plain: Callable[..., Tensor]
    fast: Callable[..., Tensor]
    fits: Callable[..., bool]
    example: Callable[[], tuple[Any, ...]]
    gradient: type[torch.autograd.Function] | None = None
    inputs: int = 1
    taught: "Kernel | None" = None

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        # other devices, compiled graphs, and what autocast has still to cast, are torch's
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.plain(x, *more)
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.get_autocast_dtype("cpu"):
            return self.plain(x, *more)
        learn = (
            [i for i, one in enumerate((x, *more)) if isinstance(one, Tensor) and one.requires_grad]
            if torch.is_grad_enabled()
            else []
        )
        if learn and self.taught and self.taught.fits(x, *more):
            return self.taught(x, *more)
        if learn and (self.gradient is None or learn[-1] >= self.inputs):
            return self.plain(x, *more)
        if not self.fits(x, *more) or not self.works:
            return self.plain(x, *more)
        return self.gradient.apply(self, x, *more) if self.gradient and learn else self.fast(x, *more)

    @cached_property
    def works(self) -> bool:
        if library.load() is None:
            return False
        given = self.example()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            made, wanted = self.fast(*given), self.plain(*given)
        if torch.allclose(made, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item()):
            return True
        log.warning("the kernel %s fails its self-check; torch does its work", self.plain.__name__)
        return False


def left_to_torch(*given: Tensor) -> bool:
    """Whether torch's products, which use AMX where the processor has it, are to do this: in bfloat16, where ours can't
    use it, and where something learns, as our gradients don't."""
    if given[0].dtype != torch.bfloat16 or not cpu.has_amx():
        return False
    return not library.amx() or torch.is_grad_enabled() and any(x.requires_grad for x in given)
