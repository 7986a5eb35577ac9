"""The family as values: what the published checkpoints are built of.

A variant (inpainting, depth, InstructPix2Pix) is its family with other input channels.
"""

from dataclasses import dataclass, replace

from inkwash.models.autoencoder import AutoencoderConfig, PixelConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.clip import CLIPTextConfig, CLIPVisionConfig
from inkwash.models.conditions import ClassConfig, PictureConfig, SemanticConfig
from inkwash.models.tokenizer import END
from inkwash.models.unet import UNetConfig
from inkwash.weights.first_stages import VQ_F4, VQ_F4_NOATTN, VQ_F8

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

    config: CLIPTextConfig | BERTConfig
    skip: int = 1  # the layer from the end: 2 is the penultimate
    final_norm: bool = True
    pad: str = END  # the token that fills up, of CLIP's vocabulary


@dataclass(frozen=True)
class Family:
    """One family of checkpoints. The context is the towers' side by side; the vector is of the last one."""

    name: str
    unet: UNetConfig
    autoencoder: AutoencoderConfig | PixelConfig
    text: tuple[TextTower, ...]
    default_size: int  # pixels a side
    prediction: str | None  # eps or v; None where files of the family differ
    architecture: str  # as modelspec names it
    betas: tuple[float, float] = (0.00085, 0.012)  # square-root linear, but for DDPM's
    sizes: int = 0  # how many sizes, crops and scores follow the pooled text in the vector
    zero_empty: bool = False  # whether an empty negative prompt is zeros
    cond_stage: ClassConfig | BERTConfig | SemanticConfig | PictureConfig | None = (
        None  # what conditions it that is no text
    )
    beta_schedule: str = "scaled_linear"


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

# Stable unCLIP (after Ramesh et al. 2022): the vector is a picture's, and its noise level's
UNCLIP_L = replace(
    SD2,
    name="sd2-unclip-l",
    unet=replace(SD2.unet, vector_dim=2 * 768, image_vector=True),
    prediction="v",
    default_size=768,
    cond_stage=PictureConfig(),
)
UNCLIP_H = replace(
    UNCLIP_L,
    name="sd2-unclip-h",
    unet=replace(UNCLIP_L.unet, vector_dim=2 * 1024),
    cond_stage=PictureConfig(
        CLIPVisionConfig(
            width=1280, num_layers=32, num_heads=16, mlp_width=5120, activation="gelu", projection_dim=1024
        )
    ),
)

