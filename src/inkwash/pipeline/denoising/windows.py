"""Pictures of unusual shapes: larger than a network has learnt, or without edges.

B batch, C channels, H W latent size, f pixels a latent pixel.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.diffusion.windows import windowed
from inkwash.pipeline.denoising.seamless import seamless
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request


def windowed_or_seamless(
    denoise: ConditionedDenoiser, model: Model, request: Request, beside: Sequence[nn.Module] = ()
) -> ConditionedDenoiser:
    """Wrap the denoiser for windowed or seamless drawing if requested. beside: networks of controls.

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
        with seamless([model.unet, *beside], request.seamless):
            return denoise(x, sigma, cond)

    return endless
