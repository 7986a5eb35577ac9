"""Convolutions in fewer products, and their gradients, are those of torch in float64 but for bfloat16's rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inkwash.kernels import conv2d, cpu, upsample
from inkwash.kernels.convolve import conv2d_taught
from inkwash.kernels.upsample import upsample_taught
from inkwash.kernels.winograd import FEW, NARROW
from tests.kernels.test_kernels import BF16, F32, few, needs_kernels, random, sizes

last = {"memory_format": torch.channels_last}
pytestmark = [needs_kernels, pytest.mark.skipif(cpu.has_amx(), reason="with AMX, plain products are faster")]


def results(x: Tensor, weight: Tensor, bias: Tensor | None, doubled: bool, kernel: bool) -> list[Tensor]:
    """Of a convolution: its output, and its gradients by all that it is given."""
    leaves = [one.detach().clone().requires_grad_() for one in (x, weight, bias) if one is not None]
    given = leaves if bias is not None else [*leaves, None]
    with torch.autocast("cpu", BF16, enabled=kernel):
        if kernel:
            y = upsample(*given) if doubled else conv2d(*given, 1, 1)
            assert type(y.grad_fn).__name__ == "GradientBackward" and y.dtype == BF16
        else:
            seen = F.interpolate(given[0], scale_factor=2.0) if doubled else given[0]
            y = F.conv2d(seen, *given[1:], padding=1)
    y.backward(random(*y.shape, dtype=BF16).to(y.dtype))
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@few
@given(
    sizes(2, 4),
    sizes(NARROW // 2, 60),
    sizes(NARROW // 2, 60),
    sizes(13, 17),
    sizes(13, 17),
    st.booleans(),
    st.booleans(),
    st.sampled_from([BF16, F32]),
)
def test_any_shape(
    batch: int, pairs: int, out: int, height: int, width: int, doubled: bool, biased: bool, dtype: torch.dtype
) -> None:
    """dtype: of the weights. Sums of pixels round twice as much as pixels, so errors are up to twice bfloat16's."""
    x = random(batch, 2 * pairs, height, width).contiguous(**last)
    weight = random(2 * out, 2 * pairs, 3, 3, dtype=dtype)
    bias = random(2 * out, dtype=dtype) if biased else None
    exact = results(x.double(), weight.double(), bias if bias is None else bias.double(), doubled, False)
    for made, true in zip(results(x, weight, bias, doubled, True), exact, strict=True):
        assert (made - true).norm() <= 2**-7 * true.norm()


def test_any_number_of_threads() -> None:
    x, weight = random(2, 66, 15, 19).contiguous(**last), random(70, 66, 3, 3)
    made, threads = [], torch.get_num_threads()
    try:
        for num in (1, 2, 5):
            torch.set_num_threads(num)
            made.append([results(x, weight, random(70), doubled, True) for doubled in (False, True)])
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b)
        for other in made[1:]
        for one, same in zip(made[0], other, strict=True)
        for a, b in zip(one, same, strict=True)
    )


def test_only_what_learns_and_is_large() -> None:
    weight = random(32, 32, 3, 3).contiguous(**last)
    side = int((4 * FEW) ** 0.5) + 2
    wide, narrow = (random(1, 32, some, some).contiguous(**last) for some in (side, 6))
    for kernel, args in ((conv2d_taught, (weight, None, 1, 1)), (upsample_taught, (weight, None))):
        assert kernel.fits(wide, *args) and not kernel.fits(narrow, *args)
        assert not kernel.fits(wide.contiguous(), *args) and not kernel.fits(wide.float(), *args)
    assert not conv2d_taught.fits(wide, weight, None, 2, 1) and not conv2d_taught.fits(
        wide, weight, None, 1, 0
    )
    assert not conv2d_taught.fits(wide, weight[:, :, :1, :1], None, 1, 0)
    assert not conv2d_taught.fits(wide[:, :30].contiguous(**last), weight[:, :30], None, 1, 1)


def test_frozen_weights_keep_no_pixels() -> None:
    x, weight = random(2, 32, 16, 16).contiguous(**last).requires_grad_(), random(32, 32, 3, 3)
    y = conv2d(x, weight, None, 1, 1)
    assert y.grad_fn is not None and y.grad_fn.saved_tensors[0] is None  # pyright: ignore[reportAttributeAccessIssue]
    y.sum().backward()
    assert x.grad is not None and weight.grad is None
