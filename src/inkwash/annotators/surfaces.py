"""Depth maps and the normals computed from them. B batch, H W pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depth(near: Tensor) -> Tensor:
    """A map of depth (B, 1, H, W), of any range and larger where nearer, as a hint from 0 to 1; 0 where all is equal.

    Raises ValueError where a value is not finite.
    """
    if not torch.isfinite(near).all():
        raise ValueError("the map of depth holds values that are not finite")
    low, high = near.amin((1, 2, 3), keepdim=True), near.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, (near - low) / (high - low).clamp(min=1e-30), 0.0)


def normal(near: Tensor, relief: float = 0.5) -> Tensor:
    """Surface normals of depth as in `depth`; (B, 3, H, W) in [0, 1], 1/2 is 0: left, up, to the viewer.

    relief: how far the nearest point stands before the farthest, in the picture's shorter side.
    """
    if not 0 <= relief <= 100:
        raise ValueError(f"relief {relief:g}: 0 to 100 is needed")
    height, width = near.shape[2:]
    z = F.pad(depth(near) * relief * min(height, width), (1, 1, 1, 1), mode="replicate")
    step = z.new_tensor([-0.5, 0.0, 0.5])
    slope_x = F.conv2d(z[:, :, 1:-1], step[None, None, None])
    slope_y = F.conv2d(z[..., 1:-1], step[None, None, :, None])
    n = F.normalize(torch.cat([slope_x, slope_y, torch.ones_like(slope_x)], dim=1), dim=1)
    return (n + 1) / 2
