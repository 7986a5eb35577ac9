"""The first stage in little memory, and without overflow. B batch, f pixels a latent pixel stands for."""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from inkwash.diffusion.windows import blended
from inkwash.models.autoencoder import FirstStage, Posterior

log = logging.getLogger(__name__)


def tiled_if_needed(autoencoder: FirstStage, tile: int | None, slicing: bool) -> FirstStage:
    """The autoencoder, as an `TiledAutoencoder` one where it is to be, or where half precision may overflow."""
    half = any(parameter.dtype == torch.float16 for parameter in autoencoder.parameters())
    return TiledAutoencoder(autoencoder, tile, slicing) if half or tile or slicing else autoencoder


class TiledAutoencoder(FirstStage):
    """An autoencoder that works as asked, with its own interface.

    tile: pixels a side of the parts that it works on, which share a quarter and are blended; None takes the picture
    whole. slicing: picture by picture. What half precision overflows on is decoded again in float32, which the log
    says. Raises ValueError for a tile that is not a multiple of 4f, or under 64.
    """

    def __init__(self, autoencoder: FirstStage, tile: int | None = None, slicing: bool = False):
        super().__init__()
        least = 4 * autoencoder.config.factor
        if tile is not None and (tile < 64 or tile % least):
            raise ValueError(f"vae_tile {tile} is not a multiple of {least} from 64 on")
        self.config, self.autoencoder, self.tile, self.slicing = (
            autoencoder.config,
            autoencoder,
            tile,
            slicing,
        )

    def encode(self, pixels: Tensor) -> Posterior:
        """Encode in tiles, of which means and stds are blended; see the autoencoder's `encode`."""
        f = self.config.factor

        def encoded(pixels: Tensor) -> Tensor:
            posterior = self.autoencoder.encode(pixels)
            return torch.cat([posterior.mean, posterior.std], dim=1)

        def part(pixels: Tensor, rows: slice, columns: slice) -> Tensor:
            at = (slice(f * side.start, f * side.stop) for side in (rows, columns))
            return encoded(pixels[(..., *at)])

        if self.tile and max(pixels.shape[2:]) > self.tile and not any(side % f for side in pixels.shape[2:]):
            size = pixels.shape[2] // f, pixels.shape[3] // f
            made = [self.tiled(lambda *at, one=one: part(one, *at), *size) for one in self.slices(pixels)]
        else:
            made = [encoded(one) for one in self.slices(pixels)]
        return Posterior(*torch.cat(made).chunk(2, dim=1))

    def decode(self, latent: Tensor) -> Tensor:
        """Decode in tiles; see the autoencoder's `decode`."""
        pixels = torch.cat([self.decoded(self.autoencoder, one) for one in self.slices(latent)])
        if (
            latent.dtype == torch.float16
            and torch.isfinite(latent).all()
            and not torch.isfinite(pixels).all()
        ):
            log.warning("the first stage overflowed in %s; decoding again in float32", latent.dtype)
            exact = copy.deepcopy(self.autoencoder).float()
            pixels = torch.cat([self.decoded(exact, one) for one in self.slices(latent.float())])
        return pixels

    def slices(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.split(1) if self.slicing else (batch,)

    def decoded(self, autoencoder: FirstStage, latent: Tensor) -> Tensor:
        return self.tiled(
            lambda rows, columns: autoencoder.decode(latent[:, :, rows, columns]), *latent.shape[2:]
        )

    def tiled(self, make: Callable[[slice, slice], Tensor], height: int, width: int) -> Tensor:
        """The results of `make` for rows and columns of the latent, tile by tile."""
        side = self.tile // self.config.factor if self.tile else max(height, width)
        return blended(make, height, width, side, side // 4)
