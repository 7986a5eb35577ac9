"""A model that is open: its parts, and what can be done with it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from inkwash.diffusion.denoiser import PREDICTIONS
from inkwash.files import ModelFileError
from inkwash.nn.attention import Context
from inkwash.nn.int8 import Int8Conv2d, Int8Linear, in_int8
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.images import as_labels
from inkwash.pipeline.memory.offload import Offload
from inkwash.pipeline.memory.tiling import economical
from inkwash.pipeline.request import Request
from inkwash.pipeline.tasks.depth import DepthRequest, depth_to_image
from inkwash.pipeline.tasks.image_to_image import ImageRequest, image_to_image
from inkwash.pipeline.tasks.inpaint import InpaintRequest, inpaint
from inkwash.pipeline.tasks.instruct import InstructRequest, instruct
from inkwash.pipeline.tasks.layout import LayoutRequest, layout_to_image
from inkwash.pipeline.tasks.outpaint import OutpaintRequest, outpaint
from inkwash.pipeline.tasks.semantic import SemanticRequest, semantic_to_image
from inkwash.pipeline.tasks.text_to_image import text_to_image
from inkwash.pipeline.tasks.upscale import UpscaleRequest, upscale
from inkwash.prompts.folders import Folders
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import DTYPES, Parts, assemble, chosen_dtype, hash_of
from inkwash.weights.models.convert import read_checkpoint


@dataclass(frozen=True)
class Model(Parts):
    """The parts of a latent diffusion model, all on one device in one dtype, and what can be done with them."""

    name: str = ""
    parts: tuple[Path, ...] = ()  # files whose networks are in place of the model's own
    refiner: "Model | None" = None  # what goes on where this one stops
    offload: Offload | None = None  # where the networks come and go
    folders: Folders = Folders()  # where the files are that prompts name

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the file's sha256, as other programs name a model; of a folder, its U-Net's."""
        return hash_of(self.files)[:10]

    @cached_property
    def part_hashes(self) -> dict[str, str]:
        """The same of the parts, by their names."""
        files = {
            path: [path] if path.is_file() else sorted(path.glob("*.safetensors")) for path in self.parts
        }
        return {path.stem: hash_of(each)[:10] for path, each in files.items()}

    @property
    def device(self) -> torch.device:
        return self.offload.device if self.offload else next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def int8(self) -> bool:
        """Whether the U-Net computes in eight bits."""
        return any(isinstance(module, Int8Conv2d | Int8Linear) for module in self.unet.modules())

    def network(self) -> Callable[..., Tensor]:
        """The U-Net for samplers, which compute in float32 whatever its own dtype.

        concat: what a variant of the family sees beside x, as channels that are not scaled.
        """
        dtype = self.dtype
        remembered = lru_cache(maxsize=4)(Context)  # a tensor is looked up by being the same one

        def predict(
            x: Tensor, t: Tensor, concat: Tensor | None = None, context: Tensor | None = None, **cond: Any
        ) -> Tensor:
            x = x if concat is None else torch.cat([x, concat], dim=1)
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            seen = None if context is None else remembered(context)
            return self.unet(x, t, seen, **cond).float()

        return predict

    def text_to_image(
        self,
        prompt: str | tuple[str, ...],
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Draw pictures; the options and their defaults are those of `Request`.

        Returns `batch_size` RGB images; image k uses `seed + k`. Raises ValueError naming what is wrong.
        """
        request = Request(prompt=prompt, negative_prompt=negative_prompt, **options)
        return text_to_image(self, request, on_step)

    def image_to_image(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Change a picture by a prompt; the options and their defaults are those of `ImageRequest`.

        Returns `batch_size` RGB images. Raises ValueError naming what is wrong.
        """
        request = ImageRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return image_to_image(self, request, image.convert("RGB"), on_step)

    def inpaint(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        mask: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Draw the white part of a mask anew; the options and their defaults are those of `InpaintRequest`.

        Returns `batch_size` RGB images of the picture's size, equal to it where the mask is black. Raises
        ValueError naming what is wrong.
        """
        request = InpaintRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return inpaint(self, request, image.convert("RGB"), mask.convert("L"), on_step)

    def outpaint(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Draw on beyond a picture's sides, `left`, `top`, `right` and `bottom` pixels of them.

        The options and their defaults are those of `OutpaintRequest`. Returns `batch_size` RGB images, in whose
        middle the picture is as it was. Raises ValueError naming what is wrong.
        """
        request = OutpaintRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return outpaint(self, request, image.convert("RGB"), on_step)

    def depth_to_image(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        depth: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Change a picture by a prompt while its depth stays, with a model for that; larger depth is nearer.

        The options and their defaults are those of `DepthRequest`. Returns `batch_size` RGB images. Raises
        ValueError naming what is wrong.
        """
        request = DepthRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return depth_to_image(self, request, image.convert("RGB"), depth.convert("F"), on_step)

    def layout_to_image(
        self,
        boxes: Sequence[tuple[float, float, float, float, str] | str],
        prompt: str | tuple[str, ...] = "",
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Draw what boxes name where they lie, with a model for that.

        boxes: left, top, right and bottom in parts of the picture, and what it is: words, or the number of a category
        of a model that sees no text. The options and their defaults are those of `LayoutRequest`. Returns
        `batch_size` RGB images. Raises ValueError naming what is wrong.
        """
        wanted = {"boxes": boxes, "prompt": prompt, "negative_prompt": negative_prompt}
        return layout_to_image(self, LayoutRequest.model_validate(wanted | options), on_step)

    def semantic_to_image(
        self, labels: Image.Image, *, on_step: Watch | None = None, **options: Any
    ) -> list[Image.Image]:
        """Draw what a map of labels shows, with a model for that; it is in mode L or P, a pixel's value its label.

        The options and their defaults are those of `SemanticRequest`. Returns `batch_size` RGB images. Raises
        ValueError naming what is wrong.
        """
        return semantic_to_image(self, SemanticRequest(**options), as_labels(labels), on_step)

    def instruct(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Do to a picture what the prompt says, with an InstructPix2Pix model.

        The options and their defaults are those of `InstructRequest`. Returns `batch_size` RGB images. Raises
        ValueError naming what is wrong.
        """
        request = InstructRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return instruct(self, request, image.convert("RGB"), on_step)

    def upscale(
        self,
        prompt: str | tuple[str, ...],
        image: Image.Image,
        negative_prompt: str | tuple[str, ...] = "",
        *,
        on_step: Watch | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Draw a picture larger, by its first stage's factor, with a model for that, such as the x4 upscaler.

        The options and their defaults are those of `UpscaleRequest`. Returns `batch_size` RGB images. Raises
        ValueError naming what is wrong.
        """
        request = UpscaleRequest(prompt=prompt, negative_prompt=negative_prompt, **options)
        return upscale(self, request, image.convert("RGB"), on_step)


def open_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "auto",
    *,
    prediction: str | None = None,
    ema: bool = False,
    parts: Iterable[str | Path] = (),
    variant: str | None = None,
    offline: bool = False,
    refiner: str | Path | None = None,
    offload: bool | Offload = False,  # one that is there already takes care of this model too
    vae_tile: int | None = None,
    vae_slicing: bool = False,
    compile: bool = False,
    int8: bool = False,
    folders: Folders = Folders(),  # noqa: B008  frozen
) -> Model:
    """Open a shipped model, a folder or a single file; see `inkwash.load`."""
    if prediction not in (None, *PREDICTIONS):
        raise ValueError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    usable(device)
    if int8 and (compile or torch.device(device).type != "cpu"):
        raise ValueError(f"int8 is for drawing on a CPU, without compile, and the device is {device}")
    if not isinstance(dtype, torch.dtype) and dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    path = model_path(name, variant, offline)
    part_paths = tuple(model_path(part, variant, offline) for part in parts)
    checkpoint = read_checkpoint(path, ema, part_paths, variant)
    try:
        built = assemble(
            checkpoint, "cpu" if offload else device, chosen_dtype(dtype, device, checkpoint), prediction
        )
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    home = Offload(device) if offload is True else offload or None
    running: dict[str, Any] = {
        "offload": home or False,
        "vae_tile": vae_tile,
        "vae_slicing": vae_slicing,
        "compile": compile,
        "int8": int8,
    }
    after = None
    if refiner:
        running["folders"] = replace(folders, loras=None)  # LoRAs are made for the base
        after = open_model(refiner, device, dtype, variant=variant, offline=offline, **running)
    if int8:
        in_int8(built.unet)
    if compile:  # on a GPU into CUDA graphs, which have no time between kernels
        built.unet.compile(mode="reduce-overhead" if torch.device(device).type == "cuda" else "default")
    if home:
        stages = [built.cond_stage] if built.cond_stage else []
        home.add([built.unet, built.autoencoder, *(text.model for text in built.text_encoders), *stages])
    built = replace(built, autoencoder=economical(built.autoencoder, vae_tile, vae_slicing))
    return Model(
        **vars(built),
        name=named(name, path),
        parts=part_paths,
        refiner=after,
        offload=home,
        folders=folders,
    )


def usable(device: str | torch.device) -> None:
    """Raises ValueError for a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch was not built for fails an assertion
        raise ValueError(f"device {str(device)!r} can't be used: {str(error).splitlines()[0]}") from error


def named(name: str | Path, path: Path) -> str:
    """What pictures say of the model: its file's or folder's name, and a hub id as it is."""
    if not Path(name).exists() and "/" in str(name):
        return str(name)
    return path.stem if path.is_file() else path.name
