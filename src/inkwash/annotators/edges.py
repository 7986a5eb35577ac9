"""Lines of a picture. B batch, H W pixels; pictures (B, 3, H, W) and hints (B, 1, H, W) in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.annotators.tones import blur

TAN_22 = 13573  # tan(22.5 degrees) in units of 2^-15, as OpenCV rounds it


def canny(pixels: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """Edges, 0 or 1, by Canny (1986) as OpenCV's `Canny` finds them, whose hints ControlNets learned from.

    An edge is a ridge of the gradient, |dx| + |dy| by Sobel in units of 1/255, of which a part is above high and all is
    above low. Raises ValueError where 0 <= low <= high does not hold.
    """
    if not 0 <= low <= high:
        raise ValueError(f"low {low:g} and high {high:g}: 0 <= low <= high is needed")
    dx, dy = gradient((pixels * 255).round())
    size = dx.abs() + dy.abs()
    weak = ridges(dx, dy, size) & (size > low)
    return connected(weak & (size > high), weak).float()


def gradient(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's dx and dy, (B, 1, H, W) int32, each pixel's of the channel where it is steepest."""
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    across = torch.stack([torch.outer(smooth, step), torch.outer(step, smooth)])[:, None].to(pixels)
    found = F.conv2d(F.pad(pixels.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate"), across)
    found = found.round().int().unflatten(0, pixels.shape[:2])  # B, 3, 2, H, W
    steepest = found[:, 0]
    for other in found[:, 1:].unbind(1):
        steeper = other.abs().sum(1, keepdim=True) > steepest.abs().sum(1, keepdim=True)
        steepest = torch.where(steeper, other, steepest)
    return steepest[:, :1], steepest[:, 1:]


def ridges(dx: Tensor, dy: Tensor, size: Tensor) -> Tensor:
    """Mask of where the gradient's size is largest along its direction, of four directions; (B, 1, H, W) bool."""
    height, width = size.shape[2:]
    framed = F.pad(size, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return framed[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    steep, flat = dy.abs() << 15, dx.abs() * TAN_22
    horizontal = (size > beside(0, -1)) & (size >= beside(0, 1))
    vertical = (size > beside(-1, 0)) & (size >= beside(1, 0))
    falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    rising = (size > beside(-1, 1)) & (size > beside(1, -1))
    diagonal = torch.where((dx < 0) == (dy < 0), falling, rising)
    upright = steep > flat + (dx.abs() << 16)  # tan(67.5 degrees) is 2 + tan(22.5 degrees)
    return torch.where(steep < flat, horizontal, torch.where(upright, vertical, diagonal))


def strokes(edges: Tensor, threshold: float = 127) -> Tensor:
    """Strokes, 0 or 1, along the ridges of soft edges (B, 1, H, W), as scribble ControlNets learned from HED's edges.

    A ridge is largest along one of four directions, after a Gaussian of 3 pixels, and above threshold / 255.
    """
    smooth = blur(edges * 255, 3)
    height, width = edges.shape[2:]
    framed = F.pad(smooth, (1, 1, 1, 1), value=-torch.inf)
    ridge = torch.zeros_like(smooth, dtype=torch.bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first, second = (
            framed[
                :, :, 1 + sign * down : 1 + sign * down + height, 1 + sign * right : 1 + sign * right + width
            ]
            for sign in (-1, 1)
        )
        ridge |= (smooth >= first) & (smooth >= second)
    return (blur(255.0 * (ridge & (smooth > threshold)), 3) > 4).float()


def connected(seeds: Tensor, within: Tensor) -> Tensor:
    """The pixels of `within` that a path of neighbours, eight of each, leads to from `seeds`; (B, 1, H, W) bool."""
    found, rows = seeds.clone(), torch.arange(len(seeds), device=seeds.device)
    while len(rows):
        grown = dilated(found[rows]) & within[rows]
        growing = (grown != found[rows]).flatten(1).any(1)
        found[rows], rows = grown, rows[growing]
    return found


def dilated(mask: Tensor) -> Tensor:
    """A mask (B, 1, H, W) bool with all eight neighbours of its pixels."""
    wide = mask.clone()
    wide[..., 1:] |= mask[..., :-1]
    wide[..., :-1] |= mask[..., 1:]
    tall = wide.clone()
    tall[..., 1:, :] |= wide[..., :-1, :]
    tall[..., :-1, :] |= wide[..., 1:, :]
    return tall


def lineart(pixels: Tensor, sigma: float = 6) -> Tensor:
    """Dark lines, bright on black: how much darker a pixel is than its surroundings, scaled by the median."""
    darker = (blur(pixels, sigma) - pixels).amin(1, keepdim=True).clamp(min=0) * 255
    lines = []
    for one in darker:
        clear = one[one > 8]
        lines.append(one / max(16.0, clear.median().item() if clear.numel() else 0.0) * 127 / 255)
    return torch.stack(lines).clamp(max=1)


def scribble(pixels: Tensor, threshold: float = 32) -> Tensor:
    """Strokes, 0 or 1, by a difference of Gaussians (Winnemoeller et al. 2012); twice it is above threshold / 255."""
    dark = (blur(pixels, 5.0) - blur(pixels, 0.5)).amin(1, keepdim=True).clamp(min=0)
    return (2 * 255 * dark > threshold).float()
