"""Controls of clients: ControlNets and their like by name, and the pictures that they see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from inkwash.pipeline.controls import Control
from inkwash.pipeline.names import HintKind
from inkwash.serve.checks import validated
from inkwash.serve.errors import Refusal
from inkwash.serve.uploads import Uploads

MOST = 16  # controls of a request
PICTURE = "a data URL, base64, or the hash of a picture that was uploaded"
OF_FILES = ("file", "image", "mask", "encoder")


@dataclass(frozen=True)
class GivenControl:
    """A control of a request. name: of the library. values: of `Control`, but for its file and pictures."""

    name: str
    values: Mapping[str, Any]
    image: bytes | None = None
    mask: bytes | None = None


class NamedControl(BaseModel):
    """A control whose files clients name."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str = Field(description="The name of a control, as /api/extras lists them.")
    image: str | None = Field(
        None, description=f"What it sees: {PICTURE}; none is the picture that the task changes."
    )
    mask: str | None = Field(None, description=f"White where it acts: {PICTURE}; none is everywhere.")


_fields = {name: field for name, field in Control.model_fields.items() if name not in OF_FILES}
ApiControl = create_model(
    "Control",
    __base__=NamedControl,
    **{name: (field.annotation, field) for name, field in _fields.items()},  # pyright: ignore
)


def field_schema(described: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a request's controls over HTTP. described: of the field that takes them elsewhere."""
    kept = {key: described[key] for key in ("title", "group") if key in described}
    about = "Networks that steer the drawing, each with the picture that it sees."
    items = ApiControl.model_json_schema()
    return kept | {"type": "array", "items": items, "default": [], "maxItems": MOST, "description": about}


def read(given: Any, uploads: Uploads) -> list[GivenControl]:
    """The controls of a request of our own dialect. Raises Refusal."""
    if not isinstance(given, list) or len(given) > MOST:
        raise Refusal(422, f"controls is not a list of at most {MOST}", "controls")
    found = []
    for each in given:
        unit: Any = validated(ApiControl, each, "controls")
        image, mask = (
            uploads.picture(text, "controls") if text else None for text in (unit.image, unit.mask)
        )
        values = unit.model_dump(include=set(_fields), exclude_unset=True)
        found.append(GivenControl(unit.model, values, image, mask))
    return found


def resolved(
    controls: Sequence[GivenControl], names: Mapping[str, str], needed: bool
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """A job's controls, and their pictures by role. names: of the library, by what clients call them. Raises Refusal.

    needed: whether each must have a picture, since there is nothing else to see.
    """
    values, pictures = [], {}
    for i, control in enumerate(controls):
        if control.image is None and needed and not control.values.get("face"):
            raise Refusal(422, f"the control {control.name} has no picture", "controls")
        made = validated(Control, {"file": "control", **control.values}, "controls")
        own = {f"control-{i}": control.image, f"control-{i}-mask": control.mask}
        pictures |= {role: data for role, data in own.items() if data is not None}
        values.append(made.model_dump(mode="json") | {"file": names[control.name]})
    return values, pictures


def with_files(
    controls: Sequence[Mapping[str, Any]], files: Mapping[str, str], pictures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A job's controls with the paths of their files and pictures, which are found by name and by role."""
    return [
        dict(control)
        | {"file": files[control["file"]]}
        | {"image": pictures.get(f"control-{i}"), "mask": pictures.get(f"control-{i}-mask")}
        for i, control in enumerate(controls)
    ]


HINTS: tuple[str, ...] = get_args(HintKind)
