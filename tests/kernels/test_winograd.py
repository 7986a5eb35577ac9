"""Convolutions in fewer products, and their gradients, are those of torch in float64 but for bfloat16's rounding."""

import importlib
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inkwash.kernels import conv2d, products, upsample, winograd
from inkwash.kernels.convolve import conv2d_products, conv2d_winograd
from inkwash.kernels.upsample import upsample_winograd
from tests.kernels.test_kernels import BF16, F32, few, needs_kernels, random, sizes

last = {"memory_format": torch.channels_last}
pytestmark = needs_kernels


def learned(call: Callable[..., Tensor], *given: Tensor | None) -> list[Tensor]:
    """A result, and its gradients by all tensors that are given."""
    leaves = [None if one is None else one.detach().clone().requires_grad_() for one in given]
    y = call(*leaves)
    y.backward(random(*y.shape, dtype=BF16).to(y.dtype))
    found = [leaf for leaf in leaves if leaf is not None]
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in found)
    return [y.detach(), *(leaf.grad for leaf in found if leaf.grad is not None)]


def fast(x: Tensor, weight: Tensor, bias: Tensor | None, doubled: bool) -> list[Tensor]:
    kernel, more = (upsample_winograd, ()) if doubled else (conv2d_winograd, (1, 1))
    assert kernel.gradient is not None
    return learned(lambda *given: kernel.gradient.apply(kernel, *given, *more), x, weight, bias)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, doubled: bool) -> list[Tensor]:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0) if doubled else x, weight, bias, padding=1)

    return learned(call, *(one if one is None else one.double() for one in (x, weight, bias)))


@few
@given(
    sizes(1, 4),
    sizes(1, 60),
    sizes(1, 60),
    sizes(2, 17),
    sizes(2, 17),
    st.booleans(),
    st.booleans(),
    st.sampled_from([BF16, F32]),
)
def test_any_shape(
    batch: int, pairs: int, out: int, height: int, width: int, doubled: bool, biased: bool, dtype: torch.dtype
) -> None:
    """dtype: of the weights. Sums of pixels round more than pixels: of two channels to 2^-6, of many to half of that."""
    x = random(batch, 2 * pairs, height, width).contiguous(**last)
    weight = random(2 * out, 2 * pairs, 3, 3, dtype=dtype)
    bias = random(2 * out, dtype=dtype) if biased else None
    given = x, weight, bias, doubled
    for made, true in zip(fast(*given), exact(*given), strict=True):
        assert (made - true).norm() <= (2**-7 if min(pairs, out) > 15 else 2**-6) * true.norm()


@pytest.mark.parametrize(
    "out", [70, 322]
)  # in blocks of tiles; by panels of channels, with so few threads as panels
def test_any_number_of_threads(out: int) -> None:
    x, weight = random(2, 66, 15, 19).contiguous(**last), random(out, 66, 3, 3)
    made, threads = [], torch.get_num_threads()
    try:
        for num in (1, 2, 5, 9):
            torch.set_num_threads(num)
            made.append([fast(x, weight, random(out), doubled) for doubled in (False, True)])
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b)
        for other in made[1:]
        for one, same in zip(made[0], other, strict=True)
        for a, b in zip(one, same, strict=True)
    )


@pytest.mark.parametrize("out", [64, 200])
@pytest.mark.parametrize("doubled", [False, True])
def test_frozen_weights_draw_by_fewer_products_alike_in_any_batch(
    out: int, doubled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "has_amx", lambda: False)
    call = upsample if doubled else lambda *given: conv2d(*given, 1, 1)
    side = 8 if doubled else 16
    x, weight, bias = random(3, 48, side, side).contiguous(**last), random(out, 48, 3, 3), random(out)
    with torch.no_grad():
        made = call(x, weight, bias)
        assert torch.equal(made, winograd.convolved(x, weight, bias, doubled))
        assert all(torch.equal(call(x[i : i + 1], weight, bias), made[i : i + 1]) for i in range(3))
    true = F.conv2d(F.interpolate(x, scale_factor=2.0) if doubled else x, weight, bias, padding=1)
    assert (made - true).norm() < 2**-7 * true.norm()


