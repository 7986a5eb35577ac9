"""Imagen's networks, which see text and pixels at once, are those of DeepFloyd IF in diffusers."""

from dataclasses import replace

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.attention import Context
from inkwash.weights.configs import unet_config_from_json, unet_json
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import unet_table
from tests.models.test_unet import assert_near, randomise

diffusers = pytest.importorskip("diffusers")

FIRST = UNetConfig(
    in_channels=3,
    out_channels=6,
    channels=32,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    transformer_depth=(0, 1, 1),
    context_dim=32,
    num_heads=None,
    head_dim=16,
    norm_groups=16,
    scale_shift_norm=True,
    resblock_updown=True,
    act="gelu",
    text_dim=24,
    text_heads=4,
    learned_variance=True,
)
SECOND = replace(
    FIRST,
    in_channels=6,
    num_res_blocks=(1, 2, 1),
    transformer_depth=(0, 0, 1),
    only_cross_attention=(True, True, True),
    level_embedding=True,
    residual_scale=1 / 0.7071,
)
CONFIGS = {"first": FIRST, "second": SECOND, "plain": replace(FIRST, act="silu", scale_shift_norm=False)}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", [16, 12])
def test_the_network_is_that_of_diffusers(name: str, side: int) -> None:
    config = CONFIGS[name]
    ours = UNet(config).eval()
    randomise(ours)
    content = unet_json(config)
    if name == "second":  # the same function, as the published files write it
        content |= {"time_embedding_act_fn": "gelu", "resnet_skip_time_act": True}
    theirs = diffusers.UNet2DConditionModel.from_config(content).eval()
    theirs.load_state_dict(translate(ours.state_dict(), unet_table(config)))
    assert unet_config_from_json(dict(theirs.config)) == replace(config, num_res_blocks=config.res_blocks)
    random = torch.Generator().manual_seed(2)
    x = torch.randn(2, config.in_channels, side, side, generator=random)
    text, t = torch.randn(2, 7, 24, generator=random), torch.tensor([3.0, 870.0])
    level = torch.tensor([250.0, 4.0]) if config.level_embedding else None
    wanted = theirs(x, t, text, class_labels=level).sample
    assert_near(ours(x, t, text, vector=level), wanted)
    kept = Context(text)
    for _ in range(2):  # the second time by what was kept
        assert_near(ours(x, t, kept, vector=level), wanted)


def test_what_is_not_covered_is_named() -> None:
    content = unet_json(FIRST)
    for field, value in (
        ("act_fn", "mish"),
        ("class_embed_type", "projection"),
        ("cross_attention_norm", None),
        ("out_channels", 4),
        ("resnet_skip_time_act", True),
        ("mid_block_scale_factor", 2.0),
        ("time_embedding_dim", 7),
        ("attention_head_dim", 7),
    ):
        with pytest.raises(ModelFileError, match=f"{field}|time_embedding_act_fn|resnet_out_scale_factor"):
            unet_config_from_json(content | {field: value})


def test_a_text_of_another_width_raises() -> None:
    with pytest.raises(ValueError, match=r"\(B, T, 24\)"):
        UNet(FIRST)(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, 5, 32))
