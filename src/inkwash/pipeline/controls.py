"""A control: what steers drawing besides the prompt, described, as text and as A1111 writes it. Imports no torch."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from inkwash.pipeline.option import number
from inkwash.weights.bytes.paths import SHIPPED_CONTROLS

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+|nan|inf)"
MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
    "guess": None,
}
RESIZES = {"just": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}
PASSES = {"both": "Both", "first": "Low res only", "hires": "High res only"}


# without a network of their own: A1111's names of what a picture's features are taken by
REFERENCES = ("reference_only", "reference_adain", "reference_adain+attn")
# what a union ControlNet takes hints for, in its order; a test holds them and the network's TYPES together
HintType = Literal["pose", "depth", "soft", "line", "normal", "segmentation", "tile", "inpaint"]
UNION_TYPES = {  # the extension's names of them
    "auto": "Unknown",
    "pose": "OpenPose",
    "depth": "Depth",
    "soft": "Soft Edge",
    "line": "Hard Edge",
    "normal": "Normal Map",
    "segmentation": "Segmentation",
    "tile": "Tile",
    "inpaint": "Inpaint",
}
TYPE_OF = {  # by what makes the hint
    "blur": "tile",
    "canny": "line",
    "inpaint": "inpaint",
    "lineart": "line",
    "palette": "segmentation",
    "scribble": "soft",
    "tile": "tile",
}


def face_text(given: Any) -> Any:
    """Vectors of faces as text: base64 of 32-bit floats, little-endian.

    given: that text, an array or a tensor, or the Path of a file of one: .npy, .safetensors or a torch file. Raises
    ValueError for anything else.
    """
    if given is None:
        return given
    if isinstance(given, str):
        try:
            data = base64.b64decode(given, validate=True)
        except binascii.Error as error:
            raise ValueError(f"face {given[:40]!r} is not base64 of vectors: {error}") from None
    else:
        from inkwash.pipeline.faces import face_bytes

        data = face_bytes(given)
    if not data or len(data) % 4:
        raise ValueError(f"face holds {len(data)} bytes, which are not 32-bit floats")
    return base64.b64encode(data).decode()


# of the keys of ANNOTATORS, which would import torch, those of pictures in colour; a test holds them together
Annotators = Literal["blur", "canny", "lineart", "palette", "recolor", "scribble", "tile"]


def file_name(given: Any) -> Any:
    """A path as text; a shipped control by its own name, where that of its folder is given."""
    text = str(given) if isinstance(given, PurePath) else given
    return next((name for name, folder in SHIPPED_CONTROLS.items() if folder == text), text)


class Control(BaseModel):
    """A network beside the U-Net and the picture that it sees.

    file: a path, an id of the Hugging Face hub, or one of REFERENCES, which need no network. image: a picture or its path;
    None is the picture that the task changes. start, end: fractions of the steps between which it acts. mode: balanced,
    prompt (weaker in outer layers), control (that, and not with the negative prompt) or guess (for an empty prompt).
    resize: how the picture is made to fit. mask: white where it acts; None is everywhere. layer_weights: factors from the
    first layer to the middle one. passes: of a picture drawn in two, which it acts in. encoder: the CLIP vision tower that
    an IP-Adapter sees by; None is the folder image_encoder beside it. annotator: makes the hint of the picture; none: it is
    the hint; auto: that of a shipped control, unless the picture looks like its hints already, and none of any other file;
    inpaint: with the task's mask, the picture with -1 in its place. type: of a hint, for a union ControlNet; auto: what the
    annotator makes. style_fidelity: of a reference, how far it stays out of what the negative prompt draws. face: vectors of
    faces, for an IP-Adapter FaceID; see `face_text`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, BeforeValidator(file_name)]
    image: Any = None
    weight: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    start: float = Field(0.0, ge=0, le=1)
    end: float = Field(1.0, ge=0, le=1)
    mode: Literal["balanced", "prompt", "control", "guess"] = "balanced"
    resize: Literal["just", "crop", "fill"] = "crop"
    passes: Literal["both", "first", "hires"] = "both"
    mask: Any = None
    encoder: str | None = None
    annotator: Literal["auto", "none", "inpaint", Annotators] = "auto"
    layer_weights: tuple[Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)], ...] = ()
    type: Literal["auto", HintType] = "auto"
    style_fidelity: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    face: Annotated[str | None, BeforeValidator(face_text)] = None

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end {self.end:g} of {self.name} is not after start {self.start:g}")
        return self

    @property
    def name(self) -> str:
        """The name of its file, without folders."""
        return PurePath(self.file).name

    @property
    def is_reference(self) -> bool:
        """True for a reference control: the U-Net itself sees the picture."""
        return self.file in REFERENCES

    @field_serializer("file")
    def without_folders(self, _: str) -> str:
        return self.name

    @field_serializer("image", "mask")
    def name_of_picture(self, picture: Any) -> str | None:
        """A picture's name in recipes, which know it by its pixels."""
        if picture is None or isinstance(picture, str | Path):
            return PurePath(picture).name if picture else None
        return picture.info.get("filename")

    @property
    def a1111(self) -> str:
        """The text that A1111's ControlNet extension writes for it, but for the hash of its file."""
        module = "none" if self.annotator == "auto" else self.annotator
        fields = {
            "Module": self.file if self.is_reference else module,
            "Model": "None" if self.is_reference else PurePath(self.file).stem,
            "Weight": number(self.weight),
            "Resize Mode": RESIZES[self.resize],
            "Guidance Start": number(self.start),
            "Guidance End": number(self.end),
            "Pixel Perfect": "False",
            "Control Mode": MODES[self.mode] or self.mode,
        }
        if self.passes != "both":
            fields["Hr Option"] = PASSES[self.passes]
        if self.type != "auto":
            fields["Union Control Type"] = UNION_TYPES[self.type]
        if self.is_reference:
            fields["Threshold A"] = number(self.style_fidelity)
        return ", ".join(f"{key}: {value}" for key, value in fields.items())


