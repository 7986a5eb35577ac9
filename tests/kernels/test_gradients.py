"""Gradients by kernels are those of the twins in plain torch."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inkwash.kernels import attention, conv2d, cpu, geglu, group_norm, linear
from inkwash.kernels.convolve import FEW
from inkwash.kernels.kernel import Kernel
from tests.kernels.test_kernels import BF16, F32, few, needs_kernels, random, sizes

last = {"memory_format": torch.channels_last}


@pytest.fixture(autouse=True, scope="module")
def no_amx() -> Iterator[None]:
    """With it, gradients are torch's."""
    found = cpu.instructions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "instructions", lambda: found - cpu.AMX.keys())
        yield


def gradients(call: Callable[..., Tensor], inputs: int, args: tuple, dtype: torch.dtype) -> list[Tensor]:
    """By the first arguments, of a random sum of the result."""
    given = [one.detach().to(dtype) if isinstance(one, Tensor) else one for one in args]
    leaves = [leaf.requires_grad_() for leaf in given[:inputs] if isinstance(leaf, Tensor)]
    made = call(*given)
    assert (type(made.grad_fn).__name__ == "GradientBackward") == isinstance(call, Kernel)
    made.backward(random(*made.shape, dtype=args[0].dtype).to(dtype))
    assert all(leaf.grad.dtype == dtype for leaf in leaves)
    return [leaf.grad.double() for leaf in leaves]


def check(kernel: Kernel, inputs: int, *args: object) -> None:
    """As near to the twin in float64 as the twin in the same type, or as the type's rounding."""
    dtype = args[0].dtype
    exact = gradients(kernel.plain, inputs, args, torch.float64)
    made, twin = (gradients(call, inputs, args, dtype) for call in (kernel, kernel.plain))
    for ours, theirs, true in zip(made, twin, exact, strict=True):
        rounding = (1e-5 if dtype == F32 else 6e-3) * true.norm()
        assert (ours - true).norm() <= max(2 * (theirs - true).norm(), rounding)


@needs_kernels
@few
@given(
    sizes(1, 3),
    sizes(1, 50),
    sizes(1, 40),
    sizes(5, 18),
    sizes(5, 18),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_conv2d(batch: int, pairs: int, out: int, height: int, width: int, halved: bool, kernel: int) -> None:
    for dtype in (BF16, F32):
        x = random(batch, 2 * pairs, height, width, dtype=dtype).contiguous(**last)
        weight = random(out, 2 * pairs, kernel, kernel, dtype=dtype).contiguous(**last)
        stride = 2 if halved else 1
        if conv2d.fits(x, weight, None, stride, kernel // 2):
            check(conv2d, 1, x, weight, random(out, dtype=dtype), stride, kernel // 2)
        if conv2d.fits(x, weight, None, stride, 0):
            check(conv2d, 1, x, weight, None, stride, 0)


@needs_kernels
@few
@given(sizes(1, 2), sizes(1, 3), sizes(1, 100), sizes(1, 300), sizes(1, 10), st.sampled_from([BF16, F32]))
def test_attention(batch: int, heads: int, T: int, S: int, eighths: int, dtype: torch.dtype) -> None:
    width = heads * eighths * 8
    q, k, v = (random(batch, num, width, dtype=dtype) for num in (T, S, S))
    if S > 1:  # of one key the weight is 1, and what q and k change is rounding
        check(attention, 3, q, k, v, heads)


@needs_kernels
def test_attention_of_views_in_any_number_of_threads() -> None:
    """Queries, keys and values that lie together, more keys than a block's, and heads of odd widths."""
    made, threads = [], torch.get_num_threads()
    try:
        for num in (1, 3):
            torch.set_num_threads(num)
            whole = random(2, 290, 3 * 3 * 72).requires_grad_()
            parts = whole.chunk(3, dim=-1)
            check(attention, 3, *parts, 3)
            attention(*parts, 3).backward(random(2, 290, 3 * 72))
            made.append(whole.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


@needs_kernels
@few
@given(sizes(1, 50), sizes(1, 90))
def test_geglu(rows: int, width: int) -> None:
    check(geglu, 1, 3 * random(rows, 2 * width))


@needs_kernels
@few
@given(
    sizes(1, 3),
    sizes(1, 4),
    sizes(2, 20),
    sizes(2, 20),
    sizes(1, 20),
    st.booleans(),
    st.sampled_from([BF16, F32]),
)
def test_group_norm(
    batch: int, groups: int, each: int, height: int, width: int, silu: bool, dtype: torch.dtype
) -> None:
    channels = groups * each
    x = random(batch, channels, height, width, dtype=dtype).add(1).contiguous(**last)
    weight, bias = random(2, channels, dtype=dtype)
    check(group_norm, 4, x, groups, weight, bias, 1e-5, silu)


@needs_kernels
def test_the_norm_under_autocast_teaches_in_float32_alike_in_any_number_of_threads() -> None:
    x = random(3, 64, 18, 17).contiguous(**last)
    weight, bias = random(2, 64, dtype=F32)
    exact = gradients(group_norm.plain, 4, (x, 32, weight, bias, 1e-5, True), torch.float64)
    made, threads = [], torch.get_num_threads()
    try:
        for num in (1, 2, 7):
            torch.set_num_threads(num)
            leaves = [one.clone().requires_grad_() for one in (x, weight, bias)]
            with torch.autocast("cpu", BF16):
                y = group_norm(leaves[0], 32, *leaves[1:], 1e-5, True)
            assert y.dtype == BF16
            y.backward(random(*y.shape))
            assert [leaf.grad.dtype for leaf in leaves] == [BF16, F32, F32]
            made.append([leaf.grad for leaf in leaves])
    finally:
        torch.set_num_threads(threads)
    for i, (one, true) in enumerate(zip(made[0], exact, strict=True)):
        assert (one - true).norm() <= (1e-3 if i else 3e-3) * true.norm()
        assert all(torch.equal(one, some[i]) for some in made)


@needs_kernels
@pytest.mark.parametrize("many", [False, True])
def test_only_layers_that_are_not_trained(many: bool) -> None:
    """A parameter that learns gets its gradient from the twin, and what nothing learns from keeps no graph."""
    side = 4 if not many else int(FEW**0.5) + 1
    x, weight = random(1, 8, side, side).contiguous(**last), random(6, 8, 3, 3).contiguous(**last)
    assert conv2d(x, weight, None, 1, 1).grad_fn is None
    learned = weight.clone().requires_grad_()
    conv2d(x, learned, None, 1, 1).sum().backward()
    assert learned.grad is not None and learned.grad.abs().sum() > 0
    bias = random(6).requires_grad_()
    conv2d(x, weight, bias, 1, 1).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((6,), float(side**2)).bfloat16())
    rows = random(20, 8).requires_grad_()
    matrix = random(5, 8)
    linear(rows, matrix, None).sum().backward()
    torch.testing.assert_close(
        rows.grad, matrix.float().sum(0).bfloat16().expand(20, 8), rtol=0.02, atol=0.02
    )


@needs_kernels
def test_second_derivatives_are_refused() -> None:
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "attention": lambda x: attention(x, x, x, 2),
        "geglu": geglu,
        "conv2d": lambda x: conv2d(
            x.reshape(1, 8, 5, 4).contiguous(**last), random(4, 8, 3, 3).contiguous(**last), None, 1, 1
        ),
    }
    for call in calls.values():
        x = random(1, 20, 8).requires_grad_()
        (grad,) = torch.autograd.grad(call(x).float().square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.float().square().sum().backward()
