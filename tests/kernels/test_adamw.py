"""One pass over memory gives what clipping, torch's AdamW and an average give one after the other."""

import pytest
import torch
from torch import Tensor

from inkwash.kernels import library
from inkwash.kernels.adamw import adamw
from tests.kernels.test_kernels import needs_kernels, random

SHAPES = ((33,), (64, 64), (1,), (6, 5, 3, 3), (300, 70))
OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "fused": True}


def leaves() -> list[Tensor]:
    made = [random(*shape, dtype=torch.float32) for shape in SHAPES]
    made[3] = made[3].contiguous(memory_format=torch.channels_last)
    return [one.requires_grad_() for one in made]


def teach(parameters: list[Tensor], step: int, but: int | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(parameters):
        p.grad = torch.empty_like(p).normal_(generator=generator) if i != but else None


def trained(
    steps: range, parameters: list[Tensor], optimizer: torch.optim.AdamW, kept: dict[Tensor, Tensor]
) -> None:
    for step in steps:
        teach(
            parameters, step, but=2 if step == 1 else None
        )  # a parameter that learns nothing falls a step behind
        moved = adamw(optimizer, 0.3, kept, 0.25)
        assert len(moved) == sum(p.grad is not None for p in parameters)
        assert not kept.keys() - set(moved) or step == 1


def reference(num: int) -> tuple[list[Tensor], list[Tensor]]:
    parameters = [p.detach().double().requires_grad_() for p in leaves()]
    optimizer = torch.optim.AdamW(parameters, **OPTIONS)
    averages = [p.detach().clone() for p in parameters]
    for step in range(num):
        like = leaves()
        teach(like, step, but=2 if step == 1 else None)
        for p, one in zip(parameters, like, strict=True):
            p.grad = None if one.grad is None else 0.3 * one.grad.double()
        optimizer.step()
        for p, average in zip(parameters, averages, strict=True):
            if p.grad is not None:
                average.lerp_(p.detach(), 0.25)
    return parameters, averages


@needs_kernels
def test_it_is_torchs_step_in_any_number_of_threads() -> None:
    wanted, wanted_averages = reference(5)
    made, threads = [], torch.get_num_threads()
    try:
        for num in (1, 3):
            torch.set_num_threads(num)
            parameters = leaves()
            averages = {p: p.detach().clone() for p in parameters}
            trained(range(5), parameters, torch.optim.AdamW(parameters, **OPTIONS), averages)
            made.append([*parameters, *averages.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    for ours, true in zip(made[0], [*wanted, *wanted_averages], strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


@needs_kernels
def test_torch_goes_on_from_its_state_and_it_from_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = reference(5)
    for first in (True, False):
        parameters = leaves()
        optimizer = torch.optim.AdamW(parameters, **OPTIONS)
        for step in range(5):
            teach(parameters, step, but=2 if step == 1 else None)
            with monkeypatch.context() as patch:
                if (step < 3) != first:
                    patch.setattr(library, "load", lambda: None)
                moved = adamw(optimizer, 0.3, {}, 0.25)
            assert bool(moved) == ((step < 3) == first)
        for ours, true in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("parameter", "options"),
    [
        (torch.zeros(4, dtype=torch.float64), {}),
        (torch.zeros(4, 6).t(), {}),
        (torch.zeros(4), {"amsgrad": True}),
        (torch.zeros(4), {"maximize": True}),
    ],
)
def test_what_does_not_fit_is_torchs(parameter: Tensor, options: dict) -> None:
    parameter = parameter.requires_grad_()
    other = parameter.detach().clone().requires_grad_()
    optimizers = [torch.optim.AdamW([one], 0.1, **options) for one in (parameter, other)]
    parameter.grad, other.grad = torch.ones_like(parameter), torch.full_like(other, 0.5)
    average = parameter.detach().clone()
    assert adamw(optimizers[0], 0.5, {parameter: average}, 0.5) == ()
    optimizers[1].step()
    assert torch.equal(parameter, other) and not average.any()
