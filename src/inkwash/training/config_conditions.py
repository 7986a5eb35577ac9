"""The options of models that see nothing, a class, boxes, labels, or a small picture. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from inkwash.pipeline.option import option
from inkwash.training.config import DATA, MODEL, NOISE, WATCH, as_numbers
from inkwash.training.config_methods import FinetuneConfig

PIXELS = ("ddpm-cifar10", "ddpm-lsun")
LATENTS = ("ldm-vq4", "ldm-churches", "ldm-cin", "ldm-cin256", "ldm-layout", "ldm-sr", "ldm-semantic")


class DesignedConfig(FinetuneConfig):
    """A model to go on from, or the design of a new one."""

    design: Literal["", "ddpm-cifar10", "ddpm-lsun", "ldm-vq4", "ldm-churches", "ldm-cin", "ldm-cin256", "ldm-layout",
                    "ldm-sr", "ldm-semantic"] = option(
        "", "Train a new network of this design, and not --model: Ho et al.'s for pixels, latent diffusion's for latents.",
        unset="--model", group=MODEL,
    )  # fmt: skip
    first_stage: str = option(
        "", "Of a new one for latents, the autoencoder: a file or a folder.", unset="none", group=MODEL
    )
    width: int | None = option(
        None, "Channels of a new network's first level.", unset="the design's", group=MODEL, ge=32, le=1024,
        multiple_of=32,
    )  # fmt: skip
    channel_mult: Annotated[tuple[int, ...], BeforeValidator(as_numbers)] = option(
        (), "Widths of its levels, as multiples of that, the first 1.", unset="the design's", group=MODEL
    )

    @model_validator(mode="after")
    def check_design(self) -> Self:
        if (self.design in LATENTS) != bool(self.first_stage):
            raise ValueError(
                f"design {self.design!r} needs a first_stage, an autoencoder's file or folder"
                if self.design in LATENTS
                else f"first_stage {self.first_stage!r} goes with a design for latents: {', '.join(LATENTS)}"
            )
        return self

    @model_validator(mode="after")
    def check_widths(self) -> Self:
        given = [name for name in ("width", "channel_mult") if getattr(self, name)]
        if given and not self.design:
            raise ValueError(f"{given[0]} {getattr(self, given[0])} goes with a design; a model has its own")
        if self.channel_mult and (self.channel_mult[0] != 1 or min(self.channel_mult) < 1):
            raise ValueError(f"channel_mult {self.channel_mult} does not begin with 1, or has one below it")
        return self


class UnconditionalConfig(DesignedConfig):
    """Pictures of one kind, from nothing but noise: in pixels (Ho et al. 2020), or in latents."""

    noise_schedule: Literal["auto", "linear", "scaled_linear", "cosine"] = option(
        "auto",
        "Betas of a new network; cosine is of Nichol and Dhariwal 2021. auto: the design's.",
        group=NOISE,
    )
    layout: Literal["single", "diffusers"] = option(
        "diffusers", "Of the result: one safetensors file, or a folder.", group=WATCH
    )
    figures_every: int = option(
        0,
        "Steps between measurements of Fréchet distance and Inception score, in log.jsonl and figures.png; 0 is off.",
        group=WATCH,
        ge=0,
    )
    figures_of: str = option(
        "", "Folder of the pictures that drawn ones are compared with.", unset="the data", group=WATCH
    )
    figures_pictures: int = option(500, "Pictures that are drawn for them.", group=WATCH, ge=2, le=10**5)
    figures_network: Literal["efficientnet-lite0", "dinov2", "inception", "inception-tf"] = option(
        "efficientnet-lite0", "Whose features are compared; the score is of those with classes.", group=WATCH
    )
    figures_weights: str = option("", "File of its weights.", unset="what fetch-metrics brought", group=WATCH)

    @model_validator(mode="after")
    def check_figures(self) -> Self:
        if self.figures_every and self.parallel == "fsdp":
            raise ValueError(f"parallel fsdp does not go with figures_every {self.figures_every}")
        if self.figures_every and not self.figures_of and len(self.data) > 1:
            raise ValueError("figures_every needs figures_of, a folder, where data are several places")
        return self

    @model_validator(mode="after")
    def check_schedule(self) -> Self:
        if self.noise_schedule != "auto" and not self.design:
            raise ValueError(f"noise_schedule {self.noise_schedule} goes with a design; a model has its own")
        return self


class ClassTrainConfig(DesignedConfig):
    """A class-conditional model. A picture's class is its column `class`, a number or name, or its folder's name."""

    class_dropout: float = option(
        0.1, "How often the class is the last one, which stands for none, 0 to 1.", group=DATA, ge=0, le=1
    )


class LayoutTrainConfig(DesignedConfig):
    """A layout-to-image model. A picture's boxes are its column `boxes`, a list of "x0,y0,x1,y1=what"."""


class SemanticTrainConfig(DesignedConfig):
    """A model that sees a map of labels: the role labels, each pixel's value its label."""


class UpscalerTrainConfig(DesignedConfig):
    """A model that sees the picture at a small size, noised (Ho et al. 2021; Rombach et al. 2022, section 4.5)."""
