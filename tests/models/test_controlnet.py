"""The same random weights in our ControlNet and tiny autoencoder and in diffusers' give the same output."""

from dataclasses import replace

import pytest
import torch

from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.models.unet import UNet, UNetConfig
from inkwash.nn.embeddings import timestep_embedding
from inkwash.weights import shapes
from inkwash.weights.configs import controlnet_json, tiny_autoencoder_json, unet_json
from inkwash.weights.configs.t2i_adapter import t2i_adapter_config, t2i_adapter_json, t2i_adapter_table
from inkwash.weights.families import SD1, SD2, SDXL
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import controlnet_table, tiny_autoencoder_table, unet_table
from tests.models.test_unet import CONFIGS, assert_near, inputs, randomise

diffusers = pytest.importorskip("diffusers")

XL = CONFIGS["sdxl"]
HINTED = {
    "sd1": ControlNetConfig(CONFIGS["sd1"]),
    "sd2, of one channel": ControlNetConfig(CONFIGS["sd2"], hint_channels=1),
    "sdxl": ControlNetConfig(XL),
    "sdxl mid": ControlNetConfig(replace(XL, transformer_depth=(0, 1, 1), transformer_depth_middle=1)),
    "sdxl small": ControlNetConfig(replace(XL, transformer_depth=(0, 0, 0), transformer_depth_middle=None)),
}


def given(config: ControlNetConfig) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Inputs of ours, and what diffusers takes in the vector's place."""
    made = inputs(config.unet)
    hint = torch.rand(2, config.hint_channels, 64, 64, generator=torch.Generator().manual_seed(3))
    if config.unet.vector_dim is None:
        return made | {"hint": hint}, {}
    text = torch.randn(2, 20, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([[640.0, 512, 0, 8, 640, 512], [1024, 1024, 3, 0, 768, 1024]])
    vector = torch.cat([text, timestep_embedding(sizes.flatten(), 256).view(2, -1)], dim=1)
    return made | {"hint": hint, "vector": vector}, {
        "added_cond_kwargs": {"text_embeds": text, "time_ids": sizes}
    }


@torch.no_grad()
@pytest.mark.parametrize("config", HINTED.values(), ids=HINTED.keys())
def test_same_residuals(config: ControlNetConfig) -> None:
    ours, theirs = ControlNet(config).eval(), diffusers.ControlNetModel(**controlnet_json(config)).eval()
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), controlnet_table(config)))
    inputs, extra = given(config)
    down, middle = theirs(
        inputs["x"],
        inputs["t"],
        inputs["context"],
        controlnet_cond=inputs["hint"],
        return_dict=False,
        **extra,
    )
    made = ours(**inputs)
    assert len(made) == len(down) + 1
    for got, expected in zip(made, [*down, middle], strict=True):
        assert_near(got, expected)
    other = ours(**inputs | {"hint": inputs["hint"].flip(-1)})
    assert not torch.allclose(made[0], other[0], atol=1e-4)


@torch.no_grad()
def test_the_unet_takes_its_residuals_as_theirs_does() -> None:
    config = HINTED["sd1"]
    control, unet = ControlNet(config).eval(), UNet(config.unet).eval()
    randomise(control)
    randomise(unet, seed=1)
    theirs = diffusers.UNet2DConditionModel(**unet_json(config.unet)).eval()
    theirs.load_state_dict(translate(unet.state_dict(), unet_table(config.unet)))
    given_inputs, _ = given(config)
    residuals = control(**given_inputs)
    x, t, context = (given_inputs[name] for name in ("x", "t", "context"))
    expected = theirs(
        x,
        t,
        context,
        down_block_additional_residuals=tuple(residuals[:-1]),
        mid_block_additional_residual=residuals[-1],
    ).sample
    assert_near(unet(x, t, context, control=residuals), expected)


def test_an_untrained_one_changes_nothing() -> None:
    inputs, _ = given(HINTED["sd1"])
    assert all((residual == 0).all() for residual in ControlNet(HINTED["sd1"])(**inputs))


def test_hints_of_another_size_are_refused() -> None:
    inputs, _ = given(HINTED["sd1"])
    with pytest.raises(ValueError, match=r"the hint has shape \(3, 64, 32\), and \(3, 64, 64\) is wanted"):
        ControlNet(HINTED["sd1"])(**inputs | {"hint": inputs["hint"][..., :32]})


@pytest.mark.parametrize("unet", [SD1.unet, SD2.unet, SDXL.unet], ids=["sd1", "sd2", "sdxl"])
def test_full_size_has_the_tensors_of_diffusers(unet: UNetConfig) -> None:
    config = ControlNetConfig(unet)
    with torch.device("meta"):
        ours, theirs = ControlNet(config).state_dict(), diffusers.ControlNetModel(**controlnet_json(config))
    there = translate(ours, controlnet_table(config))
    assert {key: value.shape for key, value in there.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize(("unet", "published"), [(SD1.unet, 361_279_120), (SDXL.unet, 1_251_014_160)])
def test_published_parameter_counts(unet: UNetConfig, published: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ControlNet(ControlNetConfig(unet)).parameters()) == published


@pytest.mark.parametrize(
    "config",
    [T2IAdapterConfig(), T2IAdapterConfig(factor=16), T2IAdapterConfig(light=True)],
    ids=["full", "xl", "light"],
)
def test_t2i_adapters_have_the_tensors_of_diffusers(config: T2IAdapterConfig) -> None:
    said = {key: value for key, value in t2i_adapter_json(config).items() if key != "_class_name"}
    with torch.device("meta"):
        ours, theirs = T2IAdapter(config).state_dict(), diffusers.T2IAdapter(**said).state_dict()
    there = translate(ours, t2i_adapter_table(config))
    assert {key: value.shape for key, value in there.items()} == {
        key.removeprefix("adapter."): value.shape for key, value in theirs.items()
    }
    assert t2i_adapter_config(shapes.of(ours)) == config


@torch.no_grad()
@pytest.mark.parametrize("latent_channels", [4, 16])
def test_same_tiny_autoencoder(latent_channels: int) -> None:
    config = TinyAutoencoderConfig(channels=16, latent_channels=latent_channels)
    ours, theirs = TinyAutoencoder(config), diffusers.AutoencoderTiny(**tiny_autoencoder_json(config))
    randomise(ours)
    theirs.load_state_dict(translate(ours.state_dict(), tiny_autoencoder_table()))
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = ours.encode(pixels).mean
    assert latent.shape == (2, latent_channels, 4, 6)
    assert_near(latent, theirs.encode(pixels).latents)
    assert_near(ours.decode(9 * latent), theirs.decode(9 * latent).sample)  # so large that the clamp acts


def test_tiny_autoencoder_has_the_published_size() -> None:
    assert sum(p.numel() for p in TinyAutoencoder().parameters()) == 2_445_063
