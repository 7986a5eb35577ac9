"""Evaluation protocols: committed files that say which pictures are drawn and compared."""

import json
import random
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inkwash.pipeline.problems import describe
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import InpaintRequest, TextToImageRequest


class Protocol(BaseModel):
    """Settings of an evaluation. Figures of one model compare with another's under the same protocol and network alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str = ""
    task: Literal["text_to_image", "first_stage", "inpaint"] = "text_to_image"
    num_pictures: int = Field(ge=1)
    network: str = "efficientnet-lite0"  # whose features are compared
    size: int | None = Field(
        None, ge=8, le=4096
    )  # pixels a side at which pictures are compared; None: as they are
    captions: Literal["reference", "training"] = (
        "reference"  # beside whose pictures they are, without --prompts
    )
    hole: float = Field(0.5, gt=0, le=1)  # of inpainting: the share of each side, in the middle
    seed: int = Field(0, ge=0)  # picture k is drawn with seed + k
    cfg_scales: tuple[float, ...] = (5.0,)  # one run each
    request: dict[str, Any] = {}  # the other options of each picture

    def request_of(self, first: int, captions: tuple[str, ...], cfg_scale: float) -> Request:
        """The request of pictures `first`, first + 1, ..., of these captions, which are plain text by default."""
        values = {"prompt_language": "plain"} | self.request
        kind = InpaintRequest if self.task == "inpaint" else TextToImageRequest
        return kind.model_validate(
            values
            | {
                "prompt": captions,
                "batch_size": len(captions),
                "seed": self.seed + first,
                "cfg_scale": cfg_scale,
            }
        )


def shipped() -> list[str]:
    """Names of the protocols that the package brings."""
    return sorted(
        path.name.removesuffix(".toml") for path in files("inkwash.metrics").joinpath("protocols").iterdir()
    )


def read_protocol(name: str, num: int | None = None) -> Protocol:
    """A shipped protocol by its name, or the one in a TOML file.

    num: pictures, instead of its own number. Raises ValueError for none, in one line a problem.
    """
    known = shipped()
    source = files("inkwash.metrics").joinpath(f"protocols/{name}.toml") if name in known else Path(name)
    if not source.is_file():
        raise ValueError(f"there is no protocol {name!r}: give a TOML file, or one of {', '.join(known)}")
    try:
        values = tomllib.loads(source.read_text("utf-8"))
        protocol = Protocol.model_validate(values | ({} if num is None else {"num_pictures": num}))
        protocol.request_of(0, ("",), protocol.cfg_scales[0])
    except ValidationError as error:
        raise ValueError(
            "\n".join(f"{name}: {describe(problem, str)}" for problem in error.errors())
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not TOML: {error}") from error
    return protocol


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line, or of the captions in COCO's JSON, one a picture, in order of their numbers.

    Raises ValueError for a file without any.
    """
    try:
        text = path.read_text("utf-8")
        if path.suffix != ".json":
            prompts = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            notes = sorted(json.loads(text)["annotations"], key=lambda note: (note["image_id"], note["id"]))
            first = {note["image_id"]: str(note["caption"]).strip() for note in reversed(notes)}
            prompts = [first[image] for image in sorted(first)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no prompts, neither lines of text nor COCO's captions: {error}"
        ) from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def chosen(num: int, among: int) -> list[int]:
    """Indices of `num` of so many prompts or pictures: the first of a fixed order, so that more contain fewer.

    Raises ValueError for more than there are.
    """
    if among < num:
        raise ValueError(f"{num:,} pictures are to be compared, and there are {among:,}: give --num")
    return random.Random(0).sample(range(among), among)[:num]
