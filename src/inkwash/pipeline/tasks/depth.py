"""A picture, its depth and a prompt to a picture. B batch, C channels, H W latent size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.denoising.prompting import Resolved
from inkwash.pipeline.denoising.sigmas import sigmas_for_strength
from inkwash.pipeline.images import fitted, nearest_size, to_pixels
from inkwash.pipeline.latents import encode_image
from inkwash.pipeline.model import Model
from inkwash.pipeline.run import draw, start
from inkwash.pipeline.task_requests import DepthRequest


def depth_to_image(
    model: Model,
    resolved: Resolved[DepthRequest],
    image: Image.Image,
    depth: Image.Image,
    on_step: Watch | None = None,
) -> list[Image.Image]:
    """Noise a picture and draw it anew by the prompt, with a model that sees its depth beside x.

    depth: of any range, in mode F; larger is nearer.
    """
    resolved = resolved.sized(nearest_size(image, model.autoencoder.config.factor))
    request = resolved.request
    with torch.inference_mode():
        latent = encode_image(model, image, request.size)
        near = nearness(fitted(depth, request.size), (latent.shape[2], latent.shape[3])).to(model.device)
        seen = model.inputs.concat({"depth": near})
        extra_cond = {"concat": seen.expand(request.batch_size, -1, -1, -1)}
        D, sigmas, x, noise = start(
            model,
            resolved,
            sigmas_for_strength(request, request.strength, model.schedule, request.step_rule),
            extra_cond,
        )
        if request.strength < 1:
            x = x + latent
        return draw(model, resolved, (D, sigmas, x, noise), on_step, {"image": image, "depth": depth})


def nearness(depth: Image.Image, size: tuple[int, int]) -> Tensor:
    """A map of depth as the U-Net sees it: (1, 1, H, W) from -1, far, to 1, near; 0 where all is equally far."""
    values = torch.from_numpy(np.array(depth.convert("F")))[None, None]
    made = F.interpolate(values, size=size, mode="bicubic", align_corners=False)
    low, high = made.aminmax()
    return 2 * (made - low) / (high - low) - 1 if high > low else torch.zeros_like(made)


def estimate_depth(image: Image.Image, folder: Path) -> Image.Image:
    """The depth of a picture, larger where nearer, in mode F, by a network of the DPT kind (Ranftl et al. 2021).

    folder: of the network as transformers saves it, in safetensors, such as MiDaS's. Raises ModelFileError where
    there is none, and where transformers, which is in the extra `aux`, is not installed.
    """
    if not (folder / "config.json").exists():
        raise ModelFileError(f"{folder} holds no network for depth: there is no config.json")
    try:
        from transformers import DPTConfig, DPTForDepthEstimation
    except ImportError as error:
        raise ModelFileError("estimating depth needs transformers: pip install 'inkwash[aux]'") from error
    try:
        config = DPTConfig.from_pretrained(folder, local_files_only=True)
        network = DPTForDepthEstimation.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder} holds no network for depth: {str(error).splitlines()[0]}") from error
    side = config.image_size if isinstance(config.image_size, int) else 384
    pixels = to_pixels(image.resize((side, side), Image.Resampling.BICUBIC))  # mean and std are 0.5 there too
    with torch.inference_mode():
        made = network(pixels).predicted_depth[0]
    return Image.fromarray(made.float().numpy()).resize(image.size, Image.Resampling.BICUBIC)
