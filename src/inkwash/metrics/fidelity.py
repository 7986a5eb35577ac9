"""Similarity of pictures, pair by pair. B batch, C channels, H W picture size."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
C1, C2 = 0.01**2, 0.03**2
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents, finest first


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pixels (B, 3, H, W) in [-1, 1]."""
    mse = ((made - wanted) / 2).double().square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp_min(1e-12))


def blurred(x: Tensor) -> Tensor:
    """Convolved with SSIM's window where it fits: (B, C, H, W) to (B, C, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, window, groups=x.shape[1])
    return F.conv2d(x, window.mT, groups=x.shape[1])


def similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the picture (B, C) of SSIM, and of its contrast and structure alone, of pictures in [0, 1]."""
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(
            f"SSIM's window of {WINDOW} pixels does not fit into pictures of {a.shape[3]}x{a.shape[2]}"
        )
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    cov = blurred(a * b) - mean_a * mean_b
    structure = (2 * cov + C2) / (var_a + var_b + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * structure).mean(dim=(2, 3)), structure.mean(dim=(2, 3))


def unit_range(pixels: Tensor) -> Tensor:
    return (pixels.double() + 1) / 2


def ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity (B,), mean over RGB, of pixels (B, 3, H, W) in [-1, 1] (Wang et al. 2004).

    Raises ValueError for pictures smaller than its window.
    """
    return similarity(unit_range(made), unit_range(wanted))[0].mean(dim=1)


def ms_ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Multi-scale structural similarity (B,) over five scales, of pixels (B, 3, H, W) in [-1, 1] (Wang et al. 2003).

    Negative similarities count as 0. Raises ValueError for pictures below 176 pixels, whose smallest scale has no window.
    """
    if min(made.shape[2:]) < WINDOW * 2 ** (len(SCALES) - 1):
        raise ValueError(f"MS-SSIM is of pictures from 176x176 on, not {made.shape[3]}x{made.shape[2]}")
    a, b = unit_range(made), unit_range(wanted)
    factors = []
    for level, exponent in enumerate(SCALES):
        whole, structure = similarity(a, b)
        chosen = whole if level == len(SCALES) - 1 else structure
        factors.append(chosen.clamp_min(0) ** exponent)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return torch.stack(factors).prod(0).mean(dim=1)


def codebook_use(codes: Tensor, size: int) -> dict[str, float]:
    """The share of codes used, and their perplexity, of a VQ first stage's code indices of any shape."""
    shares = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return {
        "codes_used": float((shares > 0).double().mean()),
        "codebook_perplexity": float(torch.exp(-torch.special.xlogy(shares, shares).sum())),
    }
