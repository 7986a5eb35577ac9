"""A picture, a mask and a prompt to a picture. B batch, C channels, H W latent size."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from inkwash.diffusion.guidance import from_own_level, keep_known
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.images import nearest_size, to_mask, to_pixels
from inkwash.pipeline.latents import encode
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, masked_out, start
from inkwash.pipeline.task_requests import InpaintRequest

Box = tuple[int, int, int, int]  # left, top, right, bottom


def inpaint(
    model: Model,
    resolved: Resolved[InpaintRequest],
    image: Image.Image,
    mask: Image.Image,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Draw the white part of the mask anew, with any model; every pixel where the mask is black stays as it is.

    A model for inpainting sees the mask and the rest of the picture; under any other one the rest is kept known.
    With soft_mask, grey is drawn from its own noise level on; with blend_mask, every step's prediction is blended with the
    picture by it. Of either, what is drawn shows wholly from a quarter of white on.
    image RGB, mask L, of one size; so are the pictures that come out. Raises ValueError for a mask of another
    size or without white.
    """
    return draw_masked(model, resolved, image, mask, {"image": image, "mask": mask}, on_step)


def draw_masked(
    model: Model,
    resolved: Resolved[InpaintRequest],
    image: Image.Image,
    mask: Image.Image,
    sources: Mapping[str, Image.Image],
    on_step: Watch | None,
) -> list[Image.Image]:
    """Shared by inpaint and outpaint. sources: input images to record, by role."""
    if mask.size != image.size:
        sizes = "{}x{} and the picture {}x{}".format(*mask.size, *image.size)
        raise ValueError(f"the mask has {sizes} pixels; they must have the same size")
    request = resolved.request
    counts = request.soft_mask or request.blend_mask  # grey does
    least = 1 if counts else 128  # half white, since less is not drawn
    if mask.point([0] * least + [255] * (256 - least)).getbbox() is None:
        said = "" if counts else " (nothing is half white)"
        raise ValueError(f"the mask is black everywhere{said}, so there is nothing to draw")
    soft = ImageChops.darker(mask, mask.filter(ImageFilter.GaussianBlur(request.mask_blur)))
    own = nearest_size(image, model.autoencoder.config.factor)
    resolved = resolved.sized((model.default_size, model.default_size) if request.only_masked else own)
    request = resolved.request
    whole: Box = (0, 0, *image.size)
    box = surroundings(mask, request.padding, request.size) if request.only_masked else whole
    part = to_pixels(image.crop(box).resize(request.size, Image.Resampling.LANCZOS))
    part_mask = to_mask(soft.crop(box).resize(request.size))
    with torch.inference_mode():
        latent = encode(model, part)
        white = F.max_pool2d(part_mask, model.autoencoder.config.factor).to(model.device)
        hole = (white > 0.5).float()  # latent pixels that have a pixel which is mostly masked
        strengths = white if request.soft_mask else hole  # of each latent pixel, as a share of the whole one
        if request.blend_mask:
            strengths = F.interpolate(part_mask, hole.shape[2:], mode="bilinear").to(model.device)
        sees = model.inputs.kind == "inpainting"
        seen = masked_out(model, part * (part_mask <= 0.5), hole, request.batch_size) if sees else None
        D, sigmas, x, noise = start(
            model,
            with_crops(with_holes(resolved, mask), image.size, box),
            sigmas_for_strength(request, request.strength, model.schedule, request.step_rule),
            seen,
        )
        # a model that sees the known part draws it, too
        held = torch.where(strengths == 0, 1.0, strengths) if sees and not request.blend_mask else strengths
        at = held if request.blend_mask else from_own_level(held, sigmas)
        D = keep_known(D, latent, at, x / sigmas[0].item())
        first = (strengths == 1).float()
        if request.strength < 1:
            inside = {
                "original": lambda: latent,
                "around": lambda: encode(model, around(part, 1 - part_mask)),
                "noise": noise,
                "nothing": lambda: torch.zeros_like(x),
            }[request.fill]
            x = x + first * inside() + (1 - first) * latent
        else:
            x = x + ((strengths > 0) & (strengths < 1)) * latent
        drawn = draw(model, resolved, (D, sigmas, x, noise), on_step, sources)
    shown = soft.point([min(4 * v, 255) for v in range(256)]) if counts else soft
    return [pasted(made, image, shown, box) for made in drawn]


def with_holes(resolved: Resolved[InpaintRequest], mask: Image.Image) -> Resolved[InpaintRequest]:
    """The request with its inpainting controls' pictures transparent where the mask is white."""
    controls = []
    for control in resolved.request.controls:
        if control.annotator == "inpaint":
            holed = control.image.convert("RGB")
            hole = mask.point([255] * 128 + [0] * 128)
            holed.putalpha(hole if hole.size == holed.size else hole.resize(holed.size))
            control = control.model_copy(update={"image": holed})
        controls.append(control)
    return resolved.changed(controls=tuple(controls))


def with_crops(
    resolved: Resolved[InpaintRequest], size: tuple[int, int], box: Box
) -> Resolved[InpaintRequest]:
    """The request with its controls' pictures cropped to the box, where they have the picture's size."""

    def cropped(picture: Image.Image | None) -> Image.Image | None:
        return picture.crop(box) if picture and picture.size == size else picture

    controls = tuple(
        control.model_copy(update={"image": cropped(control.image), "mask": cropped(control.mask)})
        for control in resolved.request.controls
    )
    return resolved.changed(controls=controls)


def surroundings(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box:
    """The mask's box with padding, widened to the shape of `size` as far as the picture goes."""
    found = mask.getbbox()
    assert found is not None
    box = [found[0] - padding, found[1] - padding, found[2] + padding, found[3] + padding]
    for axis, limit in enumerate(mask.size):
        low, high = max(0, box[axis]), min(limit, box[axis + 2])
        other = 1 - axis
        span = min(mask.size[other], box[other + 2]) - max(0, box[other])
        wanted = min(limit, max(high - low, round(span * size[axis] / size[other])))
        low = min(max(0, (low + high - wanted) // 2), limit - wanted)
        box[axis], box[axis + 2] = low, low + wanted
    return box[0], box[1], box[2], box[3]


def around(pixels: Tensor, known: Tensor) -> Tensor:
    """Fill the unknown pixels of (1, 3, H, W) with the colours around them, coarser the farther those are.

    known: (1, 1, H, W), 1 where it is. Source: push-pull, Gortler et al. 1996, section 3.3.
    """
    halves = [min(2, side) for side in pixels.shape[2:]]
    if halves == [1, 1] or bool((known == 1).all()):
        return pixels
    weight = F.avg_pool2d(known, halves, ceil_mode=True)
    half = F.avg_pool2d(pixels * known, halves, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = around(half, (weight > 0).float())
    return torch.lerp(F.interpolate(coarse, size=pixels.shape[2:], mode="bilinear"), pixels, known)


def pasted(made: Image.Image, image: Image.Image, shown: Image.Image, box: Box) -> Image.Image:
    """Paste the drawn part into the picture where a mask is white."""
    whole = image.copy()
    size = (box[2] - box[0], box[3] - box[1])
    part = made if made.size == size else made.resize(size, Image.Resampling.LANCZOS)
    whole.paste(Image.composite(part, image.crop(box), shown.crop(box)), box[:2])
    whole.info = dict(made.info)
    return whole
