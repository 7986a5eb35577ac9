"""The methods of `Pipeline`, one a task, with typed options. Written by `make methods`; do not edit."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from PIL.Image import Image

from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.model import Model
from inkwash.pipeline.tasks import TASKS

Prompt = str | tuple[str, ...]  # one for all pictures, or one for each
# left, top, right, bottom and label, or as text
Boxes = Sequence[tuple[float, float, float, float, str] | str]


class CommonOptions(TypedDict, total=False):
    """Options of `Request`, where their defaults are."""

    window: int | None
    window_overlap: float
    seamless: Literal["none", "x", "y", "both"]
    cfg_batched: bool
    cfg_rescale: float
    guidance_start: float
    guidance_end: float
    mimic_scale: float | None
    threshold_percentile: float
    perp_neg: float
    sag_scale: float
    pag_scale: float
    prompt_language: str
    clip_skip: int | None
    controls: Sequence[Control | str]
    regions: Boxes | str
    styles: Sequence[str]
    width: int | None
    height: int | None
    preset: str | None
    steps: int
    timesteps: Sequence[int] | str | None
    sigmas: Sequence[float] | str | None
    cfg_scale: float
    sampler: str
    eta: float | None
    schedule: str
    seed: int
    batch_size: int
    deep_cache: int
    token_merging: float
    variation_strength: float
    variation_seed: int
    seed_resize_from: tuple[int, int] | str | None
    refiner_switch_at: float | None
    refiner_strength: float | None
    class_label: int | None
    original_size: tuple[int, int] | str | None
    crop: tuple[int, int] | str
    target_size: tuple[int, int] | str | None
    aesthetic: float
    negative_aesthetic: float


class TextToImageOptions(CommonOptions, total=False):
    """Options of `TextToImageRequest`, where their defaults are."""

    hires: float
    hires_strength: float
    hires_steps: int | None
    hires_upscaler: str
    prior_prompt: str
    prior_steps: int
    prior_cfg_scale: float
    noise_level: int | None


class StrengthOptions(CommonOptions, total=False):
    """Options of `StrengthRequest`, where their defaults are."""

    strength: float
    step_rule: str


class ImageOptions(StrengthOptions, total=False):
    """Options of `ImageRequest`, where their defaults are."""

    tile: int | None
    tile_padding: int
    tile_blending: int


class InpaintOptions(StrengthOptions, total=False):
    """Options of `InpaintRequest`, where their defaults are."""

    mask_blur: float
    fill: str
    only_masked: bool
    padding: int
    soft_mask: bool
    blend_mask: bool


class OutpaintOptions(InpaintOptions, total=False):
    """Options of `OutpaintRequest`, where their defaults are."""

    left: int
    top: int
    right: int
    bottom: int


class DepthOptions(StrengthOptions, total=False):
    """Options of `DepthRequest`, where their defaults are."""


class InstructOptions(CommonOptions, total=False):
    """Options of `InstructRequest`, where their defaults are."""

    image_cfg_scale: float


class LayoutOptions(CommonOptions, total=False):
    """Options of `LayoutRequest`, where their defaults are."""


class SemanticOptions(CommonOptions, total=False):
    """Options of `SemanticRequest`, where their defaults are."""


class UpscaleOptions(CommonOptions, total=False):
    """Options of `UpscaleRequest`, where their defaults are."""

    noise_level: int | None
    factor: float | None
    tile: int | None


class VaryOptions(CommonOptions, total=False):
    """Options of `VaryRequest`, where their defaults are."""

    mix: float
    noise_level: int | None


class TaskMethods(Model):
    """Methods that draw; their options are validated by the requests of `tasks.TASKS`."""

    def text_to_image(
        self,
        prompt: Prompt,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[TextToImageOptions],
    ) -> list[Image]:
        """Draw pictures from a prompt.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["text_to_image"].run(
            self, {}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def image_to_image(
        self,
        prompt: Prompt,
        image: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[ImageOptions],
    ) -> list[Image]:
        """Change a picture by a prompt.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["image_to_image"].run(
            self, {"image": image}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def inpaint(
        self,
        prompt: Prompt,
        image: Image,
        mask: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[InpaintOptions],
    ) -> list[Image]:
        """Draw the white part of a mask anew; unmasked pixels are unchanged.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["inpaint"].run(
            self,
            {"image": image, "mask": mask},
            on_step,
            prompt=prompt,
            negative_prompt=negative_prompt,
            **options,
        )

    def outpaint(
        self,
        prompt: Prompt,
        image: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[OutpaintOptions],
    ) -> list[Image]:
        """Extend a picture beyond its sides; its own pixels are unchanged.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["outpaint"].run(
            self, {"image": image}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def depth_to_image(
        self,
        prompt: Prompt,
        image: Image,
        depth: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[DepthOptions],
    ) -> list[Image]:
        """Change a picture by a prompt while its depth stays.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["depth_to_image"].run(
            self,
            {"image": image, "depth": depth},
            on_step,
            prompt=prompt,
            negative_prompt=negative_prompt,
            **options,
        )

    def instruct(
        self,
        prompt: Prompt,
        image: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[InstructOptions],
    ) -> list[Image]:
        """Change a picture by an instruction.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["instruct"].run(
            self, {"image": image}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def layout_to_image(
        self,
        boxes: Boxes,
        prompt: Prompt = "",
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[LayoutOptions],
    ) -> list[Image]:
        """Draw what boxes name, where they lie.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["layout_to_image"].run(
            self, {}, on_step, boxes=boxes, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def semantic_to_image(
        self,
        labels: Image,
        prompt: Prompt = "",
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[SemanticOptions],
    ) -> list[Image]:
        """Draw what a label map shows.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["semantic_to_image"].run(
            self, {"labels": labels}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def upscale(
        self,
        prompt: Prompt,
        image: Image,
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[UpscaleOptions],
    ) -> list[Image]:
        """Enlarge a picture, by diffusion or by a pixel upscaler.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["upscale"].run(
            self, {"image": image}, on_step, prompt=prompt, negative_prompt=negative_prompt, **options
        )

    def vary(
        self,
        image: Image,
        second: Image | None = None,
        prompt: Prompt = "",
        negative_prompt: Prompt = "",
        *,
        on_step: Watch | None = None,
        **options: Unpack[VaryOptions],
    ) -> list[Image]:
        """Draw a picture's meaning again, or what lies between two pictures.

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["vary"].run(
            self,
            {"image": image, "second": second},
            on_step,
            prompt=prompt,
            negative_prompt=negative_prompt,
            **options,
        )
