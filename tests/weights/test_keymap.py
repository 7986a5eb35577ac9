"""Tables of names: nothing lost, nothing changed, nothing unclaimed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights import configs
from inkwash.weights.names.keymap import UnknownKeys, dense, translate, transposed, unstacked
from inkwash.weights.names.tables import (
    CLIP_TEXT_BARE,
    OPEN_CLIP_TEXT,
    autoencoder_table,
    unet_table,
)

TINY = UNetConfig(
    channels=32, channel_mult=(1, 2), transformer_depth=(1, 0), num_res_blocks=1, context_dim=16
)
UNETS = {
    "tiny sd1": TINY,
    "tiny sd2": replace(TINY, num_heads=None, head_dim=16, linear_projections=True),
    "tiny sdxl": UNetConfig(
        channels=32,
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 4),
        transformer_depth_middle=4,
        context_dim=16,
        num_heads=None,
        head_dim=16,
        linear_projections=True,
        vector_dim=6 * 256 + 16,
    ),
    "mini": UNetConfig(
        in_channels=8,
        out_channels=8,
        channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        transformer_depth=(0, 1, 1),
        context_dim=64,
        num_heads=None,
        head_dim=16,
        norm_groups=8,
    ),
    "upscaler": replace(TINY, in_channels=7, num_classes=10),
    "sd1": UNetConfig(),
    "sd1 inpainting": UNetConfig(in_channels=9),
    "sd2": UNetConfig(context_dim=1024, num_heads=None, head_dim=64, linear_projections=True),
    "sdxl": UNetConfig(
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 10),
        transformer_depth_middle=10,
        context_dim=2048,
        num_heads=None,
        head_dim=64,
        linear_projections=True,
        vector_dim=2816,
    ),
    "refiner": UNetConfig(
        channels=384,
        transformer_depth=(0, 4, 4, 0),
        transformer_depth_middle=4,
        context_dim=1280,
        num_heads=None,
        head_dim=64,
        linear_projections=True,
        vector_dim=2560,
    ),
}
AUTOENCODERS = {
    "tiny f4": AutoencoderConfig(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1),
    "tiny f2, no attention": AutoencoderConfig(channels=32, channel_mult=(1, 2), middle_attention=False),
    "kl-f8": AutoencoderConfig(),
}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def check_both_ways(ours: nn.Module, theirs: nn.Module, table) -> None:
    there = translate(ours.state_dict(), table, expected=theirs.state_dict())
    assert {key: tuple(value.shape) for key, value in there.items()} == shapes(theirs)
    back = translate(theirs.state_dict(), table, inverse=True, expected=ours.state_dict())
    assert {key: tuple(value.shape) for key, value in back.items()} == shapes(ours)


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS.keys())
def test_unet_table_covers_diffusers_exactly(config):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        check_both_ways(
            UNet(config), diffusers.UNet2DConditionModel(**configs.unet_json(config)), unet_table(config)
        )


@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS.keys())
def test_autoencoder_table_covers_diffusers_exactly(config):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**configs.autoencoder_json(config))
        check_both_ways(AutoencoderKL(config), theirs, autoencoder_table(config))


@pytest.mark.parametrize("config", [UNETS["tiny sdxl"], UNETS["upscaler"]])
def test_unet_there_and_back_is_identity(config):
    tensors = UNet(config).state_dict()
    back = translate(translate(tensors, unet_table(config)), unet_table(config), inverse=True)
    assert back.keys() == tensors.keys()
    assert all(back[key] is value for key, value in tensors.items())  # renamed, not copied


def test_autoencoder_there_and_back_is_identity():
    config = AUTOENCODERS["tiny f4"]
    table = autoencoder_table(config)
    tensors = AutoencoderKL(config).state_dict()
    there = translate(tensors, table)
    assert there["encoder.mid_block.attentions.0.to_q.weight"].shape == (64, 64)
    back = translate(there, table, inverse=True)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].shape == value.shape and back[key].data_ptr() == value.data_ptr()
        assert torch.equal(back[key], value)


def test_layers_of_the_same_shape_go_to_their_own_places():
    config = UNETS["mini"]
    there = translate({key: key for key in UNet(config).state_dict()}, unet_table(config))  # pyright: ignore
    assert there["down_blocks.1.attentions.0.proj_in.weight"] == "input_blocks.3.1.proj_in.weight"
    assert there["down_blocks.1.downsamplers.0.conv.bias"] == "input_blocks.4.0.op.bias"
    assert there["up_blocks.0.upsamplers.0.conv.bias"] == "output_blocks.1.2.conv.bias"
    assert there["up_blocks.2.resnets.1.conv2.weight"] == "output_blocks.5.0.out_layers.3.weight"
    sdxl = translate({"output_blocks.2.2.conv.bias": torch.ones(1)}, unet_table(UNETS["sdxl"]))
    assert list(sdxl) == ["up_blocks.0.upsamplers.0.conv.bias"]


def test_numbers_literals_drops_and_the_longest_prefix():
    table = {"a.{}.b.{}": "x.{}.y.{}", "a.{}.b.{}.c": "x.{}.y.{}.z", "a.7": "seven", "old.{}": None}
    one = torch.ones(1)
    there = translate({"a.1.b.2.w": one, "a.1.b.2.c.w": one, "a.7.w": one, "old.3.w": one}, table)
    assert sorted(there) == ["seven.w", "x.1.y.2.w", "x.1.y.2.z.w"]
    back = translate({**there, "old.3.w": one}, table, inverse=True)
    assert sorted(back) == ["a.1.b.2.c.w", "a.1.b.2.w", "a.7.w"]
    with pytest.raises(UnknownKeys):
        translate({"a.one.b.2.w": one}, table)  # {} is a number


def test_unknown_missing_and_doubled_names_raise_with_the_nearest():
    table, one = {"blocks.{}.in_layers": "resnets.{}.norm1", "other": "resnets.0.norm1"}, torch.ones(1)
    with pytest.raises(UnknownKeys, match=r"not known:\n.*in_layer\.w \(nearest: blocks.\{\}.in_layers"):
        translate({"blocks.0.in_layer.w": one}, table)
    with pytest.raises(UnknownKeys, match=r"missing(.|\n)*resnets.1.norm1.w \(nearest: resnets.0.norm1.w"):
        translate({"blocks.0.in_layers.w": one}, table, expected=["resnets.0.norm1.w", "resnets.1.norm1.w"])
    with pytest.raises(UnknownKeys, match="not expected"):
        translate({"blocks.0.in_layers.w": one}, table, expected=[])
    with pytest.raises(UnknownKeys, match="given twice"):
        translate({"blocks.0.in_layers.w": one, "other.w": one}, table)
    with pytest.raises(UnknownKeys, match="and 12 more"):
        translate({f"strange{i}": one for i in range(20)}, table)
    assert issubclass(UnknownKeys, ModelFileError)


def test_moves_and_their_broken_shapes():
    table = {"qkv": unstacked("q", "k", "v"), "proj": transposed("proj.weight"), "conv": dense("linear")}
    tensors = {"qkv": torch.randn(6, 2), "proj": torch.randn(2, 3), "conv.weight": torch.randn(4, 2, 1, 1)}
    there = translate(tensors, table)
    assert torch.equal(there["k"], tensors["qkv"][2:4])
    assert torch.equal(there["proj.weight"], tensors["proj"].T)
    back = translate(there, table, inverse=True)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())
    with pytest.raises(UnknownKeys, match=r"missing(.|\n)*\bv\b"):
        translate({"q": there["q"], "k": there["k"]}, table, inverse=True)
    for bad in ({"qkv": torch.ones(5, 2)}, {"proj": torch.ones(3)}, {"conv.weight": torch.ones(4, 2, 3, 3)}):
        with pytest.raises(ModelFileError, match=f"{next(iter(bad))}.*shape"):
            translate(bad, table)
    with pytest.raises(ModelFileError, match="qkv.*shape"):
        translate({"q": torch.ones(2, 2), "k": torch.ones(2, 3), "v": torch.ones(2, 2)}, table, inverse=True)
    with pytest.raises(ModelFileError, match=r"conv\.weight.*shape"):
        translate({"linear.weight": torch.ones(2, 2, 2)}, table, inverse=True)


def test_open_clip_attention_is_torchs_own():
    from inkwash.models.clip import CLIPText, CLIPTextConfig

    config = CLIPTextConfig(vocab_size=11, width=8, num_layers=2, num_heads=2, mlp_width=16, eos_token=10)
    model = CLIPText(replace(config, projection_dim=4))
    theirs = translate(model.state_dict(), OPEN_CLIP_TEXT, inverse=True)
    assert len(theirs) == 2 * 12 + 5 and theirs["text_projection"].shape == (8, 4)
    assert all(torch.equal(translate(theirs, OPEN_CLIP_TEXT)[k], v) for k, v in model.state_dict().items())

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    prefix = "transformer.resblocks.1.attn."
    attention.load_state_dict({k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)})
    x = torch.randn(3, 5, 8)
    ours = model.text_model.encoder.layers[1].self_attn(x, causal=False)
    torch.testing.assert_close(ours, attention(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-6)


def test_bare_clip_names():
    there = translate({"text_model.encoder.layers.0.mlp.fc1.bias": torch.ones(2)}, CLIP_TEXT_BARE)
    assert list(there) == ["encoder.layers.0.mlp.fc1.bias"]
    back = translate({**there, "embeddings.position_ids": torch.arange(3)}, CLIP_TEXT_BARE, inverse=True)
    assert list(back) == ["text_model.encoder.layers.0.mlp.fc1.bias"]
