"""Bodies of requests of our own dialect, which hold nothing that is not known."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inkwash.pipeline.names import HintKind


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(Strict):
    task: str
    model: str | None = None
    request: dict[str, Any] = {}
    images: dict[str, str] = {}
    priority: int = Field(0, ge=-100, le=100)
    grid: dict[str, list[Any]] = {}


class Change(Strict):
    state: Literal["paused", "queued"] | None = None
    position: int | None = Field(None, ge=0, le=10**6)
    priority: int | None = Field(None, ge=-100, le=100)


class Paused(Strict):
    paused: bool


class Name(Strict):
    name: str


class Token(Strict):
    token: str


class Picture(Strict):
    image: str


class Hint(Picture):
    """What an annotator makes of a picture; the numbers are those that it takes."""

    kind: HintKind
    low: float | None = None
    high: float | None = None
    sigma: float | None = None
    threshold: float | None = None
    factor: float | None = None
    gamma: float | None = None
    relief: float | None = None


class Larger(Picture):
    upscaler: str = "lanczos"
    scale: float = Field(2, gt=0, le=16)


class Text(Strict):
    text: str = Field(max_length=100_000)
    model: str | None = None
