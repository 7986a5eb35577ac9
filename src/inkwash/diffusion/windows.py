"""Pictures that are larger than a network should see at once. B batch, C channels, H W size."""

from collections.abc import Callable

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Conditioning


def blended(
    make: Callable[[slice, slice], Tensor],
    height: int,
    width: int,
    window: int,
    overlap: int,
    margin: int = 0,
) -> Tensor:
    """One tensor (B, C, s*height, s*width) of what `make` gives for overlapping windows of height x width.

    make: of rows and columns, the whole grid or `window` each, a tensor (B, C, s*rows, s*columns), s whole. Windows
    share at least `overlap`, over which their weights fall linearly, so that no edge shows. margin: how much of it is
    only seen, and left out of the result, since `make` knows too little there. Raises ValueError where overlap is not in
    0 to window - 1, or margins would use it up.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"overlap {overlap} is not in 0 to {window - 1}, less than the window")
    if margin and not 0 < 2 * margin < overlap:
        raise ValueError(f"margin {margin} is not below half the overlap, {overlap}")
    total: Tensor | None = None
    weights = torch.zeros(())
    for rows in spans(height, window, overlap):
        for columns in spans(width, window, overlap):
            made = make(rows, columns)
            if (rows, columns) == (slice(0, height), slice(0, width)):
                return made
            s = made.shape[2] // (rows.stop - rows.start)
            if total is None:
                total = made.new_zeros(*made.shape[:2], s * height, s * width)
                weights = made.new_zeros(s * height, s * width)
            sides = ((rows, height), (columns, width))
            y, x = (ramps(span, size, overlap, s, margin).to(made.device, made.dtype) for span, size in sides)
            at = (slice(s * rows.start, s * rows.stop), slice(s * columns.start, s * columns.stop))
            total[:, :, at[0], at[1]] += made * torch.outer(y, x)
            weights[at] += torch.outer(y, x)
    assert total is not None
    return total / weights


def spans(size: int, window: int, overlap: int) -> list[slice]:
    """Windows over 0 to size, evenly spaced, the first and the last at the ends."""
    if size <= window:
        return [slice(0, size)]
    num = -(-(size - window) // (window - overlap))
    starts = [round(k * (size - window) / num) for k in range(num + 1)]
    return [slice(start, start + window) for start in starts]


def ramps(span: slice, size: int, overlap: int, s: int, margin: int = 0) -> Tensor:
    """Weights (s * window,): 1, falling over the overlap to 0 at the margin of edges that are not the whole's."""
    num = s * (span.stop - span.start)
    rise = ((torch.arange(num) + 0.5 - s * margin) / max(s * (overlap - 2 * margin), 1)).clamp(0, 1)
    falls = (rise if span.start > 0 else 1), (rise.flip(0) if span.stop < size else 1)
    return torch.ones(num) * falls[0] * falls[1]


def windowed(D: Callable[..., Tensor], window: int, overlap: int) -> Callable[..., Tensor]:
    """D over overlapping windows of x, its predictions averaged (MultiDiffusion, Bar-Tal et al. 2023, equation 5).

    So a network draws pictures larger than those it learnt, of one texture rather than of one composition. D: with
    or without conditions, whose maps (B, C, H, W) of x's size are cut as x is. window, overlap: in latent pixels.
    """

    def denoise(x: Tensor, sigma: Tensor, *conds: Conditioning) -> Tensor:
        size = x.shape[2], x.shape[3]

        def make(rows: slice, columns: slice) -> Tensor:
            return D(x[:, :, rows, columns], sigma, *(cut(cond, size, rows, columns) for cond in conds))

        return blended(make, x.shape[2], x.shape[3], window, overlap)

    return denoise


def cut(cond: Conditioning, size: tuple[int, int], rows: slice, columns: slice) -> Conditioning:
    """Cut a condition's maps (B, C, H, W) of this size, H and W, to a window; keep its other tensors."""
    return {
        key: value[:, :, rows, columns] if value.ndim == 4 and value.shape[2:] == size else value
        for key, value in cond.items()
    }