# Latent diffusion's zoo (Rombach et al. 2022, tables 12 to 15), from its `models/ldm/*/config.yaml`.
LDM_VQ4 = Family(  # CelebA-HQ, FFHQ and LSUN bedrooms
    name="ldm-vq4",
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=224,
        channel_mult=(1, 2, 3, 4),
        transformer_depth=(0, 1, 1, 1),
        context_dim=None,
        num_heads=None,
        head_dim=32,
    ),
    autoencoder=VQ_F4,
    text=(),
    default_size=256,
    prediction="eps",
    architecture="latent-diffusion",
    betas=(0.0015, 0.0195),
)
LDM_CHURCHES = replace(
    LDM_VQ4,
    name="ldm-churches",
    unet=UNetConfig(
        channels=192,
        channel_mult=(1, 2, 2, 4, 4),
        transformer_depth=(1, 1, 1, 1, 0),
        context_dim=None,
        scale_shift_norm=True,
        resblock_updown=True,
    ),
    autoencoder=AutoencoderConfig(),  # its scale is 1 over the latents' deviation, and in the file
    betas=(0.0015, 0.0155),
)
LDM_CIN = replace(
    LDM_VQ4,
    name="ldm-cin",
    unet=UNetConfig(
        channels=256,
        channel_mult=(1, 2, 4),
        transformer_depth=(1, 1, 1),
        context_dim=512,
        num_heads=None,
        head_dim=32,
    ),
    autoencoder=VQ_F8,
    cond_stage=ClassConfig(num_classes=1000),
)
LDM_CIN256 = replace(
    LDM_VQ4,
    name="ldm-cin256",
    unet=replace(
        LDM_VQ4.unet, channels=192, channel_mult=(1, 2, 3, 5), context_dim=512, num_heads=1, head_dim=None
    ),
    cond_stage=ClassConfig(),
)
LDM_TEXT = Family(  # the one of 1.45 billion parameters
    name="ldm-text",
    unet=UNetConfig(context_dim=1280),
    autoencoder=AutoencoderConfig(),
    text=(TextTower(BERTConfig()),),
    default_size=256,
    prediction="eps",
    architecture="latent-diffusion",
)
LDM_TEXT256 = replace(
    LDM_VQ4,
    name="ldm-text256",
    unet=replace(LDM_VQ4.unet, channels=192, channel_mult=(1, 2, 3, 5), context_dim=640),
    text=(TextTower(BERTConfig(width=640)),),
)
LDM_LAYOUT = replace(
    LDM_VQ4,
    name="ldm-layout",
    unet=replace(
        LDM_VQ4.unet,
        channels=128,
        transformer_depth=(0, 3, 3, 3),
        transformer_depth_middle=3,
        context_dim=512,
    ),
    betas=(0.0015, 0.0205),
    cond_stage=BERTConfig(vocab_size=8192, width=512, num_layers=16, max_length=92),
)
LDM_SR = replace(
    LDM_VQ4,
    name="ldm-sr",
    unet=replace(
        LDM_VQ4.unet,
        in_channels=6,  # the latent, and the picture to enlarge
        channels=160,
        channel_mult=(1, 2, 2, 4),
        transformer_depth=(0, 0, 0, 1),
    ),
    betas=(0.0015, 0.0155),
)
LDM_INPAINTING = replace(
    LDM_VQ4,
    name="ldm-inpainting",
    unet=replace(
        LDM_VQ4.unet,
        in_channels=7,  # the latent, that of the picture without what is masked, and the mask
        channels=256,
        num_heads=8,
        head_dim=None,
        resblock_updown=True,
    ),
    autoencoder=VQ_F4_NOATTN,
    betas=(0.0015, 0.0205),
)
LDM_SEMANTIC = replace(
    LDM_VQ4,
    name="ldm-semantic",
    unet=replace(
        LDM_VQ4.unet,
        in_channels=6,  # the latent, and what is made of the labels
        channels=128,
        channel_mult=(1, 4, 8),
        transformer_depth=(0, 0, 0),
        num_heads=8,
        head_dim=None,
    ),
    default_size=512,
    betas=(0.0015, 0.0205),
    cond_stage=SemanticConfig(),
)

# Ho et al. 2020, appendix B, as diffusers has the original weights (google/ddpm-cifar10-32, google/ddpm-*-256).
DDPM_CIFAR10 = Family(
    name="ddpm-cifar10",
    unet=UNetConfig(
        in_channels=3,
        out_channels=3,
        channels=128,
        channel_mult=(1, 2, 2, 2),
        transformer_depth=(0, 1, 0, 0),
        context_dim=None,
        num_heads=1,
        sin_first=True,
        freq_shift=1,
        downsample_padding=0,
        norm_eps=1e-6,
    ),
    autoencoder=PixelConfig(),
    text=(),
    default_size=32,
    prediction="eps",
    architecture="ddpm",
    betas=(0.0001, 0.02),
    beta_schedule="linear",
)
DDPM_LSUN = replace(  # and CelebA-HQ
    DDPM_CIFAR10,
    name="ddpm-lsun",
    unet=replace(DDPM_CIFAR10.unet, channel_mult=(1, 1, 2, 2, 4, 4), transformer_depth=(0, 0, 0, 0, 1, 0)),
    default_size=256,
)
FAMILIES = {
    family.name: family
    for family in (
        *(SD1, SD2, SDXL, REFINER, SSD_1B, VEGA, X4_UPSCALER, UNCLIP_L, UNCLIP_H),
        *(
            LDM_VQ4,
            LDM_CHURCHES,
            LDM_CIN,
            LDM_CIN256,
            LDM_TEXT,
            LDM_TEXT256,
            LDM_LAYOUT,
            LDM_SR,
            LDM_INPAINTING,
        ),
        *(LDM_SEMANTIC, DDPM_CIFAR10, DDPM_LSUN),
    )
}
