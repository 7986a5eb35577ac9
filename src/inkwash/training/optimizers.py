"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Groups = list[dict[str, Any]]  # parameters with their settings
# a schedule's factor of the rate at progress 0 to 1
LR_SCHEDULES: Mapping[str, Callable[[float, int], float]] = {
    "constant": lambda progress, cycles: 1.0,
    "linear": lambda progress, cycles: 1 - progress,
    "cosine": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * progress)),
    "restarts": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * (progress * cycles % 1))),
    "polynomial": lambda progress, cycles: (1 - progress) ** 2,
}


def spare_compiler() -> None:
    """Keep torch's optimizers from importing torch's compiler merely to say that it must not compile them: it takes a second
    and 70 MB. A step of torch's own, where `kernels.adamw` has none, imports it all the same."""
    for method in (
        Optimizer.add_param_group,
        Optimizer.zero_grad,
        Optimizer.state_dict,
        Optimizer.load_state_dict,
    ):
        if own := getattr(method, "__wrapped__", None):
            vars(own).setdefault("__dynamo_disable", own)


def adamw(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """Loshchilov and Hutter 2019."""
    spare_compiler()
    return torch.optim.AdamW(groups, lr, betas=betas, weight_decay=weight_decay, fused=True)


def adafactor(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """Shazeer and Stern 2018: second moments by rows and columns, no first moments."""
    return torch.optim.Adafactor(groups, lr, weight_decay=weight_decay)


def sgd(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    return torch.optim.SGD(groups, lr, momentum=betas[0], weight_decay=weight_decay)


def adamw8bit(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """AdamW with moments in eight bits (Dettmers et al. 2022), of torchao. Raises ValueError where that is not installed."""
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("optimizer adamw8bit needs the package torchao: pip install torchao") from None
    return AdamW8bit(groups, lr, betas=betas, weight_decay=weight_decay)


def prodigy(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """Mishchenko and Defazio 2024, which finds the rate itself: lr 1 is usual. Raises ValueError without prodigyopt."""
    try:
        from prodigyopt import Prodigy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("optimizer prodigy needs the package prodigyopt: pip install prodigyopt") from None
    return Prodigy(groups, lr, betas=betas, weight_decay=weight_decay)


def muon(groups: Groups, lr: float, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """Jordan et al. 2024, for matrices. Its updates, of equal singular values, are scaled to AdamW's size, so that what few
    examples teach moves as far as what all share."""
    return torch.optim.Muon(
        groups, lr, momentum=0.9, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )


OPTIMIZERS = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adafactor": adafactor,
    "prodigy": prodigy,
    "sgd": sgd,
    "muon": muon,
}


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return True if Muon trains the parameter: a matrix of a transformer or of an adapter."""
    return parameter.ndim == 2 and ("transformer" in name or "lora" in name)


def grouped(
    named: Iterable[tuple[str, nn.Parameter]], factor_of: Callable[[str], float] = lambda name: 1.0
) -> Groups:
    """The parameters by the factors of their rate, which `set_rate` applies."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(factor_of(name), []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every group the rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
