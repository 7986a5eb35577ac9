"""Regions of a picture with prompts of their own. B batch, C channels, H W latent size."""

from collections.abc import Callable, Sequence

from inkwash.diffusion.denoiser import Conditioning
from inkwash.diffusion.guidance import Guided
from inkwash.diffusion.regions import Region, regional
from inkwash.pipeline.request import Request

# the denoiser that follows a prompt for each picture, beside other conditions with the prompt and without
Following = Callable[[Sequence[str], Conditioning, Conditioning | None], Guided]


def in_regions(
    whole: Guided,
    follow: Following,
    request: Request,
    size: tuple[int, int],
    extra_cond: Conditioning,
    extra_uncond: Conditioning | None,
) -> Guided:
    """The denoiser `whole`, and in the request's regions those that follow their own prompts.

    A region is a picture of its own: the network sees nothing outside it, and of conditions that are maps (B, C, H, W) its
    part. size: H, W.
    """

    def region(x0: float, y0: float, x1: float, y1: float, text: str) -> Region:
        rows, columns = span(y0, y1, size[0]), span(x0, x1, size[1])

        def cut(conds: Conditioning) -> Conditioning:
            is_map = {key: value.ndim == 4 and value.shape[2:] == size for key, value in conds.items()}
            return {key: v[:, :, rows, columns] if is_map[key] else v for key, v in conds.items()}

        uncond = None if extra_uncond is None else cut(extra_uncond)
        return Region(rows, columns, follow([text] * request.batch_size, cut(extra_cond), uncond))

    return regional(whole, [region(*box) for box in request.regions], size)


def span(start: float, end: float, size: int) -> slice:
    """The places nearest to two fractions of a size, at least one."""
    first = min(round(start * size), size - 1)
    return slice(first, max(first + 1, round(end * size)))
