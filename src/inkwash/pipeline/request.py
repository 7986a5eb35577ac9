"""What a picture is asked for with: checked once, for Python, the command line and files alike."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES, USUAL, NoiseSchedule
from inkwash.pipeline.denoising.guidance import GuidanceFields
from inkwash.pipeline.denoising.windows import CanvasFields
from inkwash.pipeline.names import UPSCALER_ALIASES, UPSCALER_NAMES, resolve
from inkwash.prompts.language import LANGUAGES


def one_of(known: Iterable[str]) -> AfterValidator:
    """A field's value is one of these names."""
    names = sorted(known)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


def two(value: Any) -> Any:
    """The two numbers of a text such as 768x512."""
    return re.split("[x,]", value) if isinstance(value, str) else value


Side = Annotated[int, Field(ge=1, le=16384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(two)]  # width, height


def number(value: float) -> str:
    """5 rather than 5.0, as A1111 writes it."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)


class Drawing(GuidanceFields, CanvasFields):
    """What every picture is asked for with; it says no to what cannot be drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: ClassVar[str]

    prompt: str | tuple[str, ...]  # one for all pictures, or one for each
    negative_prompt: str | tuple[str, ...] = ""
    prompt_language: Annotated[str, one_of(LANGUAGES)] = "a1111"  # of both; what its weights do is part of it
    # the text encoder's layer from the end whose output is read; None is the model's own
    clip_skip: int | None = Field(None, ge=1, le=32)
    styles: tuple[str, ...] = ()  # names in the model's styles files, applied in turn
    width: int | None = Field(None, ge=32, le=4096)  # pixels; None is the model's own size
    height: int | None = Field(None, ge=32, le=4096)
    steps: int = Field(20, ge=1, le=500)
    cfg_scale: float = Field(5.0, ge=-100, le=100, allow_inf_nan=False)  # 1 is off
    sampler: Annotated[str, one_of(SAMPLERS)] = "dpmpp_2m"
    schedule: Annotated[str, one_of(["automatic", *SCHEDULES])] = "automatic"  # each sampler's usual one
    seed: int = Field(0, ge=0, lt=2**63)  # image k of a batch uses seed + k
    batch_size: int = Field(1, ge=1, le=64)
    deep_cache: int = Field(
        1, ge=1, le=20
    )  # the U-Net's depths are computed in every so many steps: faster, coarser
    token_merging: float = Field(
        0.0, ge=0, le=0.75
    )  # part of the tokens that the largest self-attentions do without: faster in large pictures, coarser
    # how far the first noise goes over to that of another seed; image k then has seed and variation_seed + k
    variation_strength: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    variation_seed: int = Field(0, ge=0, lt=2**63)
    seed_resize_from: Size | None = None  # the noise of a picture of that size, in the middle
    # where a refiner goes on: from a share of the noise levels on, or over the finished picture, noised again
    refiner_switch_at: float | None = Field(None, gt=0, lt=1, allow_inf_nan=False)
    refiner_strength: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    class_label: int | None = Field(None, ge=0)  # of a model of classes, in place of the prompt
    # what SDXL is told; by default what is true of the picture
    original_size: Size | None = None
    crop: Annotated[tuple[int, int], BeforeValidator(two)] = (0, 0)  # left, top
    target_size: Size | None = None
    aesthetic: float = Field(6.0, ge=0, le=10)  # the refiner
    negative_aesthetic: float = Field(2.5, ge=0, le=10)

    @property
    def make_sigmas(self) -> Callable[[int, NoiseSchedule], Tensor]:
        """The schedule as a function; "automatic" is the sampler's usual one."""
        automatic = USUAL.get(self.sampler, "uniform")
        return SCHEDULES[automatic if self.schedule == "automatic" else self.schedule]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture; where they vary, they have it in common."""
        return [self.seed + (0 if self.variation_strength else k) for k in range(self.batch_size)]

    @property
    def variation_seeds(self) -> list[int]:
        return [self.variation_seed + k for k in range(self.batch_size)]

    @property
    def switch_at(self) -> float:
        """The share of the noise levels that a refiner leaves to its base, where it does not go over the whole."""
        return 0.8 if self.refiner_switch_at is None else self.refiner_switch_at

    def told(self, k: int) -> dict[str, object]:
        """What is said of picture k, by A1111's names; None is not said."""
        varied = bool(self.variation_strength)
        return {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "Schedule type": self.schedule,
            "CFG scale": number(self.cfg_scale),
            "Seed": self.seeds[k],
            "Variation seed": self.variation_seeds[k] if varied else None,
            "Variation seed strength": number(self.variation_strength) if varied else None,
            "Seed resize from": "{}x{}".format(*self.seed_resize_from) if self.seed_resize_from else None,
            "Refiner strength": number(self.refiner_strength) if self.refiner_strength else None,
            "Token merging ratio": number(self.token_merging) if self.token_merging else None,
            "Clip skip": self.clip_skip if (self.clip_skip or 1) > 1 else None,
            "Emphasis": (emphasis := LANGUAGES[self.prompt_language].emphasis),
            "Prompt language": None if emphasis or self.prompt_language == "a1111" else self.prompt_language,
        }

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [self.prompt] * self.batch_size if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """The same of what to keep away from."""
        one = self.negative_prompt
        return [one] * self.batch_size if isinstance(one, str) else list(one)

    @model_validator(mode="before")
    @classmethod
    def known_by_other_names(cls, values: Any) -> Any:
        """Samplers and schedules may have the names that other programs give them."""
        named = {"sampler": "dpmpp_2m", "schedule": "automatic"} | values
        if not all(isinstance(named[key], str) for key in ("sampler", "schedule")):
            return values
        sampler, schedule = resolve(named["sampler"], named["schedule"])
        return values | {"sampler": sampler, "schedule": schedule}

    @model_validator(mode="after")
    def prompt_for_each(self) -> Self:
        for given in (self.prompts, self.negative_prompts):
            if len(given) != self.batch_size:
                raise ValueError(f"{len(given)} prompts were given for batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def seeds_for_each(self) -> Self:
        for name, seed in (("seed", self.seeds[-1]), ("variation_seed", self.variation_seeds[-1])):
            if seed >= 2**63:
                raise ValueError(
                    f"{name}: the last of {self.batch_size} would be {seed}; the largest is {2**63 - 1}"
                )
        return self

    @model_validator(mode="after")
    def one_way_to_refine(self) -> Self:
        if self.refiner_switch_at is not None and self.refiner_strength is not None:
            raise ValueError("give refiner_switch_at or refiner_strength, not both")
        return self


class Request(Drawing):
    """What a picture is drawn from words with, in one pass or in two."""

    task: ClassVar[str] = "text_to_image"
    hires: float = Field(
        1.0, ge=1, le=8, allow_inf_nan=False
    )  # how much larger the second pass is; 1 is none
    hires_strength: float = Field(0.7, gt=0, le=1, allow_inf_nan=False)  # how much it changes
    hires_steps: int | None = Field(None, ge=1, le=500)  # None is as many as in the first
    hires_upscaler: Annotated[str, one_of(UPSCALER_NAMES)] = "latent"

    @field_validator("hires_upscaler", mode="before")
    @classmethod
    def upscaler_by_another_name(cls, value: Any) -> Any:
        return UPSCALER_ALIASES.get(value.lower(), value) if isinstance(value, str) else value

    def told(self, k: int) -> dict[str, object]:
        said = super().told(k)
        if self.hires > 1:
            said |= {
                "Denoising strength": number(self.hires_strength),
                "Hires upscale": number(self.hires),
                "Hires steps": self.hires_steps,
                "Hires upscaler": UPSCALER_NAMES[self.hires_upscaler],
            }
        return said
