"""The same random weights in our U-Net and in diffusers' give the same output."""

from dataclasses import replace

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.embeddings import timestep_embedding
from inkwash.weights.configs import unet_config_from_json, unet_json
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import unet_table

diffusers = pytest.importorskip("diffusers")

SD1 = UNetConfig(
    channels=32,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    transformer_depth=(1, 1, 0),
    context_dim=24,
    num_heads=4,
)
SD2 = replace(SD1, num_heads=None, head_dim=16, linear_projections=True)
SDXL = replace(
    SD2, transformer_depth=(0, 2, 4), transformer_depth_middle=4, num_res_blocks=2, vector_dim=6 * 256 + 20
)
MINI = UNetConfig(
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
)
CONFIGS = {
    "sd1": SD1,
    "sd2": SD2,
    "sdxl": SDXL,
    "mini": MINI,
    "inpainting": replace(SD1, in_channels=9),
    "noise level": replace(
        SD2,
        in_channels=7,
        num_classes=20,
        transformer_depth=(0, 1, 1),
        only_cross_attention=(False, True, False),
    ),
    "ssd-1b": replace(
        SDXL,
        transformer_depth=(0, 2, 3),
        transformer_depth_middle=None,
        transformer_depth_output=((0, 0, 0), (2, 1, 1), (3, 3, 5)),
    ),
}


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter away from its start: no zero convolution and no norm of ones hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        scale = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        parameter.data = scale + 1 if parameter.ndim == 1 and name.endswith("weight") else scale


def pair(config: UNetConfig) -> tuple[UNet, torch.nn.Module]:
    ours, theirs = UNet(config).eval(), diffusers.UNet2DConditionModel(**unet_json(config)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), unet_table(config)))
    return ours, theirs


def inputs(config: UNetConfig, height: int = 8, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(2, config.in_channels, height, width, generator=generator),
        "t": torch.tensor([981, 7]),
        "context": torch.randn(2, 5, config.context_dim, generator=generator),
    }
    if config.num_classes is not None:
        given["vector"] = torch.tensor([3, 19])
    return given


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for rounding: the largest difference against the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (12, 4), (5, 11)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_same_output(config, size):
    ours, theirs = pair(config)
    given = inputs(config, *size)
    extra = {}
    if config.vector_dim is not None:  # diffusers embeds the six sizes itself, after the pooled text
        text = torch.randn(2, 20, generator=torch.Generator().manual_seed(2))
        sizes = torch.tensor([[640.0, 512, 0, 8, 640, 512], [1024, 1024, 3, 0, 768, 1024]])
        given["vector"] = torch.cat([text, timestep_embedding(sizes.flatten(), 256).view(2, -1)], dim=1)
        extra["added_cond_kwargs"] = {"text_embeds": text, "time_ids": sizes}
    elif config.num_classes is not None:
        extra["class_labels"] = given["vector"]
    expected = theirs(given["x"], given["t"], given["context"], **extra).sample
    got = ours(**given)
    assert_near(got, expected)

    # and what conditions the output does so
    assert not torch.allclose(got, ours(**given | {"t": given["t"] - 1}), atol=1e-6)
    assert not torch.allclose(got, ours(**given | {"context": given["context"].flip(1, 2)}), atol=1e-4)
    if "vector" in given:
        assert not torch.allclose(got, ours(**given | {"vector": given["vector"].flip(0)}), atol=1e-4)


@torch.no_grad()
def test_timesteps_between_whole_ones():
    ours, theirs = pair(SD1)
    given = inputs(SD1) | {"t": torch.tensor([0.25, 998.7])}
    assert_near(ours(**given), theirs(given["x"], given["t"], given["context"]).sample)


@torch.no_grad()
@pytest.mark.parametrize("config", [SD1, MINI], ids=["sd1", "mini"])
def test_control_residuals(config):
    ours, theirs = pair(config)
    given, hidden = inputs(config, 9, 7), []
    blocks = [*ours.input_blocks, ours.middle_block]
    hooks = [block.register_forward_hook(lambda *call: hidden.append(call[-1])) for block in blocks]
    plain = ours(**given)
    for hook in hooks:
        hook.remove()
    control = [torch.randn(h.shape, generator=torch.Generator().manual_seed(i)) for i, h in enumerate(hidden)]
    expected = theirs(
        given["x"],
        given["t"],
        given["context"],
        down_block_additional_residuals=tuple(control[:-1]),
        mid_block_additional_residual=control[-1],
    ).sample
    got = ours(**given, control=control)
    assert_near(got, expected)
    assert not torch.allclose(got, plain, atol=1e-3)
    assert_near(ours(**given, control=[torch.zeros_like(c) for c in control]), plain, 0.0)
    with pytest.raises(ValueError, match=f"{len(control) - 1} control.*{len(control)} wanted"):
        ours(**given, control=control[1:])


