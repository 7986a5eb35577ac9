"""The same random weights in our KL autoencoder and in diffusers' give the same latents and pictures."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.weights.configs import autoencoder_config_from_json, autoencoder_json
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import OLD_ATTENTION, autoencoder_table, modern
from tests.models.test_unet import assert_near, randomise

diffusers = pytest.importorskip("diffusers")

F4 = AutoencoderConfig(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, scale_factor=0.5)
CONFIGS = {
    "f4": F4,
    "f8": AutoencoderConfig(channels=32, channel_mult=(1, 1, 2, 2), num_res_blocks=2, latent_channels=3),
    "f4, no attention": replace(F4, middle_attention=False, norm_groups=8),
    "f2, masks": AutoencoderConfig(
        in_channels=4, channels=16, channel_mult=(1, 3), num_res_blocks=1, norm_groups=4
    ),
}


def pair(config: AutoencoderConfig) -> tuple[AutoencoderKL, torch.nn.Module]:
    ours, theirs = AutoencoderKL(config).eval(), diffusers.AutoencoderKL(**autoencoder_json(config)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), autoencoder_table(config)))
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_same_moments_samples_and_pictures(config):
    ours, theirs = pair(config)
    f, scale = config.factor, config.scale_factor
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, config.in_channels, 5 * f, 3 * f, generator=generator) * 2 - 1
    expected = theirs.encode(pixels).latent_dist
    mean, logvar = ours.moments(pixels)
    assert mean.shape == (2, config.latent_channels, 5, 3)
    assert_near(mean, expected.mean)
    assert_near(logvar, expected.logvar)

    posterior = ours.encode(pixels)
    assert_near(posterior.mean, expected.mean * scale)
    assert_near(posterior.std, expected.std * scale)
    noise = torch.randn(mean.shape, generator=generator)
    assert_near(posterior.sample(noise), (expected.mean + expected.std * noise) * scale)

    latent = torch.randn(2, config.latent_channels, 3, 5, generator=generator)
    pictures = ours.decode(latent)
    assert pictures.shape == (2, config.in_channels, 3 * f, 5 * f)
    assert_near(pictures, theirs.decode(latent / scale).sample)


@torch.no_grad()
def test_log_variance_is_clamped_as_theirs():
    ours, theirs = pair(F4)
    ours.quant_conv.bias.data[:] = torch.tensor([0.0, 0, 0, 0, 60, -60, 0, 0])
    theirs.load_state_dict(translate(ours.state_dict(), autoencoder_table(F4)))
    pixels = torch.zeros(1, 3, 8, 8)
    logvar = ours.moments(pixels)[1]
    assert (logvar.max().item(), logvar.min().item()) == (20, -30)
    assert_near(logvar, theirs.encode(pixels).latent_dist.logvar)


def older(tensors):
    """Under the names of diffusers before 0.17."""
    names = {new: old for old, new in OLD_ATTENTION.items()}
    parts = {key: key.split(".attentions.0.") for key in tensors}
    renamed = {}
    for key, (begin, *end) in parts.items():
        module, _, kind = end[0].rpartition(".") if end else ("", "", "")
        renamed[f"{begin}.attentions.0.{names[module]}.{kind}" if module in names else key] = tensors[key]
    return renamed


def test_diffusers_reads_the_old_attention_names_as_the_same_weights(tmp_path):
    ours, theirs = pair(F4)
    old = older(translate(ours.state_dict(), autoencoder_table(F4)))
    assert "encoder.mid_block.attentions.0.query.weight" in old
    assert modern(old).keys() == theirs.state_dict().keys()
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(autoencoder_json(F4)))
    read = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False).state_dict()
    assert all(torch.equal(read[key], value) for key, value in theirs.state_dict().items())


def test_sizes_that_are_no_multiple_of_f_are_refused():
    with pytest.raises(ValueError, match="10x8 is not a multiple of 4"):
        AutoencoderKL(F4).encode(torch.zeros(1, 3, 8, 10))


def test_published_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in AutoencoderKL().parameters()) == 83_653_863


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_json_round_trip(config):
    assert autoencoder_config_from_json(autoencoder_json(config)) == config
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(**autoencoder_json(config, sample_size=32))
    assert autoencoder_config_from_json(dict(model.config)) == config
    assert model.config.sample_size == 32


def published(**fields) -> dict:
    """`vae/config.json` as Stable Diffusion 1's has it."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    } | fields


def test_published_configs():
    assert autoencoder_config_from_json(published()) == AutoencoderConfig()
    sdxl = published(force_upcast=True, scaling_factor=0.13025, latents_mean=None, latents_std=None)
    assert autoencoder_config_from_json(sdxl) == AutoencoderConfig(scale_factor=0.13025)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_fn", "relu"),
        ("shift_factor", 0.1),
        ("latents_mean", [0.0] * 3),
        ("use_quant_conv", False),
        ("scaling_factor", 0),
        ("scaling_factor", float("nan")),
        ("scaling_factor", "0.18"),
        ("out_channels", 4),
        ("in_channels", 0),
        ("block_out_channels", [128, 200]),
        ("down_block_types", ["DownEncoderBlock2D"] * 3),
        ("up_block_types", ["AttnUpDecoderBlock2D"] * 4),
        ("mid_block_add_attention", 1),
        ("layers_per_block", None),
        ("latent_chanels", 4),
    ],
)
def test_what_ours_does_not_cover_is_refused_by_name(field, value):
    with pytest.raises(ModelFileError, match=field):
        autoencoder_config_from_json(published(**{field: value}))


def test_what_diffusers_cannot_express_is_refused_by_name():
    with pytest.raises(ModelFileError, match="channel_mult"):
        autoencoder_json(replace(F4, channel_mult=(2, 2)))
