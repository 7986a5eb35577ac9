"""DeepCache: the U-Net computes its inner blocks in some of its calls only."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import inkwash
from inkwash.models.unet import Kept, UNet, UNetConfig
from inkwash.nn.attention import Context
from inkwash.pipeline.denoising.deep_cache import DeepCache
from tests.models.test_unet import randomise

CONFIG = UNetConfig(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, transformer_depth=(1, 1), context_dim=8
)


@pytest.fixture(scope="module")
def net() -> UNet:
    net = UNet(CONFIG)
    randomise(net)
    return net.eval()


@torch.inference_mode()
@pytest.mark.parametrize("shallow", [1, 2, 3])
def test_what_is_kept_of_the_same_call_changes_nothing(net: UNet, shallow: int) -> None:
    x, t, context = torch.randn(2, 4, 9, 12), torch.tensor([300.0, 300.0]), torch.randn(2, 7, 8)
    control = [0.1 * torch.randn_like(skip) for skip in skips(net, x, t, context)]
    for more in ({}, {"control": control}):
        kept = Kept(shallow)
        exact = net(x, t, context, **more)
        assert torch.equal(net(x, t, context, kept=kept, **more), exact)
        assert torch.equal(net(x, t, context, kept=kept, **more), exact)


@torch.inference_mode()
def test_depths_are_not_computed_again(net: UNet) -> None:
    seen: list[str] = []
    handles = [
        block.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, block in net.named_modules()
        if (name.count(".") == 1 and "put_blocks" in name) or name == "middle_block"
    ]
    x, context, kept = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 8), Kept()
    net(x, torch.tensor([300.0]), context, kept=kept)
    assert len(seen) == len(net.input_blocks) + 1 + len(net.output_blocks)
    seen.clear()
    net(x, torch.tensor([200.0]), context, kept=kept)
    assert seen == ["input_blocks.0", f"output_blocks.{len(net.output_blocks) - 1}"]
    for handle in handles:
        handle.remove()


def test_steps_are_counted_by_their_t() -> None:
    """Two calls a step, of one shape or of two, and a step on its own shape."""
    fresh: list[bool] = []

    def network(x: Tensor, t: Tensor, kept: Kept) -> Tensor:
        fresh.append(kept.features is None)
        if kept.features is None:
            kept.features = x.clone()
        assert torch.equal(kept.features, x)  # each call has its own
        return x

    cached = DeepCache(network, 3)
    for step, t in enumerate([9.0, 8.0, 7.0, 6.0, 5.0]):
        for k in range(2):
            cached(torch.full((1 + (step >= 3 and k), 1), float(k)), torch.tensor([t]))
    assert fresh == [True, True, False, False, False, False, True, True, False, False]


def test_pictures(tiny: Path) -> None:
    model = inkwash.load(tiny)
    draw = lambda **more: np.asarray(model.text_to_image("a taxi", seed=2, steps=8, **more)[0], dtype=float)  # noqa: E731
    exact = draw()
    assert np.array_equal(exact, draw(deep_cache=1))
    near, far = (np.abs(exact - draw(deep_cache=every)).mean() for every in (2, 8))
    assert 0 < near < far
    with pytest.raises(ValueError, match="deep_cache"):
        draw(deep_cache=0)


def skips(net: UNet, x: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
    emb, context = net.embed(x, t, context, None)
    made = []
    for block in net.input_blocks:
        x = block(x, emb, context)
        made.append(x)
    return [*made, net.middle_block(x, emb, context)]


def test_a_prompt_has_its_keys_computed_once(tiny: Path) -> None:
    model = inkwash.load(tiny)
    seen: list[str] = []
    for name, module in model.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model.text_to_image("a [cat:dog:2]", steps=6, guidance_end=0.5)
    assert seen and {seen.count(name) for name in seen} == {3}  # cat, dog, and dog without guidance


@torch.inference_mode()
def test_remembered_keys_change_nothing(net: UNet) -> None:
    tokens = torch.randn(2, 7, 8)
    context = Context(tokens)
    for level in (700.0, 300.0):
        x, t = torch.randn(2, 4, 9, 12), torch.full((2,), level)
        assert torch.equal(net(x, t, context), net(x, t, tokens))
