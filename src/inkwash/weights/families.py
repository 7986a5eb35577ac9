"""The family as values: what the published checkpoints are built of.

A variant (inpainting, depth, InstructPix2Pix) is its family with other input channels.
"""

from dataclasses import dataclass, replace

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import CLIPTextConfig
from inkwash.models.tokenizer import END
from inkwash.models.unet import UNetConfig

CLIP_L = CLIPTextConfig()
OPEN_CLIP_H = CLIPTextConfig(
    width=1024, num_layers=24, num_heads=16, mlp_width=4096, activation="gelu", projection_dim=1024
)
OPEN_CLIP_BIG_G = CLIPTextConfig(
    width=1280, num_layers=32, num_heads=20, mlp_width=5120, activation="gelu", projection_dim=1280
)


@dataclass(frozen=True)
class TextTower:
    """A text encoder, and what of it is the context."""

    config: CLIPTextConfig
    skip: int = 1  # the layer from the end: 2 is the penultimate
    final_norm: bool = True
    pad: str = END  # the token that fills up


@dataclass(frozen=True)
class Family:
    """One family of checkpoints. The context is the towers' side by side; the vector is of the last one."""

    name: str
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: tuple[TextTower, ...]
    default_size: int  # pixels a side
    prediction: str | None  # eps or v; None where files of the family differ
    architecture: str  # as modelspec names it
    betas: tuple[float, float] = (0.00085, 0.012)  # square-root linear
    sizes: int = 0  # how many sizes, crops and scores follow the pooled text in the vector
    zero_empty: bool = False  # whether an empty negative prompt is zeros


SD1 = Family(
    name="sd1",
    unet=UNetConfig(),
    autoencoder=AutoencoderConfig(),
    text=(TextTower(CLIP_L),),
    default_size=512,
    prediction="eps",
    architecture="stable-diffusion-v1",
)
SD2 = Family(
    name="sd2",
    unet=UNetConfig(context_dim=1024, num_heads=None, head_dim=64, linear_projections=True),
    autoencoder=AutoencoderConfig(),
    text=(TextTower(OPEN_CLIP_H, skip=2, pad="!"),),
    default_size=512,  # 768 with v
    prediction=None,
    architecture="stable-diffusion-v2",
)
SDXL = Family(
    name="sdxl",
    unet=UNetConfig(
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 10),
        transformer_depth_middle=10,
        context_dim=2048,
        num_heads=None,
        head_dim=64,
        linear_projections=True,
        vector_dim=2816,  # the pooled 1280, and 256 for each of six sizes
    ),
    autoencoder=AutoencoderConfig(scale_factor=0.13025),
    text=(
        TextTower(CLIP_L, skip=2, final_norm=False),
        TextTower(OPEN_CLIP_BIG_G, skip=2, final_norm=False, pad="!"),
    ),
    default_size=1024,
    prediction="eps",
    architecture="stable-diffusion-xl-v1-base",
    sizes=6,
    zero_empty=True,
)
REFINER = Family(
    name="sdxl-refiner",
    unet=replace(
        SDXL.unet,
        channels=384,
        channel_mult=(1, 2, 4, 4),
        transformer_depth=(0, 4, 4, 0),
        transformer_depth_middle=4,
        context_dim=1280,
        vector_dim=2560,
    ),
    autoencoder=SDXL.autoencoder,
    text=SDXL.text[1:],
    default_size=1024,
    prediction="eps",
    architecture="stable-diffusion-xl-v1-refiner",
    sizes=5,  # the aesthetic score in place of the target size
)
SSD_1B = replace(
    SDXL,
    name="ssd-1b",
    unet=replace(
        SDXL.unet,
        transformer_depth=(0, 2, 4),
        transformer_depth_middle=None,
        transformer_depth_output=((0, 0, 0), (2, 1, 1), (4, 4, 10)),
    ),
)
VEGA = replace(
    SDXL,
    name="vega",
    unet=replace(
        SDXL.unet,
        transformer_depth=(0, 1, 2),
        transformer_depth_middle=None,
    ),
)
X4_UPSCALER = replace(
    SD2,
    name="x4-upscaler",
    unet=UNetConfig(
        in_channels=7,  # the latent, and the picture to enlarge
        channels=256,
        channel_mult=(1, 2, 2, 4),
        transformer_depth=(0, 1, 1, 1),
        context_dim=1024,
        linear_projections=True,
        only_cross_attention=(False, True, True, False),
        num_classes=1000,  # noise levels, of which 350 are in use
    ),
    autoencoder=AutoencoderConfig(channel_mult=(1, 2, 4), scale_factor=0.08333),
    prediction="v",
    betas=(0.0001, 0.02),
)
FAMILIES = {family.name: family for family in (SD1, SD2, SDXL, REFINER, SSD_1B, VEGA, X4_UPSCALER)}


def variant_of(config: UNetConfig) -> str | None:
    """What a U-Net sees beside the latent, by how many channels that has; None where it is nothing known."""
    latent = config.out_channels
    more = config.in_channels - latent
    if more == 3 and (config.num_classes is not None or not config.attends):
        return "upscaler"
    return {0: "base", 1: "depth", latent: "instruct-pix2pix", latent + 1: "inpainting"}.get(more)
