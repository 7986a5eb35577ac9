"""Convolutions in eight bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import inkwash
from inkwash.adapters.kinds import LoRA
from inkwash.adapters.low_rank import Adapter, Target, attach, bake
from inkwash.kernels import conv2d_int8, convolve_int8, library
from inkwash.kernels.convolve_int8 import MOST, pack
from inkwash.nn.blocks import ResBlock
from inkwash.nn.int8 import Int8Conv2d, in_int8
from inkwash.nn.layers import Conv2d
from inkwash.pipeline.denoising.seamless import seamless

pytestmark = pytest.mark.skipif(library.load() is None, reason="no kernels on this machine")


@pytest.fixture(autouse=True)
def eight_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX a measurement would decide whether layers compute in eight bits."""
    monkeypatch.setattr("inkwash.nn.int8.amx", lambda: False)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def drawn(batch: int, channels: int, height: int, width: int, out: int) -> tuple[Tensor, Tensor]:
    """The inputs and weights of a res-block's convolution."""
    random = torch.Generator().manual_seed(batch + channels + height + width + out)
    x = F.silu(torch.randn(batch, channels, height, width, generator=random))
    x = x * (1 + torch.arange(batch)[:, None, None, None])  # pictures with scales of their own
    return last(x), torch.randn(out, channels, 3, 3, generator=random)


@settings(max_examples=40, deadline=None)
@example(3, 5, 33, 41, 130, True, torch.bfloat16)
@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(1, 130),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_kernel_and_twin(
    batch: int, quarter: int, height: int, width: int, out: int, biased: bool, dtype: torch.dtype
) -> None:
    x, weight = drawn(batch, 4 * quarter, height, width, out)
    x, bias = x.to(dtype), torch.randn(out).to(dtype) if biased else None
    packed = pack(weight)
    assert conv2d_int8.fits(x, packed, bias)
    made, wanted = conv2d_int8.fast(x, packed, bias), conv2d_int8.plain(x, packed, bias)
    assert made.is_contiguous(memory_format=torch.channels_last)
    # a tie is rounded to either side: one step of a few values
    low, high = (x.float().flatten(1).aminmax(dim=1)[i][:, None, None, None] for i in (0, 1))
    step = (high.clamp_min(0) - low.clamp_max(0)) / 254
    near = 3 * step * weight.abs().max() + (0.01 if dtype == torch.bfloat16 else 1e-5) * (1 + wanted.abs())
    assert ((made.float() - wanted.float()).abs() <= near).all()
    # and both are near the exact convolution: errors of a half step in each factor at most
    exact = F.conv2d(x.float(), weight, None if bias is None else bias.float(), padding=1)
    finest = weight.abs().amax((1, 2, 3)) / 254
    seen = F.conv2d(x.float().abs(), torch.ones(1, 4 * quarter, 3, 3), padding=1)
    bound = step / 2 * weight.abs().sum((1, 2, 3))[:, None, None] + seen * finest[:, None, None]
    bound = bound + 36 * quarter * step / 2 * finest[:, None, None] + 0.01 * exact.abs() + 1e-4
    assert ((wanted.float() - exact).abs() <= bound).all()


@pytest.mark.parametrize("lowest", [-127, -254, 0])
def test_whole_numbers_are_exact(lowest: int) -> None:
    """Of pictures that reach over 254 whole numbers, wherever zero lies among them, nothing is rounded."""
    random = torch.Generator().manual_seed(0)
    x = torch.randint(lowest, lowest + 255, (2, 24, 7, 8), generator=random).float()
    x[:, 0, 0, 0], x[:, 0, 0, 1] = lowest, lowest + 254
    weight = torch.randint(-127, 128, (70, 24, 3, 3), generator=random).float()
    weight[:, 0, 1, 1] = 127
    wanted = F.conv2d(x, weight, padding=1)
    for compute in (conv2d_int8.plain, conv2d_int8.fast):
        torch.testing.assert_close(compute(last(x), pack(weight), None), wanted, rtol=1e-6, atol=0)


def test_sums_of_the_most_channels_fit() -> None:
    x = last(torch.full((1, MOST, 2, 2), 254.0))
    packed = pack(torch.full((1, MOST, 3, 3), -127.0))
    assert conv2d_int8.fits(x, packed, None)
    wanted = torch.full((1, 1, 2, 2), -4.0 * MOST * 254 * 127)
    torch.testing.assert_close(conv2d_int8.fast(x, packed, None), wanted, rtol=1e-6, atol=0)
    more = last(torch.ones(1, MOST + 4, 1, 1))
    assert not conv2d_int8.fits(more, pack(torch.ones(1, MOST + 4, 3, 3)), None)


