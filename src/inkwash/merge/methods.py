"""Methods that merge tensors: functions of a tensor from each model, and the table of them by name.

a, b, c: the same tensor of the first, second and third model, in float32; models: of any number. alpha, beta, gamma,
density: numbers that may differ between tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inkwash.merge import modes, tasks


def weighted_sum(a: Tensor, b: Tensor, *, alpha: float) -> Tensor:
    """(1 - alpha) A + alpha B; at 0 and 1 exactly A and B."""
    if alpha in (0, 1):
        return b if alpha else a
    return torch.lerp(a, b, alpha)


def add_difference(a: Tensor, b: Tensor, c: Tensor, *, alpha: float) -> Tensor:
    """A + alpha (B - C)."""
    return torch.add(a, b - c, alpha=alpha) if alpha else a


def triple_sum(a: Tensor, b: Tensor, c: Tensor, *, alpha: float, beta: float) -> Tensor:
    """(1 - alpha - beta) A + alpha B + beta C."""
    return (1 - alpha - beta) * a + alpha * b + beta * c


def sum_twice(a: Tensor, b: Tensor, c: Tensor, *, alpha: float, beta: float) -> Tensor:
    """(1 - beta) ((1 - alpha) A + alpha B) + beta C."""
    return weighted_sum(weighted_sum(a, b, alpha=alpha), c, alpha=beta)


def slerp(a: Tensor, b: Tensor, *, alpha: float) -> Tensor:
    """From A to B along the arc between their directions (Shoemake 1985), or along the line where they point alike."""
    if alpha in (0, 1):
        return b if alpha else a
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    cosine = torch.dot(a.flatten(), b.flatten()) / norms
    if not norms or cosine.abs() > 0.9995:
        return torch.lerp(a, b, alpha)
    angle = torch.arccos(cosine)
    return (torch.sin((1 - alpha) * angle) * a + torch.sin(alpha * angle) * b) / torch.sin(angle)


def average(*models: Tensor, shares: tuple[float, ...]) -> Tensor:
    """The mean, weighted by shares."""
    total = sum(shares)
    if not total:
        raise ValueError("the shares of an average add up to 0")
    return torch.stack([share / total * model for share, model in zip(shares, models, strict=True)]).sum(0)


def geometric_median(*models: Tensor, shares: tuple[float, ...]) -> Tensor:
    """The point whose distances from all add up to the least, by Weiszfeld's iteration."""
    stack, weights = torch.stack([model.flatten() for model in models]), torch.tensor(shares)
    median = (weights / weights.sum()) @ stack
    for _ in range(100):
        inverse = weights / torch.linalg.vector_norm(stack - median, dim=1).clamp_min(1e-12)
        old, median = median, (inverse / inverse.sum()) @ stack
        if torch.linalg.vector_norm(median - old) <= 1e-7 * torch.linalg.vector_norm(median):
            break
    return median.reshape(models[0].shape)


def model_stock(a: Tensor, *models: Tensor) -> Tensor:
    """Between the base A and the mean of models that were tuned from it, as far as the angle between their differences
    from A says (Jang et al. 2024, equation 4 and its form for N models)."""
    differences = torch.stack([(model - a).flatten() for model in models])
    units = torch.nn.functional.normalize(differences, dim=1)
    cosines = (units @ units.T)[tuple(torch.triu_indices(len(models), len(models), 1))]
    cosine, num = cosines.mean().clamp(0, 1), len(models)
    share = num * cosine / (1 + (num - 1) * cosine)
    return a + share * differences.mean(0).reshape(a.shape)


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def subtract(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def scale(a: Tensor, *, alpha: float) -> Tensor:
    """alpha A, of a difference or, as supermerger's "self", of a model."""
    return alpha * a


@dataclass(frozen=True)
class Method:
    """inputs: the least and the largest number of models. parameters: with their defaults. shares: whether each model but
    the base may have a weight of its own. based: whether the first is the base. random: whether it draws. survey: what it
    has to know of all tensors before, made of the values that `sample` gives of each. skip_vae: the autoencoder stays A's.
    by_value: whether a result's value depends on the models' values at its place alone. rounds_once: whether it computes
    tensors of half precision in float32 and rounds the result alone. aligns: whether the second model's hidden units are
    first put in the order of the first one's.
    """

    run: Callable[..., Tensor]
    inputs: tuple[int, int | None]
    parameters: Mapping[str, float] = field(default_factory=dict)
    shares: bool = False
    based: bool = True
    random: bool = False
    sample: Callable[..., Tensor] | None = None
    survey: Callable[[Tensor], object] | None = None
    skip_vae: bool = False
    by_value: bool = False
    rounds_once: bool = False
    aligns: bool = False


HALF = {"alpha": 0.5}
TASKS = {"alpha": 1.0, "density": 0.5}
METHODS: Mapping[str, Method] = {
    "weighted_sum": Method(weighted_sum, (2, 2), HALF, by_value=True, rounds_once=True),
    "add_difference": Method(add_difference, (3, 3), {"alpha": 1.0}, by_value=True),
    "triple_sum": Method(triple_sum, (3, 3), {"alpha": 0.25, "beta": 0.25}, by_value=True),
    "sum_twice": Method(sum_twice, (3, 3), {"alpha": 0.5, "beta": 0.5}, by_value=True),
    "rebasin": Method(weighted_sum, (2, 2), HALF, by_value=True, aligns=True),
    "slerp": Method(slerp, (2, 2), HALF),
    "average": Method(average, (2, None), shares=True, based=False, by_value=True),
    "geometric_median": Method(geometric_median, (2, None), shares=True, based=False),
    "model_stock": Method(model_stock, (3, None)),
    "task_arithmetic": Method(tasks.task_arithmetic, (2, None), {"alpha": 1.0}, shares=True, by_value=True),
    "ties": Method(tasks.ties, (2, None), TASKS, shares=True),
    "dare": Method(tasks.dare, (2, None), TASKS, shares=True, random=True),
    "dare_ties": Method(tasks.dare_ties, (2, None), TASKS, shares=True, random=True),
    "della": Method(tasks.della, (2, None), TASKS | {"epsilon": 0.2}, shares=True, random=True),
    "cosine_a": Method(
        modes.cosine_a, (2, 2), HALF, sample=modes.cosines, survey=modes.middle_range, skip_vae=True
    ),
    "cosine_b": Method(
        modes.cosine_b, (2, 2), HALF, sample=modes.cosines, survey=modes.middle_range, skip_vae=True
    ),
    "train_difference": Method(modes.train_difference, (3, 3), {"alpha": 1.0}, by_value=True),
    "smooth_add": Method(modes.smooth_add, (3, 3), {"alpha": 1.0}),
    "extract": Method(modes.extract, (3, 3), {"alpha": 0.5, "beta": 0.0, "gamma": 15.0}),
    "tensor": Method(modes.swap_rows, (2, 2), {"alpha": 0.5, "beta": 0.0}),
    "tensor2": Method(modes.swap_columns, (2, 2), {"alpha": 0.5, "beta": 0.0}),
    "self": Method(scale, (1, 1), {"alpha": 1.0}, by_value=True),
    "add": Method(add, (2, 2), by_value=True),
    "subtract": Method(subtract, (2, 2), by_value=True),
}
