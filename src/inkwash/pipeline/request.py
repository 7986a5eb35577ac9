"""The options common to all tasks, validated. Imports no torch, so that the command line's help answers at once."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, model_validator

from inkwash.pipeline.boxes import Boxes
from inkwash.pipeline.controls import OneControl
from inkwash.pipeline.fields import CanvasFields, GuidanceFields
from inkwash.pipeline.names import A1111_ETAS, EMPHASES, ETAS, SAMPLER_NAMES, SCHEDULE_NAMES, resolve
from inkwash.pipeline.option import (
    CONTROL,
    NEVER,
    PROMPTS,
    Corner,
    Sigmas,
    Size,
    Timesteps,
    a1111_value,
    extra,
    number,
    one_of,
    option,
    several_numbers,
)
from inkwash.pipeline.presets import PRESETS

EXAMPLES = [
    "a red apple, noto style",
    "a blue book left of a yellow star on a green background",
    "a rocket, twemoji style",
]


class Request(GuidanceFields, CanvasFields):
    """Options common to all tasks, validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    task: ClassVar[str]

    prompt: str | tuple[str, ...] = option(..., "What to draw. May be empty.", examples=EXAMPLES)
    negative_prompt: str | tuple[str, ...] = option("", "What to keep away from.")
    prompt_language: Annotated[str, one_of(EMPHASES)] = option(
        "a1111", f"How prompts are read and weighted: one of {', '.join(EMPHASES)}.", group=PROMPTS
    )
    clip_skip: int | None = option(
        None,
        "Layer of the text encoder, counted from the last, whose output is used; default: the model's own.",
        group=PROMPTS,
        a1111="Clip skip",
        when="clip_skip",
        ge=1,
        le=32,
    )
    controls: tuple[OneControl, ...] = option(
        (),
        "FILE=IMAGE[:WEIGHT[:START-END]][:NAME=VALUE] of a ControlNet or its like; repeatable.",
        group=CONTROL,
        flag="control",
        max_length=16,
    )
    regions: Boxes = option(
        (),
        "x0,y0,x1,y1=PROMPT: a part of the picture, in fractions from 0 to 1, that follows a prompt of its own; repeatable.",
        group=PROMPTS,
        a1111="Regions",
        when="regions",
        flag="region",
        max_length=16,
    )
    styles: tuple[str, ...] = option(
        (), "Name of a style in the --styles file; repeatable.", group=PROMPTS, flag="style"
    )
    width: int | None = option(None, "Pixels; default: the model's own size.", ge=32, le=4096)
    height: int | None = option(None, "Pixels; default: the model's own size.", ge=32, le=4096)
    preset: Annotated[str, one_of(PRESETS)] | None = option(
        None,
        f"Steps, guidance, sampler and schedule of a few-step model, unless given: one of {', '.join(PRESETS)}.",
    )
    steps: int = option(
        20, "Sampling steps, 1 to 500", a1111="Steps", unset="20, or the preset's", ge=1, le=500
    )
    timesteps: Timesteps | None = option(
        None, "Instead of --steps and --schedule: the timesteps to visit, falling, such as 999,749,499,249."
    )
    sigmas: Sigmas | None = option(
        None,
        "Instead of --steps and --schedule: the noise levels to step through, falling, such as 14.6,2.7,0.9; then 0.",
    )
    cfg_scale: float = option(
        5.0,
        "Guidance scale: how strongly to follow the prompt; 1 is off",
        a1111="CFG scale",
        unset="5, or the preset's",
        ge=-100,
        le=100,
        allow_inf_nan=False,
    )
    sampler: Annotated[str, one_of(SAMPLER_NAMES, SAMPLER_NAMES)] = option(
        "dpmpp_2m",
        f"One of {', '.join(SAMPLER_NAMES)}",
        a1111="Sampler",
        unset="dpmpp_2m, or the preset's",
    )
    eta: float | None = option(
        None,
        "Fresh noise in each step, 0 (none) to 1; default: 0 with ddim, ddim_cfgpp, dpm_fast and dpm_adaptive, 0.3 with "
        "tcd, 1 with ancestral and SDE samplers. No other sampler has it.",
        ge=0,
        le=1,
    )
    schedule: Annotated[str, one_of(SCHEDULE_NAMES, SCHEDULE_NAMES)] = option(
        "automatic",
        f"Noise schedule: one of {', '.join(SCHEDULE_NAMES)}",
        a1111="Schedule type",
        unset="automatic, or the preset's",
    )
    seed: int = option(
        0,
        "0 to 2^63 - 1; picture k of a batch uses seed + k",
        a1111="Seed",
        unset="random, and printed",
        ge=0,
        lt=2**63,
    )
    batch_size: int = option(1, "Pictures to draw, 1 to 64; picture k uses seed + k.", ge=1, le=64)
    deep_cache: int = option(
        1,
        "Compute the U-Net's deep blocks only in every n-th step; 3 is about twice as fast.",
        ge=1,
        le=20,
    )
    token_merging: float = option(
        0.0,
        "Fraction of the tokens, 0 to 0.75, merged in the largest self-attentions: faster, coarser.",
        a1111="Token merging ratio",
        when="token_merging",
        ge=0,
        le=0.75,
    )
    variation_strength: float = option(
        0.0,
        "Mix in noise from a second seed, 0 to 1: similar variations of one picture.",
        a1111="Variation seed strength",
        when="variation_strength",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    variation_seed: int = option(
        0,
        "The second seed",
        a1111="Variation seed",
        when="variation_strength",
        unset="random, and printed",
        ge=0,
        lt=2**63,
    )
    seed_resize_from: Size | None = option(
        None,
        "Reuse the noise of this size, such as 512x512, centred in the new one.",
        a1111="Seed resize from",
        when="seed_resize_from",
    )
    refiner_switch_at: float | None = option(
        None,
        "Fraction of the noise levels that the base model denoises before the refiner takes over; default: 0.8.",
        a1111="Refiner switch at",
        when=NEVER,  # it is written with the refiner's name
        gt=0,
        lt=1,
        allow_inf_nan=False,
    )
    refiner_strength: float | None = option(
        None,
        "Instead: add this much noise to the finished picture, and let the refiner denoise it.",
        a1111="Refiner strength",
        when="refiner_strength",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    class_label: int | None = option(
        None, "Class number, for class-conditional models; the prompt is then empty.", ge=0
    )
    original_size: Size | None = option(
        None,
        "SDXL conditioning: size of the original picture, such as 1024x768; default: the picture's size.",
    )
    crop: Corner = option((0, 0), "SDXL conditioning: crop offset, left,top.")
    target_size: Size | None = option(None, "SDXL conditioning: target size; default: the picture's size.")
    aesthetic: float = option(6.0, "SDXL refiner: aesthetic score of the prompt, 0 to 10.", ge=0, le=10)
    negative_aesthetic: float = option(
        2.5, "SDXL refiner: aesthetic score of the negative prompt, 0 to 10.", ge=0, le=10
    )

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture; variations share theirs."""
        return [self.seed + (0 if self.variation_strength else k) for k in range(self.batch_size)]

    @property
    def variation_seeds(self) -> list[int]:
        """The variation seed of each picture."""
        return [self.variation_seed + k for k in range(self.batch_size)]

    @property
    def switch_at(self) -> float:
        """The fraction of the noise levels that a refiner leaves to its base model."""
        return 0.8 if self.refiner_switch_at is None else self.refiner_switch_at

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [self.prompt] * self.batch_size if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """The negative prompt of each picture."""
        texts = self.negative_prompt
        return [texts] * self.batch_size if isinstance(texts, str) else list(texts)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, which `sized` has set."""
        assert self.width and self.height
        return self.width, self.height

    def sized(self, default: tuple[int, int]) -> Self:
        """The request with a size: its own, else (width, height) of the default."""
        return self.model_copy(
            update={"width": self.width or default[0], "height": self.height or default[1]}
        )

    def a1111_fields(self, k: int) -> dict[str, object]:
        """A1111 metadata fields of image k; None is omitted."""
        own = {"seed": self.seeds[k], "variation_seed": self.variation_seeds[k]}
        fields: dict[str, object] = {}
        for name, field in type(self).model_fields.items():
            key, when = extra(field, "a1111"), extra(field, "when")
            if key and when != NEVER and (when is None or self.differs(when)):
                fields[key] = a1111_value(field, own.get(name, getattr(self, name)))
        if self.sampler in ETAS:
            key, default = A1111_ETAS[self.sampler]
            eta = ETAS[self.sampler] if self.eta is None else self.eta
            fields[key] = None if eta == default else number(eta)
        emphasis = EMPHASES[self.prompt_language]
        fields["Emphasis"] = emphasis
        fields["Prompt language"] = (
            None if emphasis or self.prompt_language == "a1111" else self.prompt_language
        )
        return fields

    def differs(self, name: str) -> bool:
        """Return True if a field's value is not its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    @model_validator(mode="before")
    @classmethod
    def own_sampler_names(cls, values: Any) -> Any:
        """Apply the preset; samplers and schedules by the names that other programs give them, too."""
        if isinstance(name := values.get("preset"), str) and name in PRESETS:
            values = PRESETS[name].values | values
        named = {"sampler": "dpmpp_2m", "schedule": "automatic"} | values
        if not all(isinstance(named[key], str) for key in ("sampler", "schedule")):
            return values
        sampler, schedule = resolve(named["sampler"], named["schedule"])
        return values | {"sampler": sampler, "schedule": schedule}

    @model_validator(mode="after")
    def a_prompt_for_each(self) -> Self:
        for texts in (self.prompts, self.negative_prompts):
            if len(texts) != self.batch_size:
                raise ValueError(f"{len(texts)} prompts were given for batch_size {self.batch_size}")
        return self

    @model_validator(mode="after")
    def seeds_for_each(self) -> Self:
        for name, seed in (("seed", self.seeds[-1]), ("variation_seed", self.variation_seeds[-1])):
            if seed >= 2**63:
                raise ValueError(
                    f"{name}: the last of {self.batch_size} would be {seed}; the largest is {2**63 - 1}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def a_step_for_each_level(cls, values: Any) -> Any:
        """Set the number of steps from timesteps or sigmas, where they are given."""
        given = {name: several_numbers(values.get(name)) for name in ("timesteps", "sigmas")}
        given = {name: some for name, some in given.items() if isinstance(some, list | tuple) and some}
        if len(given) == 2:
            raise ValueError("give timesteps or sigmas, not both")
        for name, some in given.items():
            if values.get("steps", len(some)) != len(some):
                raise ValueError(
                    f"steps is {values['steps']}, and {len(some)} {name} are given; give one of both"
                )
            values = values | {name: tuple(some), "steps": len(some)}
        return values

    @model_validator(mode="after")
    def eta_of_sampler(self) -> Self:
        if self.eta is not None and self.sampler not in ETAS:
            raise ValueError(
                f"eta {self.eta:g}: {self.sampler} has none; samplers with an eta: {', '.join(ETAS)}"
            )
        return self

    @model_validator(mode="after")
    def regions_of_the_whole(self) -> Self:
        for name in ("tile", "only_masked", "seamless"):
            if self.regions and getattr(self, name, None) not in (None, False, "none"):
                raise ValueError(f"regions are parts of the whole picture; give them without {name}")
        return self

    @model_validator(mode="after")
    def refined_once(self) -> Self:
        if self.refiner_switch_at is not None and self.refiner_strength is not None:
            raise ValueError("give refiner_switch_at or refiner_strength, not both")
        return self
