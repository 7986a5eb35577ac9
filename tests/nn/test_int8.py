"""Linear layers in eight bits, and whole networks."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import inkwash
from inkwash.adapters.kinds import LoRA
from inkwash.adapters.low_rank import Adapter, Target, attach, bake
from inkwash.kernels import geglu_int8, linear_int8
from inkwash.kernels.int8 import pack
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.int8 import Int8Conv2d, Int8Linear, in_int8
from inkwash.nn.layers import Linear
from inkwash.pipeline.api import Pipeline
from tests.kernels.test_kernels import needs_kernels
from tests.models.test_unet import randomise


@pytest.fixture(autouse=True)
def eight_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX a measurement would decide whether layers compute in eight bits."""
    monkeypatch.setattr("inkwash.nn.int8.amx", lambda: False)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return inkwash.load("mini", dtype="fp32", int8=True)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 40),
    st.integers(1, 150),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_kernel_and_twin(rows: int, quarter: int, out: int, biased: bool, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(rows + out)
    x, weight = (torch.randn(num, 4 * quarter, generator=random) for num in (rows, out))
    x, bias = x.to(dtype), torch.randn(out, generator=random).to(dtype) if biased else None
    packed = pack(weight)
    made, wanted = linear_int8.fast(x, packed, bias), linear_int8.plain(x, packed, bias)
    # a tie is rounded to either side: one step of one value
    step = (x.float().abs().amax(1, keepdim=True) / 127 * weight.abs().max()).max().item()
    near = 1.01 * step + (0.01 if dtype == torch.bfloat16 else 1e-5) * (1 + wanted.float().abs())
    assert ((made.float() - wanted.float()).abs() <= near).all()
    # and both are near the exact product: errors of a half step in each factor at most
    exact = F.linear(x.float(), weight, bias if bias is None else bias.float())
    steps = x.float().abs().amax(1, keepdim=True) / 254, weight.abs().amax(1) / 254
    bound = steps[0] * weight.abs().sum(1) + x.float().abs().sum(1, keepdim=True) * steps[1]
    bound = bound + 4 * quarter * steps[0] * steps[1] + 0.01 * exact.abs() + 1e-4
    assert ((wanted.float() - exact).abs() <= bound).all()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 395])
def test_gate_and_residual_are_added_inside(rows: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(rows)
    x, weight, residual = (
        torch.randn(*shape, generator=random) for shape in ((rows, 64), (256, 64), (rows, 256))
    )
    x, residual, bias = x.to(dtype), residual.to(dtype), torch.randn(256, generator=random).to(dtype)
    packed, near = pack(weight), {"rtol": 0.02, "atol": 0.1 if dtype == torch.bfloat16 else 1e-4}
    plain = linear_int8.fast(x, packed, bias)
    torch.testing.assert_close(linear_int8.fast(x, packed, bias, residual), plain + residual, **near)
    half, gate = plain.chunk(2, dim=1)
    torch.testing.assert_close(geglu_int8.fast(x, packed, bias), half * F.gelu(gate), **near)
    assert not geglu_int8.fits(x, pack(weight[: 128 + 64]), bias[: 128 + 64])  # halves that share a panel


@needs_kernels
def test_whole_numbers_are_exact() -> None:
    """Of rows whose largest value is 127 nothing is rounded."""
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, (num, 640), generator=random).float() for num in (30, 70))
    x[:, 0] = weight[:, 1] = 127
    for compute in (linear_int8.plain, linear_int8.fast):
        torch.testing.assert_close(compute(x, pack(weight), None), x @ weight.T, rtol=1e-6, atol=0)


@needs_kernels
def test_non_finite_values_are_handed_on_and_zeros_are_zeros() -> None:
    x, packed = torch.zeros(5, 64), pack(torch.randn(20, 64))
    x[1, 3], x[2, 63], x[3] = float("nan"), float("inf"), 1e-42
    for compute in (linear_int8.plain, linear_int8.fast):
        made = compute(x, packed, None)
        assert not made[1].isfinite().any() and not made[2].isfinite().any()
        assert torch.equal(made[[0, 4]], torch.zeros(2, 20)) and made[3].abs().max() < 1e-30
    assert torch.equal(linear_int8.plain(x[:1], pack(torch.zeros(3, 64)), None), torch.zeros(1, 3))


