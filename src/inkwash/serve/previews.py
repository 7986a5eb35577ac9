"""Small pictures of a denoising that goes on. B batch, C channels, H W latent size."""

import base64
from io import BytesIO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.pipeline.images import to_images
from inkwash.pipeline.latents import decode
from inkwash.pipeline.model import Model

SIDE = 256  # pixels of the longer side, at most


class Previews:
    """Previews of one job: colours are a linear map of latents, fitted to the first one, which the autoencoder decodes."""

    def __init__(self, model: Model):
        self.model = model
        self.colours: Tensor | None = None  # (C + 1, 3)

    def data_url(self, denoised: Tensor) -> str:
        """A JPEG of the first picture of a latent (B, C, H, W)."""
        with torch.inference_mode():
            latent = denoised[:1].float()
            rows = F.pad(latent[0].flatten(1).T, (0, 1), value=1.0).cpu()  # (H W, C + 1)
            colours = self.colours
            if colours is None:
                pixels = F.adaptive_avg_pool2d(decode(self.model, latent).float(), tuple(latent.shape[2:]))  # pyright: ignore
                wanted = pixels.expand(-1, 3, -1, -1)[0].flatten(1).T.cpu()
                colours = self.colours = torch.linalg.lstsq(rows, wanted).solution
            flat = (rows @ colours).T.reshape(1, 3, *latent.shape[2:])
            image = to_images(flat.nan_to_num())[0]
        scale = min(8, SIDE / max(image.size))
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.BICUBIC,
        )
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=75)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