def test_a_vector_that_does_not_fit_the_network_raises():
    with pytest.raises(ValueError, match="vector_dim None"):
        UNet(SD1)(**inputs(SD1), vector=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="the vector given is none"):
        UNet(SDXL)(**inputs(SDXL))


def test_a_context_that_does_not_fit_the_network_raises():
    with pytest.raises(ValueError, match=rf"\(B, T, {SD1.context_dim}\), and the one given is none"):
        UNet(SD1)(**inputs(SD1) | {"context": None})
    with pytest.raises(ValueError, match=r"given is one of shape \(2, 3, 5\)"):
        UNet(SD1)(**inputs(SD1) | {"context": torch.zeros(2, 3, 5)})


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (UNetConfig(), 859_520_964),
        (UNetConfig(in_channels=9), 859_535_364),
        (UNetConfig(context_dim=1024, num_heads=None, head_dim=64, linear_projections=True), 865_910_724),
        (
            UNetConfig(
                channel_mult=(1, 2, 4),
                transformer_depth=(0, 2, 10),
                transformer_depth_middle=10,
                context_dim=2048,
                num_heads=None,
                head_dim=64,
                linear_projections=True,
                vector_dim=2816,
            ),
            2_567_463_684,
        ),
    ],
    ids=["sd1", "sd1 inpainting", "sd2", "sdxl"],
)
def test_published_parameter_counts(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(config).parameters()) == count


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_json_round_trip(config, tmp_path):
    assert unet_config_from_json(unet_json(config)) == config
    # and through what diffusers itself writes, with all its own fields
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**unet_json(config, sample_size=8))
    assert unet_config_from_json(dict(model.config)) == config
    assert model.config.sample_size == 8


def published(**fields) -> dict:
    """`unet/config.json` as Stable Diffusion 1's has it."""
    down, up = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": up,
    } | fields


def test_published_configs():
    assert unet_config_from_json(published()) == UNetConfig()
    sd2 = published(attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True)
    linear = {"num_heads": None, "head_dim": 64, "linear_projections": True}
    assert unet_config_from_json(sd2) == UNetConfig(context_dim=1024, **linear)
    sdxl = published(
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        attention_head_dim=[5, 10, 20],
        block_out_channels=[320, 640, 1280],
        cross_attention_dim=2048,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        projection_class_embeddings_input_dim=2816,
        transformer_layers_per_block=[1, 2, 10],
        upcast_attention=None,
        use_linear_projection=True,
    )
    wanted = UNetConfig(
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 10),
        transformer_depth_middle=10,
        context_dim=2048,
        vector_dim=2816,
        **linear,
    )
    assert unet_config_from_json(sdxl) == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_embed_type", "timestep"),
        ("mid_block_type", None),
        ("resnet_time_scale_shift", "scale_shift"),
        ("attention_head_dim", [8, 8, 5, 5]),
        ("attention_head_dim", 7),
        ("attention_head_dim", "8"),
        ("attention_head_dim", 0),
        ("addition_embed_type", "image"),
        ("num_class_embeds", -1),
        ("in_channels", True),
        ("in_channels", 4.0),
        ("block_out_channels", [320, 600, 1280, 1280]),
        ("block_out_channels", []),
        ("block_out_channels", None),
        ("down_block_types", ["AttnDownBlock2D"] * 4),
        ("down_block_types", 3),
        ("down_block_types", [["DownBlock2D"]] * 4),
        ("up_block_types", ["UpBlock2D"] * 4),
        ("layers_per_block", [2, 2, 2, 3]),
        ("cross_attention_dim", [768, 768]),
        ("transformer_layers_per_block", [[1, 2], 1, 1, 1]),
        ("use_linear_projection", "yes"),
        ("norm_eps", 1e-6),
        ("num_atention_heads", 8),
    ],
)
def test_what_ours_does_not_cover_is_refused_by_name(field, value):
    with pytest.raises(ModelFileError, match=field):
        unet_config_from_json(published(**{field: value}))


def test_missing_fields_and_wrong_kinds_are_refused():
    data = published()
    del data["block_out_channels"]
    with pytest.raises(ModelFileError, match="block_out_channels is missing"):
        unet_config_from_json(data)
    with pytest.raises(ModelFileError, match="list given"):
        unet_config_from_json([])  # pyright: ignore
    with pytest.raises(ModelFileError, match="nearest: num_attention_heads"):
        unet_config_from_json(published(num_atention_heads=8))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"transformer_depth": (1, 1, 2), "transformer_depth_middle": 1}, "transformer_depth_middle"),
        ({"transformer_depth_middle": 0}, "transformer_depth_middle"),
        ({"channel_mult": (2, 2, 4)}, "channel_mult"),
        ({"num_heads": 5}, "num_heads"),
        ({"num_heads": None, "head_dim": 48}, "head_dim"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(fields, named):
    with pytest.raises(ModelFileError, match=named):
        unet_json(replace(SD1, **fields))
