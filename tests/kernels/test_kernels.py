"""Each kernel gives what its twin in plain torch gives, whatever the shape, the memory order or the threads."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inkwash.adapters.change import added
from inkwash.adapters.kinds import LoRA
from inkwash.kernels import (
    KERNELS,
    activated_linear,
    attention,
    conv2d,
    cpu,
    geglu,
    geglu_linear,
    group_norm,
    library,
    linear,
    upsample,
)
from inkwash.kernels.kernel import Kernel
from inkwash.kernels.linear import ACTIVATIONS
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.attention import BasicTransformerBlock, Context, SpatialTransformer
from inkwash.nn.blocks import Upsample, channels_last
from inkwash.nn.layers import Linear

BF16, F32 = torch.bfloat16, torch.float32
needs_kernels = pytest.mark.skipif(library.load() is None, reason="this machine has no kernels")
sizes = lambda low, high: st.integers(low, high)  # noqa: E731
few = settings(max_examples=40, deadline=None)


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(kernel: Kernel, *args: object, bf16_error: float = 4e-3) -> None:
    """The kernel is nearer to the twin in float64 than the type's rounding."""
    wide = [x.double() if isinstance(x, Tensor) else x for x in args]
    with torch.no_grad():
        exact = kernel.plain(*wide)
        made = kernel.fast(*args)
    error = (made.double() - exact).norm() / exact.norm().clamp(min=1e-30)
    assert error < (3e-6 if made.dtype == F32 else bf16_error)
    assert made.shape == exact.shape


@needs_kernels
@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"geglu"}))
def test_inputs_of_another_width_are_refused_and_not_read(name: str) -> None:
    """As torch does; a kernel would read weights in a wrong order, or beyond their end."""
    kernel = KERNELS[name]
    x, *more = kernel.example()
    for width in (x.shape[1 if x.ndim == 4 else -1] - 4, x.shape[1 if x.ndim == 4 else -1] + 4):
        wrong = x.new_ones([*x.shape[:1], width, *x.shape[2:]] if x.ndim == 4 else [*x.shape[:-1], width])
        if x.ndim == 4:
            wrong = wrong.contiguous(memory_format=torch.channels_last)
        assert not kernel.fits(wrong, *more)
        with torch.no_grad(), pytest.raises(RuntimeError):
            kernel(wrong, *more)


@needs_kernels
@pytest.mark.parametrize("name", KERNELS)
def test_passes_its_own_check(name: str) -> None:
    with torch.no_grad():
        assert KERNELS[name].fits(*KERNELS[name].example()) or "amx_bf16" in cpu.instructions()
        assert KERNELS[name].works


@needs_kernels
@few
@given(
    sizes(1, 3),
    sizes(1, 4),
    sizes(1, 130),
    sizes(1, 530),
    sizes(1, 12),
    st.booleans(),
    st.sampled_from([BF16, F32]),
)
def test_attention(
    batch: int, heads: int, T: int, S: int, eighths: int, causal: bool, dtype: torch.dtype
) -> None:
    width = heads * eighths * 8
    q, k, v = (random(batch, num, width, dtype=dtype) for num in (T, S, S))
    check(attention, 2 * q, k, v, heads, causal)


@needs_kernels
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160, 512])
def test_attention_of_views(head_dim: int) -> None:
    q, k, v = random(2, 77, 6 * head_dim).chunk(3, dim=-1)
    with torch.no_grad():
        assert attention.fits(q, k, v, 2) or (cpu.has_amx() and not library.amx())
    check(attention, q, k, v, 2)


@needs_kernels
def test_causal_attention_that_learns_is_torchs() -> None:
    q, k, v = (random(2, 77, 64).requires_grad_() for _ in range(3))
    assert not attention.fits(q, k, v, 2, True)
    made, wanted = attention(q, k, v, 2, True), attention.plain(q, k, v, 2, True)
    assert torch.equal(made, wanted)
    grads = (torch.autograd.grad(y.sum(), (q, k, v)) for y in (made, wanted))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@needs_kernels
