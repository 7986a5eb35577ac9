"""The same random weights in our VQ autoencoder and in diffusers' VQModel give the same codes and pictures."""

from dataclasses import replace

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ, Codebook
from inkwash.weights.configs import autoencoder_config_from_json, autoencoder_json
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import autoencoder_table
from tests.models.test_unet import assert_near, randomise

diffusers = pytest.importorskip("diffusers")

F4 = AutoencoderConfig(
    channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    latent_channels=3,
    scale_factor=1.0,
    codebook_size=50,
)
CONFIGS = {
    "vq-f4": F4,
    "vq-f8": replace(F4, channel_mult=(1, 1, 2, 2), num_res_blocks=2, attention=(3,), latent_channels=4),
    "vq-f4-noattn": replace(F4, middle_attention=False),
    "vq-f2, scaled": replace(F4, channel_mult=(1, 2), scale_factor=0.5),
}
KL_F16 = AutoencoderConfig(
    channels=32, channel_mult=(1, 1, 1, 1, 2), num_res_blocks=1, latent_channels=16, attention=(3, 4)
)


def pair(config: AutoencoderConfig) -> tuple[AutoencoderVQ, torch.nn.Module]:
    ours, theirs = AutoencoderVQ(config).eval(), diffusers.VQModel(**autoencoder_json(config)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), autoencoder_table(config)))
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_same_latents_codes_and_pictures(config: AutoencoderConfig) -> None:
    ours, theirs = pair(config)
    f, scale, generator = config.factor, config.scale_factor, torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 5 * f, 3 * f, generator=generator) * 2 - 1
    expected = theirs.encode(pixels).latents
    posterior = ours.encode(pixels)
    assert_near(posterior.mean, expected * scale)
    assert torch.equal(posterior.sample(torch.randn(expected.shape)), posterior.mean)

    latent = torch.randn(2, config.latent_channels, 5, 3, generator=generator)
    codes, _, (_, _, indices) = theirs.quantize(latent)
    got, places = ours.quantize(latent)
    assert torch.equal(places.flatten(), indices) and len(places.unique()) > 10
    assert_near(got, codes)
    assert_near(ours.decode(latent * scale), theirs.decode(latent).sample)


@torch.no_grad()
def test_attention_within_levels_of_kl() -> None:
    ours, theirs = AutoencoderKL(KL_F16).eval(), diffusers.AutoencoderKL(**autoencoder_json(KL_F16)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), autoencoder_table(KL_F16)))
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = theirs.encode(pixels).latent_dist
    assert_near(ours.moments(pixels)[0], posterior.mean)
    assert_near(ours.decode(posterior.mean * KL_F16.scale_factor), theirs.decode(posterior.mean).sample)


def test_codes_are_their_own_nearest_and_the_gradient_passes() -> None:
    codebook = Codebook(5000, 4)
    torch.nn.init.normal_(codebook.embedding.weight, std=10)
    indices = torch.arange(5000).view(1, 50, 100)
    z = codebook.codes(indices).detach().requires_grad_()
    again, places = codebook(z)
    assert torch.equal(places, indices) and torch.equal(again, z)  # in pieces, too
    moved, places = codebook(z + 1e-3)
    assert torch.equal(places, indices) and torch.allclose(moved, z, atol=1e-5)
    moved.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("config", [*CONFIGS.values(), KL_F16], ids=[*CONFIGS, "kl-f16"])
def test_config_json_round_trip(config: AutoencoderConfig) -> None:
    kind = diffusers.VQModel if config.codebook_size else diffusers.AutoencoderKL
    assert autoencoder_config_from_json(autoencoder_json(config)) == config
    with torch.device("meta"):
        model = kind(**autoencoder_json(config, sample_size=32))
    assert autoencoder_config_from_json(dict(model.config)) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_vq_embeddings", 0),
        ("vq_embed_dim", 5),
        ("norm_type", "spatial"),
        ("lookup_from_codebook", True),
        ("latents_mean", [0.0] * 3),
        ("up_block_types", ["AttnUpDecoderBlock2D"] * 3),
    ],
)
def test_what_ours_does_not_cover_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=field):
        autoencoder_config_from_json(autoencoder_json(F4) | {field: value})


def test_sizes_that_are_no_multiple_of_f_are_refused() -> None:
    with pytest.raises(ValueError, match="10x8 is not a multiple of 4"):
        AutoencoderVQ(F4).encode(torch.zeros(1, 3, 8, 10))
