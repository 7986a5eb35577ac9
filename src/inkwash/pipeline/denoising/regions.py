"""Regions of a picture with prompts of their own. B batch, C channels, H W latent size."""

from collections.abc import Callable, Sequence

from inkwash.diffusion.denoiser import Conditioning
from inkwash.diffusion.guidance import Guided
from inkwash.diffusion.regions import Region, regional
from inkwash.diffusion.windows import cut
from inkwash.pipeline.request import Request

# makes a denoiser of a prompt for each picture, and of the network's other inputs: with the prompt, with the negative one
Following = Callable[[Sequence[str], Conditioning, Conditioning | None], Guided]


def in_regions(
    whole: Guided,
    follow: Following,
    request: Request,
    size: tuple[int, int],
    extra_cond: Conditioning,
    extra_uncond: Conditioning | None,
) -> Guided:
    """Return a denoiser that follows each region's own prompt in that region, and is `whole` elsewhere.

    The network sees x and conditions that are maps (B, C, H, W) in the region alone. size: H, W.
    """

    def region(x0: float, y0: float, x1: float, y1: float, text: str) -> Region:
        rows, columns = span(y0, y1, size[0]), span(x0, x1, size[1])
        uncond = None if extra_uncond is None else cut(extra_uncond, size, rows, columns)
        D = follow([text] * request.batch_size, cut(extra_cond, size, rows, columns), uncond)
        return Region(rows, columns, D)

    return regional(whole, [region(*box) for box in request.regions], size)


def span(start: float, end: float, size: int) -> slice:
    """The places nearest to two fractions of a size, at least one."""
    first = min(round(start * size), size - 1)
    return slice(first, max(first + 1, round(end * size)))
