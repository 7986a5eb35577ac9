"""Between pictures and latents, in both directions. B batch, C channels, H W latent size, f pixels a latent pixel."""

from PIL import Image
from torch import Tensor

from inkwash.pipeline.denoising.seamless import seamless
from inkwash.pipeline.images import fitted, to_pixels
from inkwash.pipeline.model import Model


def encode(model: Model, pixels: Tensor) -> Tensor:
    """The latent (B, C, H, W), float32, of pixels (B, 3, fH, fW): the mean of its posterior."""
    return model.autoencoder.encode(pixels.to(model.device, model.dtype)).mean.float()


def encode_image(model: Model, image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The latent (1, C, H, W) of an RGB picture, scaled and cropped to (width, height)."""
    return encode(model, to_pixels(fitted(image, size)))


def decode(model: Model, latent: Tensor, axes: str = "none") -> Tensor:
    """Pixels (B, 3, fH, fW) of a latent (B, C, H, W). axes: none, x, y or both, along which opposite edges fit."""
    with seamless([model.autoencoder], axes):
        return model.autoencoder.decode(latent.to(model.dtype))
