"""Options of methods for the networks around a diffusion model: first stages, tiny ones, CLIP. Imports no torch."""

from typing import Literal, Self

from pydantic import model_validator

from inkwash.pipeline.option import option
from inkwash.training.config import DATA, MODEL, NOISE, WATCH, Betas, CaptionConfig, DataConfig, Texts

Perceptual = Literal["none", "st-alex", "st-vgg", "lpips"]


class ReconstructionConfig(DataConfig):
    """Losses of a network that reconstructs pictures."""

    reconstruction: Literal["l1", "l2"] = option("l1", "Of the pixels' errors.", group=NOISE)
    perceptual: Perceptual = option(
        "none",
        "Distance of features beside that of pixels: shift-tolerant LPIPS over AlexNet or VGG, which `inkwash "
        "fetch-metrics` brings, or LPIPS of --perceptual-files.",
        group=NOISE,
    )
    perceptual_files: Texts = option(
        (), "Of lpips: the file of VGG16's weights, then that of the heads.", unset="none", group=NOISE
    )
    perceptual_weight: float = option(1.0, "Of that distance in the loss.", group=NOISE, ge=0, le=1000)
    disc_start: int = option(
        50_001, "Step from which on a discriminator of patches takes part.", group=NOISE, ge=0
    )
    disc_weight: float = option(
        0.5, "Of the discriminator's part, once its gradient has the others' size; 0 does without.",
        group=NOISE, ge=0, le=1000,
    )  # fmt: skip
    disc_width: int = option(64, "Channels of its first layer.", group=NOISE, ge=8, le=1024, multiple_of=8)
    disc_layers: int = option(
        3, "Its layers, each of which doubles what a patch sees.", group=NOISE, ge=1, le=6
    )
    layout: Literal["single", "diffusers"] = option(
        "diffusers", "Of the result: a folder, which says its scale factor, or one file.", group=WATCH
    )
    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp32", "Of the result.", group=WATCH)

    @model_validator(mode="after")
    def check_files(self) -> Self:
        wanted = 2 if self.perceptual == "lpips" else 0
        if len(self.perceptual_files) != wanted:
            raise ValueError(
                f"perceptual {self.perceptual} takes {wanted} perceptual_files; {len(self.perceptual_files)} given"
            )
        return self


class FirstStageConfig(ReconstructionConfig):
    """An autoencoder, with a KL term or a codebook (Rombach et al. 2022, section 3.1 and appendix G)."""

    model: str = option("", "Autoencoder, or model with one, to go on from.", unset="a new one", group=MODEL)
    design: str = option(
        "kl-f8",
        "Of a new one: kl-f4, kl-f8, kl-f16, kl-f32, vq-f2, vq-f4, vq-f4-noattn, vq-f8, vq-f8-n256, vq-f16.",
        group=MODEL,
    )
    width: int | None = option(
        None, "Channels of its first level.", unset="the design's", group=MODEL, ge=8, le=1024, multiple_of=8
    )
    res_blocks: int | None = option(
        None, "Blocks of each level.", unset="the design's", group=MODEL, ge=1, le=8
    )
    latent_channels: int | None = option(
        None, "Channels of a latent.", unset="the design's", group=MODEL, ge=1, le=64
    )
    codebook_size: int | None = option(
        None, "Codes of vq.", unset="the design's", group=MODEL, ge=2, le=2**20
    )
    train: Literal["all", "decoder"] = option(
        "all", "decoder keeps the latents as they are, as Stable Diffusion's ft-MSE does.", group=MODEL
    )
    kl_weight: float = option(1e-6, "Of the KL divergence of a latent.", group=NOISE, ge=0, le=10)
    codebook_weight: float = option(
        1.0, "Of what moves codes and latents together.", group=NOISE, ge=0, le=100
    )
    betas: Betas = option((0.5, 0.9), "Of AdamW.", group="Optimizer")
    lr: float = option(4.5e-5, "Learning rate.", group="Optimizer", gt=0, le=100)