# what may follow the picture, each after a colon
SETTING = rf"{NUMBER}|{NUMBER}-{NUMBER}|(?:mode|resize|passes|mask|encoder|annotator|layer_weights|weight|start|end|"
SETTING += "type|style_fidelity|face)=[^:]*"
TEXT = re.compile(rf"(?P<file>[^=]+?)(?:=(?P<image>.+?))?(?P<settings>(?::(?:{SETTING}))*)", re.IGNORECASE)


def no_picture(control: Control) -> ValueError:
    """The error of a control that needs a picture and has none."""
    return ValueError(f"the control {control.name} has no picture; write {control.file}=IMAGE")


def read_control(text: Any) -> Any:
    """The values of a control that a text such as edges.safetensors=sketch.png:0.8:0-0.5:mode=prompt describes.

    Raises ValueError for another one.
    """
    if not isinstance(text, str):
        return text
    match = TEXT.fullmatch(text)
    if not match:
        wanted = "FILE=IMAGE[:WEIGHT[:START-END]][:NAME=VALUE]"
        raise ValueError(f"{text!r} is not a control; it is written {wanted}")
    values: dict[str, Any] = {"file": match["file"], "image": match["image"]}
    for setting in filter(None, match["settings"].split(":")):
        name, equals, value = setting.partition("=")
        if equals:
            values[name] = value.split(",") if name == "layer_weights" else value
            if name == "face":
                values[name] = Path(value)
        elif span := re.fullmatch(rf"({NUMBER})-({NUMBER})", setting, re.IGNORECASE):
            values |= {"start": span[1], "end": span[2]}
        else:
            values["weight"] = setting
    return values


OneControl = Annotated[Control, BeforeValidator(read_control)]


def read_a1111(text: str) -> dict[str, Any]:
    """A control's values from what A1111's extension wrote of it, in its old words or its new ones.

    The text does not hold the picture. Raises ValueError where it names no model.
    """
    pairs = re.findall(r"([A-Za-z][\w /]*): *(\([^)]*\)|[^,]*)", text)
    fields = {key.strip().lower(): value.strip() for key, value in pairs}
    model = re.sub(r" \[\w+\]$", "", fields.get("model", ""))
    module = fields.get("module", fields.get("preprocessor"))
    if module in REFERENCES:
        model = module
    if model in ("", "None"):
        raise ValueError(f"ControlNet {text[:100]!r} names no model")
    span = re.findall(NUMBER, fields.get("starting/ending", ""))
    values: dict[str, Any] = {
        "weight": fields.get("weight"),
        "start": fields.get("guidance start", span[0] if len(span) == 2 else None),
        "end": fields.get("guidance end", span[1] if len(span) == 2 else None),
    }
    named = {
        "mode": (MODES, "control mode"),
        "resize": (RESIZES, "resize mode"),
        "passes": (PASSES, "hr option"),
        "type": (UNION_TYPES, "union control type"),
    }
    for name, (names, key) in named.items():
        values[name] = own_name(names, fields.get(key))
    if fields.get("module") in get_args(Annotators):
        values["annotator"] = module
    if module in REFERENCES:
        values["style_fidelity"] = fields.get("threshold a")
    return {"file": model} | {key: value for key, value in values.items() if value is not None}


def own_name(names: Mapping[str, str | None], theirs: str | None) -> str | None:
    """Our name of a value of A1111's, and any other as it is."""
    return next((ours for ours, each in names.items() if each == theirs and each), theirs)


def in_pass(controls: tuple[Control, ...], which: str) -> tuple[Control, ...]:
    """The controls that act in a pass, first or hires."""
    return tuple(control for control in controls if control.passes in ("both", which))
