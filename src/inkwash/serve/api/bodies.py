"""Bodies of requests of our own dialect, which hold nothing that is not known."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inkwash.pipeline.names import HintKind


class Strict(BaseModel):
    """A body that holds nothing but its fields."""

    model_config = ConfigDict(extra="forbid")


class NewJob(Strict):
    """A job to be queued: a task, its request, and its pictures by role."""

    task: str
    model: str | None = None
    request: dict[str, Any] = {}
    images: dict[str, str] = {}
    priority: int = Field(0, ge=-100, le=100)
    grid: dict[str, list[Any]] = {}


class Change(Strict):
    """Changes of a job that waits."""

    state: Literal["paused", "queued"] | None = None
    position: int | None = Field(None, ge=0, le=10**6)
    priority: int | None = Field(None, ge=-100, le=100)


class Paused(Strict):
    """State of the queue: paused or not."""

    paused: bool


class Name(Strict):
    """The name of a model, which is to be the current one."""

    name: str


class Token(Strict):
    """The token, for a cookie."""

    token: str


class Picture(Strict):
    """A picture, in base64 or by the name of one that was drawn."""

    image: str


class Hint(Picture):
    """A request for an annotator's hint of a picture; the numbers are those that it takes."""

    kind: HintKind
    low: float | None = None
    high: float | None = None
    sigma: float | None = None
    threshold: float | None = None
    factor: float | None = None
    gamma: float | None = None
    relief: float | None = None


class Larger(Picture):
    """A picture to be enlarged."""

    upscaler: str = "lanczos"
    scale: float = Field(2, gt=0, le=16)


class Text(Strict):
    """A prompt to be looked at, with the model that reads it."""

    text: str = Field(max_length=100_000)
    model: str | None = None