@needs_kernels
def test_rows_are_alone() -> None:
    x, packed = torch.randn(3, 7, 32), pack(torch.randn(9, 32))
    whole = linear_int8.fast(x, packed, None)
    assert whole.shape == (3, 7, 9)
    assert all(torch.equal(linear_int8.fast(x[k : k + 1], packed, None), whole[k : k + 1]) for k in range(3))


def test_which_layers() -> None:
    config = UNetConfig(
        channels=32, channel_mult=(1, 2), transformer_depth=(1, 1), context_dim=8, linear_projections=True
    )
    net = UNet(config)
    randomise(net)
    weights = net.state_dict()
    x, t, context = torch.randn(2, 4, 8, 8), torch.full((2,), 300.0), torch.randn(2, 5, 8)
    with torch.inference_mode():
        exact = net(x, t, context)
        in_int8(net)
        made = net(x, t, context)
    now = {name for name, module in net.named_modules() if isinstance(module, Int8Linear | Int8Conv2d)}
    block = "input_blocks.1.1.transformer_blocks.0"
    for name in ("attn1.to_k", "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"):
        assert f"{block}.{name}" in now
    assert {"input_blocks.1.1.proj_in", "input_blocks.1.0.in_layers.2", "middle_block.2.out_layers.3"} <= now
    assert not now & {
        f"{block}.attn2.to_k",
        f"{block}.attn2.to_v",
        "time_embed.0",
        "input_blocks.1.0.emb_layers.1",
        "input_blocks.0.0",
        "input_blocks.2.0.op",
        "output_blocks.2.0.skip_connection",
        "out.2",
    }
    assert 0 < (made - exact).norm() / exact.norm() < 0.05
    assert net.state_dict().keys() == weights.keys()  # files are as they were
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    made = net(x, t, context)
    torch.testing.assert_close(made, exact)  # where gradients are wanted, it is exact


def draw(model: Pipeline, **options) -> np.ndarray:
    settings = {"seed": 2, "steps": 3, "width": 64, "height": 64} | options
    return np.asarray(model.text_to_image("a taxi", **settings)[0], dtype=float)


def test_pictures(model: Pipeline) -> None:
    size = {"width": 128, "height": 128}  # that it was trained for: at others small differences grow
    exact = draw(inkwash.load("mini", dtype="fp32"), **size)
    difference = np.abs(draw(model, **size) - exact)
    assert 0 < difference.mean() < 4  # of 255
    assert np.array_equal(draw(model), draw(model))
    said = json.loads(model.text_to_image("a taxi", steps=1, width=64, height=64)[0].info["inkwash"])
    assert model.int8 and said["model"]["int8"] is True


def test_an_adapter_that_is_attached_or_baked(model: Pipeline) -> None:
    """It is added in full precision where it is attached; baked into the weights, these are rounded anew."""
    path = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"
    layer = model.unet.get_submodule(path)
    assert isinstance(layer, Int8Linear)
    width, random = layer.in_features, torch.Generator().manual_seed(0)
    down, up = torch.randn(4, width, generator=random), 0.05 * torch.randn(width, 4, generator=random)
    adapter = Adapter({Target("unet", path): LoRA(lora_down=down, lora_up=up)})
    x, before = torch.randn(3, width, generator=random), layer.weight.clone()
    with torch.inference_mode():
        plain = layer(x)
        with attach(model, adapter):
            torch.testing.assert_close(layer(x), plain + x @ down.T @ up.T)
        assert torch.equal(layer(x), plain)
    bake(model, adapter)
    with torch.inference_mode():
        baked = layer(x)
    wanted = x @ down.T @ up.T + plain
    assert (baked - wanted).norm() / wanted.norm() < 0.02 < (plain - wanted).norm() / wanted.norm()
    with torch.no_grad():
        layer.weight.copy_(before)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain)


def test_opened_in_inference_mode() -> None:
    layer = Linear(8, 8)
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)
        assert layer.weight.is_inference()
        x = torch.randn(4, 8)
        torch.testing.assert_close(Int8Linear(layer)(x), layer(x), rtol=0.05, atol=0.05)


def test_where_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="int8 is for drawing on a CPU, without compile"):
        inkwash.load("mini", int8=True, compile=True)
    with pytest.raises(ValueError, match="int8 is for drawing on a CPU.*meta"):
        inkwash.load("mini", "meta", int8=True)
