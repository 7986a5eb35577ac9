"""Networks that see no context: the same random weights in our U-Net and in diffusers' UNet2DModel."""

from dataclasses import replace

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.configs import unet_config_from_json, unet_json
from inkwash.weights.families import DDPM_CIFAR10
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import OLD_ATTENTION, modern, unet_table
from tests.models.test_unet import assert_near, randomise

diffusers = pytest.importorskip("diffusers")

LDM = UNetConfig(
    in_channels=3,
    out_channels=3,
    channels=32,
    channel_mult=(1, 2, 3),
    num_res_blocks=1,
    transformer_depth=(0, 1, 1),
    context_dim=None,
    num_heads=None,
    head_dim=16,
)
DDPM = replace(
    LDM,
    num_heads=1,
    head_dim=None,
    num_res_blocks=2,
    transformer_depth=(0, 1, 0),
    sin_first=True,
    freq_shift=1,
    downsample_padding=0,
    norm_eps=1e-6,
)
CONFIGS = {
    "ldm": LDM,
    "ldm, super-resolution": replace(LDM, in_channels=6, transformer_depth=(0, 0, 1)),
    "ldm, churches": replace(
        LDM, transformer_depth=(1, 1, 1), scale_shift_norm=True, resblock_updown=True, norm_groups=16
    ),
    "ldm, inpainting": replace(LDM, in_channels=7, resblock_updown=True),
    "ldm, landscapes": replace(LDM, transformer_depth=(0, 0, 0)),
    "ddpm": DDPM,
    "no attention, classes": replace(
        LDM, transformer_depth=(0, 0, 0), transformer_depth_middle=0, num_classes=5
    ),
}


def pair(config: UNetConfig) -> tuple[UNet, torch.nn.Module]:
    ours, theirs = UNet(config).eval(), diffusers.UNet2DModel(**unet_json(config)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), unet_table(config)))
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_same_output(config: UNetConfig) -> None:
    ours, theirs = pair(config)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, 8, 16, generator=generator)
    t = torch.tensor([981.0, 7.5])
    classes = torch.tensor([3, 0]) if config.num_classes else None
    got = ours(x, t, vector=classes)
    assert_near(got, theirs(x, t, class_labels=classes).sample)
    assert not torch.allclose(got, ours(x, t - 1, vector=classes), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [LDM, DDPM, CONFIGS["ldm, churches"]], ids=["ldm", "ddpm", "churches"])
@pytest.mark.parametrize("size", [(9, 7), (5, 11)], ids=str)
def test_any_size_is_taken(config: UNetConfig, size: tuple[int, int]) -> None:
    ours = UNet(config)
    randomise(ours)
    made = ours(torch.randn(1, config.in_channels, *size), torch.tensor([5.0]))
    assert made.shape == (1, 3, *size) and made.isfinite().all()


@torch.no_grad()
def test_cifar10_at_its_full_size() -> None:
    """`config.json` of google/ddpm-cifar10-32, its weights random."""
    published = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    config = unet_config_from_json(published)
    assert config == DDPM_CIFAR10.unet
    theirs = diffusers.UNet2DModel.from_config(published).eval()
    randomise(theirs)
    ours = UNet(config).eval()
    ours.load_state_dict(translate(theirs.state_dict(), unet_table(config), inverse=True))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert_near(ours(x, torch.tensor([500.0])), theirs(x, 500).sample)


def test_old_names_of_attention_are_the_same_weights() -> None:
    """Published folders of 2022 name query, key, value and proj_attn, which diffusers renames as it loads them."""
    ours = UNet(LDM)
    randomise(ours)
    new = translate(ours.state_dict(), unet_table(LDM))
    old = {}
    for key, value in new.items():
        for name, today in OLD_ATTENTION.items():
            key = key.replace(f".{today}.", f".{name}.")
        old[key] = value
    assert any(key.endswith("attentions.0.proj_attn.weight") for key in old)
    back = translate(modern(old), unet_table(LDM), inverse=True)
    assert all(torch.equal(back[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_json_round_trip(config: UNetConfig) -> None:
    assert unet_config_from_json(unet_json(config)) == config
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**unet_json(config, sample_size=8))
    assert unet_config_from_json(dict(model.config)) == config
    assert model.config.sample_size == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_head_dim", 7),
        ("attention_head_dim", 0),
        ("attn_norm_num_groups", 8),
        ("add_attention", 1),
        ("downsample_type", "resnet"),
        ("downsample_padding", 2),
        ("freq_shift", -1),
        ("norm_eps", 0),
        ("resnet_time_scale_shift", "ada_group"),
        ("time_embedding_type", "fourier"),
        ("mid_block_type", None),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 0),
        ("down_block_types", ["SkipDownBlock2D"] * 3),
        ("up_block_types", ["UpBlock2D"] * 3),
        ("flip_sin_to_cos", "yes"),
    ],
)
def test_what_ours_does_not_cover_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=field):
        unet_config_from_json(unet_json(LDM) | {field: value})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"head_dim": None, "num_heads": 8}, "num_heads"),
        ({"transformer_depth_middle": None}, "transformer_depth_middle"),
        ({"transformer_depth_output": ((0, 0), (1, 0), (1, 1))}, "transformer_depth_output"),
        ({"vector_dim": 8}, "vector_dim"),
        ({"context_dim": 8, "sin_first": True}, "sin_first"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(fields: dict, named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        unet_json(replace(LDM, **fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"transformer_depth": (0, 1, 2)}, "without a context, attention has depth 1"),
        ({"freq_shift": 2}, "freq_shift 2 and"),
        ({"downsample_padding": 3}, "downsample_padding 3 should be 0 or 1"),
    ],
    ids=str,
)
def test_what_is_no_network_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(LDM, **fields)