def test_non_finite_values_are_handed_on_and_zeros_are_zeros() -> None:
    packed = pack(torch.randn(20, 8, 3, 3))
    x = last(torch.zeros(6, 8, 4, 5))
    x[1, 3, 2, 2], x[2, 7, 3, 4], x[3, 0, 0, 0], x[4] = float("nan"), float("inf"), -float("inf"), 1e-42
    for compute in (conv2d_int8.plain, conv2d_int8.fast):
        made = compute(x, packed, None)
        assert not made[1, :, 1:4, 1:4].isfinite().any()
        assert not made[2, :, 2:, 3:].isfinite().any() and not made[3, :, :2, :2].isfinite().any()
        assert torch.equal(made[[0, 5]], torch.zeros(2, 20, 4, 5)) and made[4].abs().max() < 1e-30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_alone_and_threads_agree(dtype: torch.dtype) -> None:
    x, weight = drawn(3, 36, 33, 21, 100)
    x, packed = x.to(dtype), pack(weight)
    threads = torch.get_num_threads()
    try:
        made = []
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append(conv2d_int8.fast(x, packed, None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    for k in range(3):
        assert torch.equal(conv2d_int8.fast(x[k : k + 1], packed, None)[0], made[0][k])


def test_an_adapter_that_is_attached_or_baked() -> None:
    """It is added in full precision where it is attached; baked into the weights, these are rounded anew."""
    model = inkwash.load("mini", dtype="fp32", int8=True)
    path = "input_blocks.1.0.out_layers.3"
    layer = model.unet.get_submodule(path)
    assert isinstance(layer, Int8Conv2d)
    width, random = layer.in_channels, torch.Generator().manual_seed(0)
    down = torch.randn(4, width, 3, 3, generator=random)
    up = 0.02 * torch.randn(width, 4, 1, 1, generator=random)
    adapter = Adapter({Target("unet", path): LoRA(lora_down=down, lora_up=up)})
    x = last(F.silu(torch.randn(2, width, 6, 7, generator=random)))
    more = F.conv2d(F.conv2d(x, down, padding=1), up)
    with torch.inference_mode():
        plain = layer(x)
        with attach(model, adapter):
            torch.testing.assert_close(layer(x), plain + more)
        assert torch.equal(layer(x), plain)
    before = layer.weight.clone()
    bake(model, adapter)
    with torch.inference_mode():
        baked = layer(x)
    wanted = plain + more
    assert (baked - wanted).norm() / wanted.norm() < 0.02 < (plain - wanted).norm() / wanted.norm()
    with torch.no_grad():
        layer.weight.copy_(before)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain)


def test_seamless_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that hooks pad have another memory order, and the kernel computes them all the same."""
    conv = Int8Conv2d(Conv2d(8, 12, 3, padding=1))
    x, called = last(torch.randn(1, 8, 6, 9)), []
    monkeypatch.setattr(convolve_int8, "call", lambda *args: called.append(args) or library.call(*args))
    with torch.inference_mode(), seamless([conv], "both"):
        made, rolled = conv(x), conv(x.roll((2, 3), (2, 3)))
    torch.testing.assert_close(rolled, made.roll((2, 3), (2, 3)))
    assert len(called) == 2


@pytest.mark.parametrize("more", [{}, {"scale_shift": True}, {"resample": "down"}, {"resample": "up"}])
def test_res_blocks(more: dict) -> None:
    torch.manual_seed(0)
    block = ResBlock(16, 8, 24, norm_groups=4, **more)
    torch.nn.init.normal_(block.out_layers[3].weight, std=0.07)
    x, emb = last(torch.randn(2, 16, 8, 10)), torch.randn(2, 8)
    network = torch.nn.Sequential(block)
    with torch.inference_mode():
        exact = block(x, emb)
        in_int8(network)
        made = block(x, emb)
    assert {name for name, layer in block.named_modules() if isinstance(layer, Int8Conv2d)} == {
        "in_layers.2",
        "out_layers.3",
    }
    assert 0 < (made - exact).norm() / exact.norm() < 0.03
    torch.testing.assert_close(block(x, emb), exact)  # where gradients are wanted, it is exact