def test_only_what_saves_time_is_drawn_by_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "has_amx", lambda: False)
    frozen = conv2d.frozen
    assert frozen
    x, weight = random(1, 32, 16, 16).contiguous(**last), random(32, 32, 3, 3)
    assert frozen.fits(x, weight, None, 1, 1)
    for other in (
        (x[:, :, 1:].contiguous(**last), weight, None, 1, 1),  # few pixels
        (x, weight[:30], None, 1, 1),  # few channels
        (x, weight, None, 2, 1),
        (x, weight, None, 1, 0),
        (x.float(), weight.float(), None, 1, 1),
        (x, random(32, 32, 1, 1), None, 1, 1),
    ):
        assert not frozen.fits(*other)
    monkeypatch.setattr(winograd, "has_amx", lambda: True)
    assert not frozen.fits(x, weight, None, 1, 1)


@few
@given(
    sizes(1, 4),
    sizes(1, 40),
    sizes(1, 40),
    sizes(5, 17),
    sizes(5, 17),
    st.sampled_from([(3, 1, 1), (3, 2, 1), (3, 2, 0), (3, 1, 0), (5, 1, 2), (1, 1, 0)]),
)
def test_gradients_as_products(
    batch: int, channels: int, out: int, height: int, width: int, convolution: tuple[int, int, int]
) -> None:
    side, stride, padding = convolution
    x = random(batch, channels, height, width).contiguous(**last)
    given = x, random(out, channels, side, side), random(out)
    made, exact = (
        learned(
            lambda x, w, b: conv2d_products.gradient.apply(conv2d_products, x, w, b, stride, padding), *given
        ),
        learned(lambda x, w, b: F.conv2d(x, w, b, stride, padding), *(one.double() for one in given)),
    )
    for ours, true in zip(made, exact, strict=True):
        assert (ours - true).norm() <= 2**-7 * true.norm()


def test_only_what_is_large_and_fits() -> None:
    """Networks of tests and the first steps of toys don't wait for measurements."""
    x, weight = random(4, 96, 32, 32).contiguous(**last), random(96, 96, 3, 3).contiguous(**last)
    for kernel, args in (
        (conv2d_winograd, (weight, None, 1, 1)),
        (conv2d_products, (weight, None, 1, 1)),
        (upsample_winograd, (weight, None)),
    ):
        assert kernel.fits(x, *args)
        assert not kernel.fits(x[:1, :, :4, :4].contiguous(**last), *args)
        assert not kernel.fits(x.float(), *args)
    assert not conv2d_winograd.fits(x, weight, None, 2, 1) and not conv2d_winograd.fits(x, weight, None, 1, 0)
    assert not conv2d_winograd.fits(x, random(96, 96, 1, 1), None, 1, 1)
    assert not conv2d_winograd.fits(x.contiguous(), weight, None, 1, 1)
    assert not conv2d_winograd.fits(x[:, :95].contiguous(**last), weight[:, :95], None, 1, 1)


def test_frozen_weights_keep_no_pixels() -> None:
    x, weight = random(2, 32, 16, 16).contiguous(**last).requires_grad_(), random(32, 32, 3, 3)
    for kernel in (conv2d_winograd, conv2d_products):
        y = kernel.gradient.apply(kernel, x, weight, None, 1, 1)
        assert y.grad_fn.saved_tensors[0] is None
        y.sum().backward()
        assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("answer", ["usual", "winograd", "products"])
def test_the_way_that_is_measured_to_be_fastest_is_taken(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = {}

    def fastest(question: str, ways: Mapping[str, Callable[[], object]]) -> str:
        asked[question] = set(ways)
        for way in ways.values():
            way()
        return answer

    monkeypatch.setattr(importlib.import_module("inkwash.kernels.kernel"), "fastest", fastest)
    layer = nn.Conv2d(64, 64, 3, padding=1)
    x = random(4, 64, 24, 24).contiguous(**last)
    with torch.autocast("cpu", BF16):
        y = conv2d(x, layer.weight, layer.bias, 1, 1)
    taken = getattr(y.grad_fn, "_forward_cls", None)
    assert taken is {"usual": None, "winograd": winograd.Gradient, "products": products.Gradient}[answer]
    assert layer.weight.grad is None
    question = "conv2d, 4x64x24x24 bfloat16, 64x64x3x3 float32 learns, 64 float32 learns, 1, 1, "
    question += f"{torch.get_num_threads()} threads"
    assert asked == {question: {"usual", "winograd", "products"}}
    with torch.no_grad():
        conv2d(x, layer.weight.bfloat16(), None, 1, 1)
    assert len(asked) == 1
