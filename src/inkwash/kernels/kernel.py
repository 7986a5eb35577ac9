"""A fast path beside its twin in plain torch, and which of them a call takes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from inkwash.kernels import cpu, library
from inkwash.kernels.fastest import fastest

log = logging.getLogger("inkwash.kernels")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # as the library's functions end


@dataclass(frozen=True)
class Kernel:
    """A fast path beside its twin in plain torch; calling it takes the fast one where it can be had.

    plain: the twin. fast: the same of the library and contiguous-enough arguments. fits: whether these arguments
    are what `fast` takes, and faster there. example: arguments that fit, on which the two are compared before the
    first use; 2 % off, and the twin is used from then on. gradient: the same with gradients by the first `inputs`
    arguments alone; it is given the kernel, then the arguments. others: where something learns, the fastest of
    them and of this one is taken, as measured for each shape. frozen: where nothing learns and it fits, it is taken.
    amx: whether it uses AMX where there is one, as torch does; then the faster of it and its twin is taken, as measured for
    each shape.
    Under autocast it takes what already has autocast's type, whatever its parameters have.
    """

    plain: Callable[..., Tensor]
    fast: Callable[..., Tensor]
    fits: Callable[..., bool]
    example: Callable[[], tuple[Any, ...]]
    gradient: type[torch.autograd.Function] | None = None
    inputs: int = 1
    others: "tuple[Kernel, ...]" = ()
    frozen: "Kernel | None" = None
    amx: bool = False

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
        if learn and (others := [one for one in self.others if one.fits(x, *more) and one.works]):
            return self.fastest(learn, others, x, *more)(x, *more)
        if not learn and self.frozen and self.frozen.fits(x, *more) and self.frozen.works:
            return self.frozen.fast(x, *more)
        return self.usual(learn, x, *more)

    def usual(self, learn: Sequence[int], x: Tensor, *more: Any) -> Tensor:
        """Compute by this kernel, or by its twin where it does not fit. learn: indices of what needs gradients."""
        if learn and (self.gradient is None or learn[-1] >= self.inputs):
            return self.plain(x, *more)
        if not self.fits(x, *more) or not self.works:
            return self.plain(x, *more)
        if self.amx and not learn and x.dtype == torch.bfloat16 and library.amx():
            ways = {"ours": partial(self.fast, x, *more), "torch": partial(self.plain, x, *more)}
            return ways[fastest_of_one(self.name, (x, *more), ways)]()
        return self.gradient.apply(self, x, *more) if self.gradient and learn else self.fast(x, *more)

    def fastest(self, learn: Sequence[int], others: "Sequence[Kernel]", *given: Any) -> Callable[..., Tensor]:
        """The kernel, this or another, that is quickest to compute these arguments' result and its gradients by `learn`."""
        ways = {"usual": partial(self.usual, learn)} | {one.name: one for one in others}

        def step(way: Callable[..., Tensor]) -> None:
            leaves = [
                x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in given
            ]
            # what this keeps is not the caller's: checkpoints count what is kept, and the second time nothing is measured
            with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
                made = way(*leaves)
                torch.autograd.grad(made, [leaves[i] for i in learn], made.detach())

        question = f"{', '.join([self.name, *map(described, given)])}, {torch.get_num_threads()} threads"
        return ways[fastest(question, {name: partial(step, way) for name, way in ways.items()})]

    @property
    def name(self) -> str:
        name = self.fast.__name__
        return self.fast.__module__.rpartition(".")[2] if name == "fast" else name.removeprefix("fast_")

    @cached_property
    def works(self) -> bool:
        if library.load() is None:
            return False
        given = self.example()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            made, wanted = self.fast(*given), self.plain(*given)
        if torch.allclose(made, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item()):
            return True
        log.warning("the kernel %s fails its self-check; torch does its work", self.name)
        return False


KNOWN: dict[tuple[object, ...], str] = {}  # answers of fastest_of_one


def fastest_of_one(name: str, given: Sequence[Any], ways: Mapping[str, Callable[[], Tensor]]) -> str:
    """The name of the fastest way for arguments of these shapes, measured once.

    Neither the number of threads nor the size of the batch is part of the question, so that they change no result.
    """
    first = given[0]
    rest = [
        x[0] if isinstance(x, Tensor) and x.ndim == first.ndim > 2 and len(x) == len(first) else x
        for x in given
    ]
    key = name, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in rest)
    if key not in KNOWN:
        KNOWN[key] = fastest(", ".join([name, *map(described, rest)]), ways)
    return KNOWN[key]


def described(x: object) -> str:
    """An argument by shape and type, or as it is."""
    if not isinstance(x, Tensor):
        return str(x)
    kind = str(x.dtype).removeprefix("torch.")
    return f"{'x'.join(map(str, x.shape))} {kind}{' learns' if x.requires_grad else ''}"


def left_to_torch(*given: Tensor) -> bool:
    """Return True if torch is to compute this product, with AMX: in bfloat16, if our library can't use AMX or an input
    needs a gradient, as our backward passes don't use it."""
    if given[0].dtype != torch.bfloat16 or not cpu.has_amx():
        return False
    return not library.amx() or (torch.is_grad_enabled() and any(x.requires_grad for x in given))
