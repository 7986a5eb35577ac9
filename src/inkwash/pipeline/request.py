"""What a picture is asked for with: checked once, for Python, the command line and files alike."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.pipeline.guiding import GuidanceFields
from inkwash.pipeline.names import resolve


def one_of(known: Iterable[str]) -> AfterValidator:
    """A field's value is one of these names."""
    names = sorted(known)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Size = tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]]  # width, height


class Request(GuidanceFields):
    """What a picture is asked for with; it says no to what cannot be drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: ClassVar[str] = "text_to_image"

    prompt: str | tuple[str, ...]  # one for all pictures, or one for each
    negative_prompt: str = ""
    width: int | None = Field(None, ge=32, le=4096)  # pixels; None is the model's own size
    height: int | None = Field(None, ge=32, le=4096)
    steps: int = Field(20, ge=1, le=500)
    cfg_scale: float = Field(5.0, ge=-100, le=100, allow_inf_nan=False)  # 1 is off
    sampler: Annotated[str, one_of(SAMPLERS)] = "dpmpp_2m"
    schedule: Annotated[str, one_of(SCHEDULES)] = "automatic"
    seed: int = Field(0, ge=0, lt=2**32)  # image k of a batch uses seed + k
    batch_size: int = Field(1, ge=1, le=64)
    # what SDXL is told; by default what is true of the picture
    original_size: Size | None = None
    crop: tuple[int, int] = (0, 0)  # left, top
    target_size: Size | None = None
    aesthetic: float = Field(6.0, ge=0, le=10)  # the refiner
    negative_aesthetic: float = Field(2.5, ge=0, le=10)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [self.prompt] * self.batch_size if isinstance(self.prompt, str) else list(self.prompt)

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
        if len(self.prompts) != self.batch_size:
            raise ValueError(f"{len(self.prompts)} prompts were given for batch_size {self.batch_size}")
        return self