class TinyAutoencoderTrainConfig(ReconstructionConfig):
    """A tiny autoencoder, distilled from a model's own (TAESD, Bohan 2023)."""

    model: str = option("mini", "Model whose autoencoder it takes the place of.", group=MODEL)
    variant: str | None = option(
        None, "Of the weights, where a folder has several, such as fp16.", group=MODEL
    )
    offline: bool = option(False, "Take hub ids from the cache alone.", group=MODEL)
    start: str = option("", "Tiny autoencoder to go on from.", unset="a new one", group=MODEL)
    width: int = option(64, "Channels of a new one.", group=MODEL, ge=8, le=1024)
    latent_weight: float = option(1.0, "Of the latents' error in the loss.", group=NOISE, ge=0, le=1000)
    lr: float = option(1e-4, "Learning rate.", group="Optimizer", gt=0, le=100)


class PriorTrainConfig(CaptionConfig):
    """A diffusion prior, from text to the vector of a picture (Ramesh et al. 2022, section 2.2)."""

    clip: str = option(
        ..., "Folder of the CLIP whose texts it reads, and whose pictures' vectors it gives.", group=MODEL
    )
    model: str = option("", "Prior to go on from, with its own text tower.", unset="a new one", group=MODEL)
    layers: int = option(20, "Of a new one.", group=MODEL, ge=1, le=64)
    heads: int = option(32, "Of a new one's attentions.", group=MODEL, ge=1, le=256)
    head_width: int = option(64, "Channels of a head.", group=MODEL, ge=8, le=256)
    bound: float = option(
        5.0, "Of predicted numbers when it draws, in standard deviations.", group=MODEL, gt=0, le=1000
    )
    timesteps: Literal["uniform", "stratified", "logit-normal", "noisy"] = option(
        "stratified",
        "Law of noise levels: stratified is uniform, spread over a batch; noisy prefers high ones, logit-normal middle ones",
        group=NOISE,
    )
    buckets: Literal[False] = option(False, "CLIP sees squares.", group=DATA)
    caption_dropout: float = option(
        0.1, "How often the caption is empty, 0 to 1; 0.1 keeps guidance trained.", group=DATA, ge=0, le=1
    )
    lr: float = option(1.1e-4, "Learning rate.", group="Optimizer", gt=0, le=100)
    weight_decay: float = option(0.06, "Decoupled weight decay.", group="Optimizer", ge=0, le=10)
    betas: Betas = option((0.9, 0.96), "Of AdamW.", group="Optimizer")
    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp32", "Of the result.", group=WATCH)


class ClipConfig(CaptionConfig):
    """CLIP's two towers (Radford et al. 2021)."""

    model: str = option("", "Folder of a CLIP to go on from.", unset="a new one", group=MODEL)
    tokenizer: str = option(
        "", "Model whose first tokenizer the texts are read by.", unset="CLIP's", group=MODEL
    )
    width: int = option(512, "Of the text tower.", group=MODEL, ge=16, le=4096, multiple_of=16)
    layers: int = option(12, "Of the text tower.", group=MODEL, ge=1, le=64)
    vision_width: int = option(768, "Of the picture tower.", group=MODEL, ge=16, le=4096, multiple_of=16)
    vision_layers: int = option(12, "Of the picture tower.", group=MODEL, ge=1, le=64)
    head_width: int = option(64, "Channels of an attention's head.", group=MODEL, ge=8, le=256)
    patch: int = option(
        32, "Side of a patch in pixels, of which the pictures' is a multiple.", group=MODEL, ge=2, le=256
    )
    projection: int = option(512, "Width of the vectors that are compared.", group=MODEL, ge=8, le=4096)
    buckets: Literal[False] = option(False, "CLIP sees squares.", group=DATA)
    lr: float = option(5e-4, "Learning rate.", group="Optimizer", gt=0, le=100)
    weight_decay: float = option(0.2, "Decoupled weight decay.", group="Optimizer", ge=0, le=10)
    betas: Betas = option((0.9, 0.98), "Of AdamW.", group="Optimizer")
    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp32", "Of the result.", group=WATCH)

    @model_validator(mode="after")
    def check_widths(self) -> Self:
        for name in ("width", "vision_width"):
            if getattr(self, name) % self.head_width:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of head_width {self.head_width}"
                )
        side = self.resolution or (224, 224)
        if side[0] != side[1] or side[0] % self.patch:
            raise ValueError(
                f"resolution {side[0]}x{side[1]} is not a square of patches of {self.patch} pixels"
            )
        return self