@few
@given(sizes(1, 2), sizes(1, 20), sizes(1, 20), sizes(1, 17), sizes(1, 17))
def test_upsample(batch: int, channels: int, out: int, height: int, width: int) -> None:
    x = random(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    # the sums of weights are rounded once more
    check(upsample, x, random(out, channels, 3, 3), random(out), bf16_error=6e-3)


@needs_kernels
def test_upsample_leaves_hooked_convolutions_alone() -> None:
    """Hooks of the convolution see the doubled picture, and other sizes are convolved as they are."""
    layer = channels_last(Upsample(8).to(BF16))
    x = random(1, 8, 32, 40).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain, odd = layer(x), layer(x, (63, 80))
        seen: list[tuple[int, ...]] = []
        handle = layer.conv.register_forward_pre_hook(lambda conv, args: seen.append(tuple(args[0].shape)))
        hooked = layer(x)
        handle.remove()
        assert torch.equal(layer(x), plain)
    assert seen == [(1, 8, 64, 80)] and odd.shape == (1, 8, 63, 80)
    assert (hooked.float() - plain.float()).norm() < 1e-2 * plain.float().norm()


@needs_kernels
def test_attention_of_large_scores() -> None:
    q, k, v = random(1, 50, 64, dtype=F32), random(1, 300, 64, dtype=F32), random(1, 300, 64, dtype=F32)
    check(attention, 100 * q, k, v, 2)
    with torch.no_grad():
        q[0, 3, 5] = float("nan")
        made = attention(q, k, v, 1)
    assert made[0, 3].isnan().all() and made[0, 2].isfinite().all()


@needs_kernels
@few
@given(
    sizes(1, 3),
    sizes(1, 24),
    sizes(1, 60),
    sizes(5, 15),
    sizes(5, 15),
    st.booleans(),
    st.sampled_from([BF16, F32]),
)
def test_conv2d(
    batch: int, pairs: int, out: int, height: int, width: int, halved: bool, dtype: torch.dtype
) -> None:
    x, weight = (
        random(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((batch, 2 * pairs, height, width), (out, 2 * pairs, 3, 3))
    )
    check(conv2d, x, weight, random(out, dtype=dtype), 2 if halved else 1, 1)
    check(conv2d, x, weight, None, 2 if halved else 1, 0)
    check(conv2d, x, random(out, 2 * pairs, 1, 1, dtype=dtype), None, 1, 0)


@needs_kernels
@few
@given(
    sizes(16, 300), sizes(1, 350), sizes(1, 300), st.booleans(), st.booleans(), st.sampled_from([BF16, F32])
)
def test_linear(rows: int, pairs: int, out: int, biased: bool, residual: bool, dtype: torch.dtype) -> None:
    args = random(rows, 2 * pairs, dtype=dtype), random(out, 2 * pairs, dtype=dtype)
    bias = random(out, dtype=dtype) if biased else None
    check(linear, *args, bias, 9 * random(rows, out, dtype=dtype) if residual else None)


@needs_kernels
@few
@given(sizes(16, 200), sizes(1, 350), sizes(1, 150), st.booleans())
def test_geglu_linear(rows: int, pairs: int, width: int, biased: bool) -> None:
    args = random(rows, 2 * pairs), random(2 * width, 2 * pairs) / pairs**0.5
    check(geglu_linear, *args, random(2 * width) if biased else None)


@needs_kernels
@few
@given(sizes(16, 200), sizes(1, 350), sizes(1, 150), st.booleans(), st.sampled_from(sorted(ACTIVATIONS)))
def test_activated_linear(rows: int, pairs: int, width: int, biased: bool, activation: str) -> None:
    args = random(rows, 2 * pairs), random(width, 2 * pairs) / pairs**0.5
    check(activated_linear, *args, random(width) if biased else None, activation)


@needs_kernels
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_hooks_of_a_layer_before_an_activation_see_its_own_output(activation: str) -> None:
    layer, x = Linear(96, 80).to(BF16), 3 * random(40, 96)
    with torch.no_grad():
        made = layer.activated(x, activation)
        handle = layer.register_forward_hook(lambda _, given, y: -y)
        turned = layer.activated(x, activation)
        handle.remove()
        y = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    for ours, wanted in ((made, y), (turned, -y)):
        torch.testing.assert_close(ours.float(), ACTIVATIONS[activation](wanted), rtol=0.02, atol=0.02)


@needs_kernels
@pytest.mark.parametrize(("rows", "k", "out"), [(800, 2600, 90), (1200, 320, 700), (17, 6000, 5)])
def test_linear_in_several_parts(rows: int, k: int, out: int) -> None:
    """Weights that are packed in several groups, rows in several parts; no row knows of the others."""
    x, weight, bias, residual = random(rows, k), random(out, k), random(out), random(rows, out)
    check(linear, x, weight, bias, residual)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.no_grad():
            whole, gated = linear.fast(x, weight, bias, residual), geglu_linear.fast(x, weight, bias)
            some = slice(rows // 3 + 1, None)
            torch.set_num_threads(1)
            assert torch.equal(linear.fast(x[some], weight, bias, residual[some]), whole[some])
            if out % 2 == 0:
                assert torch.equal(geglu_linear.fast(x[some], weight, bias), gated[some])
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(40, 33), (2, 2)])
def test_convolution_by_single_pixels(height: int, width: int, dtype: torch.dtype) -> None:
    """Many and few pixels, which oneDNN sums up by its threads, are ours, the same with one thread and two."""
    x = random(2, 24, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = random(50, 24, 1, 1).to(dtype).contiguous(memory_format=torch.channels_last)
    bias, threads = random(50).to(dtype), torch.get_num_threads()
    if not conv2d.fits(x, weight, bias, 1, 0):
        pytest.skip("on this processor torch's is faster")
    made = []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            with torch.no_grad():
                made.append(conv2d(x, weight, bias, 1, 0))
    finally:
        torch.set_num_threads(threads)
    assert made[0].is_contiguous(memory_format=torch.channels_last) and torch.equal(*made)
    if dtype == torch.bfloat16:
        check(conv2d, x, weight, bias, 1, 0)
    else:
        torch.testing.assert_close(made[0], conv2d.plain(x, weight, bias, 1, 0), rtol=1e-5, atol=1e-5)


def transformer(linear_projections: bool) -> tuple[SpatialTransformer, Tensor, Context]:
    torch.manual_seed(1)
    net = SpatialTransformer(32, 2, 2, 24, linear_projections, 8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = random(2, 32, 6, 7).contiguous(memory_format=torch.channels_last)
    return channels_last(net.bfloat16()), x, Context(random(2, 9, 24))


@needs_kernels
@pytest.mark.parametrize("linear_projections", [True, False])
def test_adapters_change_the_same_as_without_kernels(
    linear_projections: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers whose activation or residual a kernel takes in are computed apart where something is hooked to them."""
    net, x, context = transformer(linear_projections)
    block = net.transformer_blocks[1]
    assert isinstance(block, BasicTransformerBlock)
    layers = [
        block.ff.net[0].proj,
        block.ff.net[2],
        block.attn1.to_out[0],
        block.attn2.to_out[0],
        net.proj_out,
    ]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).bfloat16()  # noqa: E731

    def outputs() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        generator.manual_seed(0)
        with torch.no_grad():
            before = net(x, context)
            seen, handles = [], []
            for layer in layers:
                out, k = layer.weight.shape[:2]
                down = draw(2, k, *layer.weight.shape[2:])
                change = LoRA(lora_down=down, lora_up=draw(out, 2, *[1] * (down.ndim - 2)) / 8)
                handles.append(layer.register_forward_hook(added(change, 0.5)))
                handles.append(layer.register_forward_hook(lambda layer, args, out: seen.append(out)))
            changed = net(x, context)
            for handle in handles:
                handle.remove()
            return before, changed, net(x, context), seen

    before, changed, after, seen = outputs()
    assert torch.equal(before, after) and len(seen) == len(layers)
    for kernel in KERNELS.values():
        monkeypatch.setitem(kernel.__dict__, "works", False)
    plain_before, plain_changed, _, plain_seen = outputs()
    assert (changed - before).norm() > 0.1 * before.norm()
    for ours, wanted in zip(
        (before, changed, *seen), (plain_before, plain_changed, *plain_seen), strict=True
    ):
        assert (ours.float() - wanted.float()).norm() < 0.02 * wanted.float().norm()


@pytest.mark.parametrize("part", ["attn1", "attn2", "ff"])
def test_a_hook_sees_a_branch_without_its_residual(part: str) -> None:
    net, x, context = transformer(True)
    block, tokens = net.transformer_blocks[0], x.flatten(2).transpose(1, 2)
    seen: list[Tensor] = []

    def nothing(module: object, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen.append(out)
        return torch.zeros_like(out)

    with torch.no_grad():
        whole = block(tokens, context)
        handles = [getattr(block, name).register_forward_hook(nothing) for name in ("attn1", "attn2", "ff")]
        assert torch.equal(block(tokens, context), tokens) and len(seen) == 3
        handles.pop(("attn1", "attn2", "ff").index(part)).remove()
        branch = block(tokens, context) - tokens
    assert branch.norm() > 0 and not torch.equal(whole, tokens)


@needs_kernels
@few
@given(sizes(1, 50), sizes(1, 90))
def test_geglu(rows: int, width: int) -> None:
    check(geglu, 3 * random(rows, 2 * width))


@needs_kernels
@few
@given(
    sizes(1, 3),
    sizes(1, 8),
    sizes(1, 9),
    sizes(2, 40),
    sizes(1, 30),
    st.booleans(),
    st.sampled_from([(BF16, 2), (F32, 2), (F32, 300)]),
)
def test_group_norm(
    batch: int, groups: int, each: int, height: int, width: int, silu: bool, kind: tuple[torch.dtype, int]
) -> None:
    channels, (dtype, mean) = groups * each, kind
    x = random(batch, channels, height, width, dtype=dtype) + mean
    x = x.contiguous(memory_format=torch.channels_last)
    check(group_norm, x, groups, *(random(channels, dtype=dtype) for _ in range(2)), 1e-3, silu)


@needs_kernels
def test_group_norm_of_large_maps_has_no_threads_in_it() -> None:
    """torch's adds what each thread has summed, from 32 x 32 pixels on."""
    x = random(1, 48, 64, 64, dtype=F32).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(48), torch.zeros(48)
    threads = torch.get_num_threads()
    try:
        made = []
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append(group_norm(x, 16, weight, bias, 1e-6, False))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@needs_kernels
@pytest.mark.parametrize("name", KERNELS)
def test_threads_change_nothing(name: str) -> None:
    args, threads = KERNELS[name].example(), torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            alone = KERNELS[name].fast(*args)
            torch.set_num_threads(3)
            assert torch.equal(alone, KERNELS[name].fast(*args))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_a_network_is_as_exact_as_with_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = UNetConfig(
        channels=32, channel_mult=(1, 2), transformer_depth=(1, 1), context_dim=24, num_heads=2
    )
    torch.manual_seed(0)
    net = UNet(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t, context = random(2, 4, 16, 12, dtype=F32), torch.tensor([500.0, 20.0]), random(2, 77, 24, dtype=F32)
    exact = net(x, t, context)
    half = channels_last(net.bfloat16())

    def error() -> float:
        with torch.no_grad():
            given = x.bfloat16().contiguous(memory_format=torch.channels_last)
            return ((half(given, t, context.bfloat16()).float() - exact).norm() / exact.norm()).item()

    ours = error()
    for kernel in KERNELS.values():
        monkeypatch.setitem(kernel.__dict__, "works", False)
    assert 0 < ours < 1.2 * error()


def test_gradients_are_the_twins() -> None:
    x = random(3, 8, dtype=BF16).requires_grad_()
    geglu(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@needs_kernels
def test_a_wrong_kernel_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    wrong = Kernel(geglu.plain, lambda x: 1.5 * geglu.plain(x), geglu.fits, geglu.example)
    x = random(4, 8)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        assert torch.equal(wrong(x), geglu.plain(x))
    assert "fails its self-check" in caplog.text


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"INKWASH_KERNELS": "0"}, "off, by INKWASH_KERNELS=0"),
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler"),
        ({"CXX": "false"}, "can't be built"),
    ],
)
def test_without_kernels(
    variables: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("INKWASH_KERNELS", raising=False)
    for name, value in (variables | {"XDG_CACHE_HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpu, "instructions", lambda: cpu.NEEDED)
    with caplog.at_level(logging.INFO):
        assert library.load.__wrapped__() is None
    assert len(caplog.messages) == 1 and said in caplog.text
    assert not list(tmp_path.rglob("*.so"))


def test_an_older_processor_has_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("INKWASH_KERNELS", raising=False)
    monkeypatch.setattr(cpu, "instructions", lambda: cpu.NEEDED - {"avx512_bf16"})
    with caplog.at_level(logging.INFO):
        assert library.load.__wrapped__() is None
    assert "lacks avx512_bf16" in caplog.text


@torch.inference_mode()
def test_autocast_is_torchs() -> None:
    """It says the dtypes, also of the arguments that a kernel is checked on."""
    layer, x = Linear(64, 64), torch.randn(2, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(x)
        assert made.dtype == torch.bfloat16
        assert torch.equal(made, torch.nn.functional.linear(x, layer.weight, layer.bias))
