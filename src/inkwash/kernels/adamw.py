"""A step of AdamW with clipping and averaging in the same pass over memory; adamw.cpp is its fast path."""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from inkwash.kernels import library

Averages = Mapping[Tensor, Tensor]  # of parameters


@torch.no_grad()
def adamw(optimizer: Optimizer, scale: float, averages: Averages, share: float) -> Collection[Tensor]:
    """Step the optimizer by its parameters' gradients times `scale`, then move their averages by `share` towards them.

    Returns the parameters whose averages were moved: none where there is no kernel for this optimizer and these tensors,
    and torch takes the step.
    """
    taught = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not fits(optimizer, taught, averages):
        if taught:
            torch._foreach_mul_([p.grad for p in taught], scale)  # pyright: ignore[reportPrivateImportUsage]
        optimizer.step()
        return ()
    for group in optimizer.param_groups:
        by_step: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_step.setdefault(counted(optimizer, parameter), []).append(parameter)
        for step, parameters in by_step.items():
            states = [optimizer.state[p] for p in parameters]
            fast(group, step, parameters, states, scale, [averages.get(p) for p in parameters], share)
    return taught


def counted(optimizer: Optimizer, parameter: Tensor) -> float:
    """Number of this step of the parameter. Its state is that of torch's fused AdamW, which can go on from here."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    return state["step"].item()


def fast(
    group: Mapping[str, Any],
    step: float,
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    scale: float,
    averages: Sequence[Tensor | None],
    share: float,
) -> None:
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    size, root = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    kept = 1 - lr * group["weight_decay"]
    rates = (ctypes.c_double * 8)(scale, kept, beta1, beta2, size, root, group["eps"], share)
    grads = [p.grad for p in parameters]
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    num = len(parameters)
    pointers = [
        (ctypes.c_void_p * num)(*(None if one is None else one.data_ptr() for one in column))
        for column in (parameters, grads, means, squares, averages)
    ]
    library.call("adamw", *pointers, (ctypes.c_long * num)(*(p.numel() for p in parameters)), num, rates)


def fits(optimizer: Optimizer, taught: Sequence[Tensor], averages: Averages) -> bool:
    """Return True if the kernel can take the step: the library is there, and each parameter's tensors are float32, on the
    CPU, with equal strides."""
    if not isinstance(optimizer, AdamW) or library.load() is None:
        return False
    if any(group["amsgrad"] or group["maximize"] for group in optimizer.param_groups):
        return False

    def alike(p: Tensor) -> bool:
        moments = [x for name, x in optimizer.state.get(p, {}).items() if name != "step"]
        dense = p.is_contiguous() or (p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last))
        return dense and all(
            x is not None
            and not hasattr(x, "to_local")  # a share of a tensor, whose memory is elsewhere
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.shape == p.shape
            and x.stride() == p.stride()
            for x in (p, p.grad, averages.get(p, p), *moments)
        )

    return all(map(alike, taught))
