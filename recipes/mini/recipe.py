"""Every figure of `mini`'s recipe: `FULL` for one GPU, `REDUCED` for a CPU of few cores. The networks are the same."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import CLIPTextConfig, CLIPVisionConfig
from inkwash.models.unet import UNetConfig
from inkwash.training.loop import LoopConfig

BUILD = Path("build/mini")
SHIPPED = Path("src/inkwash/shipped/mini")
STYLES = ["noto", "twemoji", "fluent", "fluent flat", "emojione"]

# the choices of first stage that are measured against each other; the first is the shipped one
AUTOENCODERS = {
    "f8c8": AutoencoderConfig(
        channels=32, channel_mult=(1, 2, 3, 5), num_res_blocks=1, latent_channels=8, norm_groups=1
    ),
    "f8c4": AutoencoderConfig(
        channels=32, channel_mult=(1, 2, 3, 5), num_res_blocks=1, latent_channels=4, norm_groups=1
    ),
    "f4c4": AutoencoderConfig(
        channels=32, channel_mult=(1, 2, 3), num_res_blocks=1, latent_channels=4, norm_groups=1
    ),
}
UNET = UNetConfig(
    in_channels=8,
    out_channels=8,
    channels=96,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    transformer_depth=(1, 2, 1),
    transformer_depth_middle=1,
    context_dim=256,
    num_heads=None,
    head_dim=32,
    linear_projections=True,
)
# vocab_size and eos_token follow from the vocabulary that the captions need
TEXT = CLIPTextConfig(width=256, num_layers=4, num_heads=4, mlp_width=1024)
VISION = CLIPVisionConfig(
    width=256, num_layers=4, num_heads=4, mlp_width=1024, image_size=64, patch_size=16, projection_dim=256
)


FAST: Any = {"lr": 1e-3, "ema_decay": 0.999, "save_every": 2_000}  # of what a GPU trains in minutes


@dataclass(frozen=True)
class UNetTraining:
    """Settings of one training of the U-Net.

    timestep_power: 1 draws timesteps evenly, less more of the noisy ones. pairs: steps of pairs of drawings after each step
    of single pictures; with them, a U-Net that goes on has itself as its teacher, and the loss of single pictures the
    weight `keep`.
    """

    loop: LoopConfig
    batch: int
    timestep_power: float
    pairs: int = 1
    keep: float = 4.0


@dataclass(frozen=True)
class Recipe:
    """Settings of the parts' training and of its data."""

    size: int = 128  # pixels a side
    scenes: int = 40_000  # that are composed
    features: LoopConfig = field(default=LoopConfig(1_500, decay_steps=1_200, weight_decay=0.05, **FAST))
    judge: LoopConfig = field(default=LoopConfig(3_500, decay_steps=3_000, weight_decay=0.1, **FAST))
    classifier_batch: int = 256
    autoencoder: LoopConfig = field(default=LoopConfig(7_000, decay_steps=4_000, betas=(0.9, 0.95), **FAST))
    autoencoder_batch: int = 64
    crop: int = 128  # pixels a side of what the first stage learns from
    l2_weight: float = 2.0
    disc_start: int | None = None  # the step from which a PatchGAN judges, if at all
    trial_steps: int = 10_000  # of each first stage, when they are compared
    clip: LoopConfig = field(
        default=LoopConfig(4_000, lr=5e-4, decay_steps=3_000, weight_decay=0.1, save_every=2_000)
    )
    clip_batch: int = 1024
    pair_texts: LoopConfig = field(
        default=LoopConfig(
            4_000, lr=1e-3, decay_steps=3_500, weight_decay=0.0, ema_decay=0.99, save_every=2_000
        )
    )
    pair_texts_batch: int = 256
    # names are learned at the noisy timesteps
    unet: UNetTraining = UNetTraining(
        LoopConfig(12_000, decay_steps=6_000, warmup_steps=500, **FAST), batch=512, timestep_power=0.45
    )
    # of a U-Net that goes on from trained weights, at a rate that falls from the start; edges and even colours are
    # learned at the less noisy timesteps
    further: UNetTraining = UNetTraining(
        LoopConfig(8_000, lr=3e-4, decay_steps=7_500, warmup_steps=500, ema_decay=0.999, save_every=2_000),
        batch=512,
        timestep_power=0.7,
    )
    prediction: str = "v"
    # of the U-Net's variants, which start from its weights
    variant: LoopConfig = field(
        default=LoopConfig(3_000, lr=5e-4, decay_steps=1_500, ema_decay=0.998, save_every=1_000)
    )
    variant_batch: int = 256


FULL = Recipe()
REDUCED = replace(
    FULL,
    scenes=12_000,
    features=LoopConfig(1_000, lr=2e-3, decay_steps=700, weight_decay=0.05, ema_decay=0.99),
    judge=LoopConfig(1_800, lr=2e-3, decay_steps=900, weight_decay=0.05, ema_decay=0.99),
    classifier_batch=96,
    autoencoder=LoopConfig(9_000, lr=1e-3, decay_steps=4_500, ema_decay=0.995),
    autoencoder_batch=12,
    crop=64,
    l2_weight=0.0,
    disc_start=8_300,
    trial_steps=600,
    clip=LoopConfig(450, lr=1e-3, decay_steps=250, weight_decay=0.1, ema_decay=0.99),
    clip_batch=192,
    pair_texts=LoopConfig(
        3_000, lr=1e-3, decay_steps=2_700, weight_decay=0.0, ema_decay=0.99, save_every=100
    ),
    pair_texts_batch=24,
    unet=UNetTraining(
        LoopConfig(18_000, lr=1e-3, decay_steps=6_000, ema_decay=0.999, warmup_steps=300, muon=6.0),
        batch=24,
        timestep_power=FULL.unet.timestep_power,
    ),
    further=UNetTraining(
        LoopConfig(3_000, lr=3e-4, decay_steps=2_900, warmup_steps=30, ema_decay=0.995, save_every=50),
        batch=32,
        timestep_power=0.6,
    ),
    # gentle: at a larger rate, or by Muon, the variants forget what the U-Net draws
    variant=LoopConfig(2_000, lr=3e-4, decay_steps=1_800, warmup_steps=50, ema_decay=0.998, save_every=100),
    variant_batch=32,
)
