"""The options of each task, validated. Imports no torch."""

from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Self

from pydantic import field_serializer, field_validator, model_validator

from inkwash.pipeline.boxes import Boxes
from inkwash.pipeline.names import (
    FILL_ALIASES,
    FILL_NAMES,
    STEP_RULES,
    UPSCALER_ALIASES,
    UPSCALER_NAMES,
    UPSCALER_SUFFIXES,
)
from inkwash.pipeline.option import PRIOR, one_of, option
from inkwash.pipeline.request import Request


class TextToImageRequest(Request):
    """A prompt, drawn in one pass or in two."""

    task: ClassVar[str] = "text_to_image"
    hires: float = option(
        1.0,
        "Factor by which a second pass enlarges the picture; 1 is off.",
        a1111="Hires upscale",
        when="hires",
        ge=1,
        le=8,
        allow_inf_nan=False,
    )
    hires_strength: float = option(
        0.7,
        "How much the second pass changes, above 0 to 1.",
        a1111="Denoising strength",
        when="hires",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    hires_steps: int | None = option(
        None,
        "Steps of the second pass; default: as many as --steps.",
        a1111="Hires steps",
        when="hires",
        ge=1,
        le=500,
    )
    hires_upscaler: Annotated[str, one_of(UPSCALER_NAMES, UPSCALER_NAMES, UPSCALER_SUFFIXES)] = option(
        "latent",
        f"Between the passes: one of {', '.join(UPSCALER_NAMES)}, or a FILE of a pixel upscaler.",
        a1111="Hires upscaler",
        when="hires",
        values=UPSCALER_NAMES,
    )

    prior_prompt: str = option(
        "", "With a prior: what it reads in place of the prompt, as it is written.", group=PRIOR
    )
    prior_steps: int = option(25, "With a prior: its steps.", group=PRIOR, ge=1, le=500)
    prior_cfg_scale: float = option(
        4.0,
        "With a prior: its own guidance, how closely the vector it makes follows the prompt; 1 is off.",
        group=PRIOR,
        ge=-100,
        le=100,
        allow_inf_nan=False,
    )
    noise_level: int | None = option(
        None,
        "With a prior and unCLIP: how freely to draw, 0 to 999, by noise on the vector; default: 0.",
        group=PRIOR,
        ge=0,
        le=999,
    )

    @field_validator("hires_upscaler", mode="before")
    @classmethod
    def own_upscaler_name(cls, value: Any) -> Any:
        value = str(value) if isinstance(value, PurePath) else value
        return UPSCALER_ALIASES.get(value.lower(), value) if isinstance(value, str) else value

    @field_serializer("hires_upscaler")
    def without_folders(self, value: str) -> str:
        return PurePath(value).name

    @property
    def upscaler_file(self) -> Path | None:
        """The file of the pixel upscaler between the passes, None without a second pass or an upscaler."""
        return (
            Path(self.hires_upscaler)
            if self.hires > 1 and self.hires_upscaler not in UPSCALER_NAMES
            else None
        )


class StrengthRequest(Request):
    """A picture to change by so much. Without a size it keeps its own, rounded to what the model can draw."""

    strength: float = option(
        0.75,
        "How much to change the picture, above 0 to 1; 1 keeps nothing of it.",
        a1111="Denoising strength",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    step_rule: Annotated[str, one_of(STEP_RULES)] = option(
        "a1111",
        "Steps taken at a strength: a1111 or diffusers, that fraction of --steps; exact, all of them.",
    )


class ImageRequest(StrengthRequest):
    """A picture to change, whole or in tiles."""

    task: ClassVar[str] = "image_to_image"
    tile: int | None = option(
        None,
        "Draw in overlapping tiles of at least this many pixels a side, each as a picture of its own; default: at once.",
        a1111="Tile size",
        when="tile",
        ge=32,
        le=4096,
    )
    tile_padding: int = option(
        32,
        "With --tile: pixels that a tile shows of its neighbours; less than half of a tile.",
        a1111="Tile padding",
        when="tile",
        ge=0,
        le=1024,
    )
    tile_blending: int = option(
        16,
        "With --tile: pixels over which tiles are blended, at most --tile-padding.",
        a1111="Tile blending",
        when="tile",
        ge=0,
        le=1024,
    )

    @model_validator(mode="after")
    def tiles_that_fit(self) -> Self:
        if self.tile is not None and 2 * self.tile_padding >= self.tile:
            raise ValueError(f"tile_padding {self.tile_padding} is not less than half of tile {self.tile}")
        if self.tile is not None and self.tile_blending > self.tile_padding:
            raise ValueError(f"tile_blending {self.tile_blending} is above tile_padding {self.tile_padding}")
        return self


class InpaintRequest(StrengthRequest):
    """A part of a picture to draw anew. The size is that of the drawn part; the picture keeps its own."""

    task: ClassVar[str] = "inpaint"
    # 1 by default: what is masked is to be replaced, not retouched
    strength: float = option(
        1.0,
        "How much to change the masked part, above 0 to 1; 1 keeps nothing of it.",
        a1111="Denoising strength",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    mask_blur: float = option(
        4.0,
        "Pixels by which the mask's edge is softened, inward; unmasked pixels never change.",
        a1111="Mask blur",
        ge=0,
        le=64,
        allow_inf_nan=False,
    )
    fill: Annotated[str, one_of(FILL_NAMES)] = option(
        "original",
        "What noise is added to in the masked part: original, around (the colours around it), noise or nothing.",
        a1111="Masked content",
        values=FILL_NAMES,
    )
    only_masked: bool = option(
        False,
        "Draw only the mask and its surroundings, at the given size or the model's own.",
        a1111="Inpaint area",
        when="only_masked",
        values={True: "Only masked"},
    )
    padding: int = option(
        32,
        "With --only-masked: pixels around the mask that are included.",
        a1111="Masked area padding",
        when="only_masked",
        ge=0,
        le=1024,
    )
    soft_mask: bool = option(
        False,
        "Change grey parts of the mask less: each pixel by that share of --strength (Differential Diffusion).",
        a1111="Soft mask",
        when="soft_mask",
        values={True: "True"},
    )
    blend_mask: bool = option(
        False,
        "Blend grey parts of the mask with the picture in every step, by how grey they are (ComfyUI's noise mask).",
        a1111="Blend mask",
        when="blend_mask",
        values={True: "True"},
    )

    @field_validator("fill", mode="before")
    @classmethod
    def own_fill_name(cls, value: Any) -> Any:
        return FILL_ALIASES.get(value.lower(), value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def one_meaning_of_grey(self) -> Self:
        if self.soft_mask and self.blend_mask:
            raise ValueError("give soft_mask or blend_mask, not both")
        return self


class OutpaintRequest(InpaintRequest):
    """A picture to extend at its sides, by how many pixels, and how those are drawn."""

    task: ClassVar[str] = "outpaint"
    strength: float = option(
        0.8,
        "How much to change the new part, above 0 to 1; less keeps the colours of the edges.",
        a1111="Denoising strength",
        gt=0,
        le=1,
        allow_inf_nan=False,
    )
    mask_blur: float = option(
        8.0,
        "Pixels over which the edges' colours fade, outward.",
        a1111="Mask blur",
        ge=0,
        le=64,
        allow_inf_nan=False,
    )
    fill: Annotated[str, one_of(FILL_NAMES)] = option(
        "around",
        "What noise is added to in the new part: original, around (the colours of the edges), noise or nothing.",
        a1111="Masked content",
        values=FILL_NAMES,
    )
    left: int = option(0, "Pixels to add at the left.", ge=0, le=4096)
    top: int = option(0, "Pixels to add at the top.", ge=0, le=4096)
    right: int = option(0, "Pixels to add at the right.", ge=0, le=4096)
    bottom: int = option(0, "Pixels to add at the bottom.", ge=0, le=4096)

    @model_validator(mode="after")
    def somewhere(self) -> Self:
        if not (self.left or self.top or self.right or self.bottom):
            raise ValueError("left, top, right and bottom are 0, so there is nothing to draw")
        return self


class DepthRequest(StrengthRequest):
    """A picture to change while its depth stays."""

    task: ClassVar[str] = "depth_to_image"


class InstructRequest(Request):
    """An instruction, as the prompt, to change a picture by. Without a size the picture keeps its own."""

    task: ClassVar[str] = "instruct"
    image_cfg_scale: float = option(
        1.5,
        "How closely to follow the picture; 1 is off.",
        a1111="Image CFG scale",
        ge=-100,
        le=100,
        allow_inf_nan=False,
    )


class UpscaleRequest(Request):
    """A picture to enlarge: by diffusion, by the model's factor, or by a pixel upscaler, by any."""

    task: ClassVar[str] = "upscale"
    prompt: str | tuple[str, ...] = option(..., "What the picture shows. May be empty.", unset="empty")
    noise_level: int | None = option(
        None,
        "How much of the picture's own detail to replace: the x4 upscaler 0 to 350, by default 20; Imagen's 0 to 999, 250.",
        a1111="Noise level",
        ge=0,
        le=999,
    )
    factor: float | None = option(
        None,
        "How much larger, a side, with a pixel upscaler; default: what its file is for.",
        gt=0,
        le=16,
        allow_inf_nan=False,
    )
    tile: int | None = option(
        None,
        "Pixels a side that a pixel upscaler sees at once; default: 256.",
        ge=128,
        le=8192,
    )


class VaryRequest(Request):
    """A picture, or two, whose meaning to draw again. The size is the model's own, whatever the picture's."""

    task: ClassVar[str] = "vary"
    prompt: str | tuple[str, ...] = option("", "What to draw besides, for models with text input.")
    mix: float = option(
        0.5, "With --second: how far from the first picture to the second, 0 to 1.", ge=0, le=1
    )
    noise_level: int | None = option(
        None, "unCLIP: how freely to draw, 0 to 999, by noise on what is seen; default: 0.", ge=0, le=999
    )


class LayoutRequest(Request):
    """Boxes to draw. The prompt is empty for models without text input."""

    task: ClassVar[str] = "layout_to_image"
    prompt: str | tuple[str, ...] = option("", "What the whole picture shows, for models with text input.")
    boxes: Boxes = option(
        ...,
        "x0,y0,x1,y1=WHAT, as fractions of the picture from 0 to 1; repeatable, later ones above.",
        a1111="Boxes",
        flag="box",
        min_length=1,
    )


class SemanticRequest(Request):
    """A label map to draw. The model has no text input. Without a size the picture has the map's."""

    task: ClassVar[str] = "semantic_to_image"
    prompt: str | tuple[str, ...] = option("", "Empty: the model has no text input.")
