"""Pictures of unusual shapes: larger than a network has learnt, or without edges.

B batch, C channels, H W latent size, f pixels a latent pixel.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.diffusion.windows import windowed
from inkwash.pipeline.denoising.seamless import seamless

if TYPE_CHECKING:
    from inkwash.pipeline.model import Model
    from inkwash.pipeline.request import Drawing


class CanvasFields(BaseModel):
    """The part of a request that says how the plane is covered. By default nothing here changes anything."""

    window: int | None = Field(
        None, ge=32, le=4096
    )  # pixels a side that the network sees at once; None is all
    window_overlap: float = Field(0.5, ge=0, le=0.95)  # part of a window that the next one shares
    seamless: Literal["none", "x", "y", "both"] = "none"  # along which axes opposite edges fit


def laid_out(denoise: ConditionedDenoiser, model: "Model", request: "Drawing") -> ConditionedDenoiser:
    """The denoiser over the windows that the request asks for, or without edges; itself where it asks for neither.

    Raises ValueError for a window that is not a multiple of f, and for what needs the whole picture.
    """
    if request.window is not None:
        f = model.autoencoder.config.factor
        if request.window % f:
            raise ValueError(f"window {request.window} is not a multiple of {f}")
        for name, used in (("sag_scale", request.sag_scale), ("seamless", request.seamless != "none")):
            if used:
                raise ValueError(
                    f"{name} needs the whole picture in one window, so it can't be used with window"
                )
        side = request.window // f
        return windowed(denoise, side, int(side * request.window_overlap))
    if request.seamless == "none":
        return denoise

    def endless(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        with seamless([model.unet], request.seamless):
            return denoise(x, sigma, cond)

    return endless


def decode(model: "Model", request: CanvasFields, latent: Tensor) -> Tensor:
    """Pixels (B, 3, fH, fW) of a latent (B, C, H, W), as the request wants its edges."""
    with seamless([model.autoencoder], request.seamless):
        return model.autoencoder.decode(latent.to(model.dtype))
