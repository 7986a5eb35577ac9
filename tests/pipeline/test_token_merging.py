"""Self-attentions that see the means of tokens that are alike."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import inkwash
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.attention import Context
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.token_merging import TokenMerging, alike, means, outermost
from inkwash.pipeline.replay import recorded
from tests.models.test_unet import randomise

CONFIG = UNetConfig(
    channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    transformer_depth=(0, 2, 1),
    context_dim=8,
    linear_projections=True,
)


@pytest.fixture(scope="module")
def net() -> UNet:
    net = UNet(CONFIG)
    randomise(net)
    return net.eval()


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return inkwash.load("mini", dtype="fp32")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.75), st.integers(0, 2**31))
def test_groups(height: int, width: int, ratio: float, seed: int) -> None:
    """Every token has one group, of which there are as few as asked for; a group has one of the 2x2s' own at most."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(height * width, 5, generator=random)
    corners = torch.randint(4, (height // 2, width // 2), generator=random)
    group = alike(x, width, corners, ratio)
    merged = min(int(ratio * len(x)), len(x) - corners.numel()) if corners.numel() else 0
    assert group.unique().tolist() == list(range(len(x) - merged))
    own = [
        (2 * i + int(corners[i, j]) // 2) * width + 2 * j + int(corners[i, j]) % 2
        for i in range(height // 2)
        for j in range(width // 2)
    ]
    assert len(group[own].unique()) == len(own)
    made = means(x, group)
    for k in range(len(made)):
        torch.testing.assert_close(made[k], x[group == k].mean(0))
    # what is merged is at least as near to its group's own as all that is left is to any
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[own][None], dim=2) if own else x
    is_own = torch.zeros(len(x), dtype=torch.bool).index_fill_(0, torch.tensor(own, dtype=torch.long), True)
    gone = (group.bincount()[group] > 1) & ~is_own
    if gone.any() and (left := ~gone & ~is_own).any():
        assert cosine[gone].amax(1).min() >= cosine[left].amax(1).max() - 1e-5
    for k in gone.nonzero().flatten().tolist():
        assert cosine[k].max() <= cosine[k, [group[o] == group[k] for o in own]].item() + 1e-5


@torch.inference_mode()
def test_equal_tokens_stay(net: UNet) -> None:
    """Of a constant, self-attention's answer is the same for all; with half of them gone too."""
    transformer = outermost(net)[0]
    context = Context(torch.randn(1, 7, 8))
    x = torch.randn(1, 64, 1, 1).expand(1, 64, 6, 9)
    exact = transformer(x, context)
    call = TokenMerging(lambda x, t: transformer(x, context), net, 0.5)
    torch.testing.assert_close(call(x, torch.tensor([10.0])), exact, rtol=1e-5, atol=1e-5)


def test_the_first_level_that_attends(net: UNet) -> None:
    inner = [*net.input_blocks[3], *net.output_blocks[2], *net.output_blocks[3]]
    assert outermost(net) == [layer for layer in inner if hasattr(layer, "transformer_blocks")]
    sd1 = outermost(UNet(UNetConfig(channels=32, context_dim=8)))
    assert len(sd1) == 5 and {layer.proj_in.in_channels for layer in sd1} == {32}
    crossing = UNet(UNetConfig(channels=32, context_dim=8, only_cross_attention=(True, True, False, False)))
    assert len(outermost(crossing)) == 5 and outermost(crossing)[0].proj_in.in_channels == 128


@torch.inference_mode()
def test_rows_are_alone_and_nothing_stays_behind(net: UNet) -> None:
    x, t, context = torch.randn(3, 4, 12, 8), torch.full((3,), 321.5), torch.randn(3, 7, 8)
    exact = net(x, t, context)
    merging = TokenMerging(net, net, 0.6)
    made = merging(x, t, context=context)
    assert not torch.allclose(made, exact, rtol=1e-3)
    assert torch.equal(merging(x, t, context=context), made)
    assert torch.equal(net(x, t, context), exact)  # the hooks are gone
    for k in range(3):
        alone = merging(x[k : k + 1], t[:1], context=context[k : k + 1])
        torch.testing.assert_close(alone, made[k : k + 1], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_attention_sees_as_many_tokens_as_are_left(net: UNet) -> None:
    seen: list[int] = []

    def see(attention: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[1])

    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([5.0]), torch.randn(1, 7, 8)
    merging = TokenMerging(net, net, 0.75)
    handles = [m.to_q.register_forward_pre_hook(see) for n, m in net.named_modules() if n.endswith("attn1")]
    merging(x, t, context=context)
    for handle in handles:
        handle.remove()
    assert sorted(seen) == [16] * 4 + [16] * 6  # 64 to 16 in three transformers of depth 2; the rest have 16


def draw(model: Pipeline, **options) -> np.ndarray:
    settings = {"seed": 2, "steps": 3, "width": 64, "height": 64} | options
    return np.stack([np.asarray(image, dtype=float) for image in model.text_to_image("a taxi", **settings)])


def test_pictures(model: Pipeline) -> None:
    exact = draw(model)
    assert np.array_equal(exact, draw(model, token_merging=0.0))
    near, far = (np.abs(exact - draw(model, token_merging=ratio)).mean() for ratio in (0.1, 0.75))
    assert 0 < near < far
    batch = draw(model, token_merging=0.5, batch_size=2)
    assert np.abs(batch[1] - draw(model, token_merging=0.5, seed=3)[0]).max() <= 1
    with pytest.raises(ValueError, match="token_merging"):
        draw(model, token_merging=0.8)


@pytest.mark.parametrize(
    "more", [{"width": 96, "window": 64}, {"deep_cache": 2}, {"sag_scale": 0.5}, {"seamless": "x"}]
)
def test_with_what_else_changes_the_network(model: Pipeline, more: dict) -> None:
    merged = draw(model, token_merging=0.5, width=more.get("width", 64))
    both, other = draw(model, token_merging=0.5, **more), draw(model, **more)
    assert not np.array_equal(both, merged) and not np.array_equal(both, other)


def test_with_a_lora(model: Pipeline) -> None:
    """Attached to the very layers whose tokens are merged, it changes the picture as it should."""
    attention = outermost(model.unet)[0].transformer_blocks[0].attn1
    plain = draw(model, token_merging=0.5)
    width = attention.to_v.in_features
    delta = 0.05 * torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    handle = attention.to_v.register_forward_hook(lambda layer, args, out: out + args[0] @ delta.T)
    live = draw(model, token_merging=0.5)
    handle.remove()
    with torch.no_grad():
        attention.to_v.weight += delta
        baked = draw(model, token_merging=0.5)
        attention.to_v.weight -= delta
    assert np.abs(live - baked).max() <= 1 and not np.array_equal(live, plain)


def test_a_picture_says_it(model: Pipeline) -> None:
    image = model.text_to_image("a taxi", steps=2, token_merging=0.25)[0]
    text = image.info["parameters"]
    assert "Token merging ratio: 0.25" in text
    assert recorded({"parameters": text}).request.token_merging == 0.25


def test_a_network_without_transformers() -> None:
    net = UNet(
        UNetConfig(channels=32, transformer_depth=(0, 0, 0, 0), context_dim=None, transformer_depth_middle=0)
    )
    with pytest.raises(ValueError, match="token_merging 0.5: .* no transformer"):
        TokenMerging(net, net, 0.5)
