"""Figures of pairs of pictures against closed forms, scikit-image and torchmetrics."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from inkwash.metrics.fidelity import codebook_use, ms_ssim, psnr, ssim


def pair(height: int, width: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(2, 3, 8, 8, generator=random) * 2 - 1, (height, width), mode="bicubic"
    ).clamp(-1, 1)
    return smooth, (smooth + noise * torch.randn(smooth.shape, generator=random)).clamp(-1, 1)


def test_psnr() -> None:
    """A uniform error of e grey levels in 255 is 20 log10(255 / e) dB."""
    wanted = torch.zeros(2, 3, 8, 8)
    made = wanted + torch.tensor([1.0, 16.0]).view(2, 1, 1, 1) * 2 / 255
    expected = [20 * math.log10(255), 20 * math.log10(255 / 16)]
    torch.testing.assert_close(psnr(made, wanted), torch.tensor(expected, dtype=torch.float64))
    assert psnr(wanted, wanted).isfinite().all()


def test_psnr_of_half_precision_is_not_coarser() -> None:
    made = torch.full((1, 3, 64, 64), 0.5)
    wanted = made + 0.01
    torch.testing.assert_close(psnr(made.half(), wanted.half()), psnr(made, wanted), rtol=0.02, atol=0)


def skimage_ssim(a: Tensor, b: Tensor, **options: int) -> float:
    return structural_similarity(
        a.numpy(),
        b.numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        **options,
    )


def test_ssim_is_that_of_scikit_image() -> None:
    made, wanted = pair(40, 57)
    for k, ours in enumerate(ssim(made, wanted)):
        theirs = skimage_ssim(*((side[k].double() + 1) / 2 for side in (made, wanted)), channel_axis=0)
        assert float(ours) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_ms_ssim_is_that_of_torchmetrics_and_scikit_image(noise: float) -> None:
    """Contrast and structure of the first four scales are torchmetrics', which pads the last one; that is skimage's."""
    a, b = ((side[:1, :1].double() + 1) / 2 for side in pair(192, 180, noise))
    expected = 1.0
    for exponent in (0.0448, 0.2856, 0.3001, 0.2363):
        _, structure = structural_similarity_index_measure(
            a, b, data_range=1.0, return_contrast_sensitivity=True, reduction="none"
        )
        expected *= float(structure) ** exponent
        a, b = (torch.nn.functional.avg_pool2d(side, 2) for side in (a, b))
    expected *= skimage_ssim(a[0, 0], b[0, 0]) ** 0.1333
    ours = ms_ssim(*(side[:1, :1].expand(-1, 3, -1, -1) for side in pair(192, 180, noise)))
    assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_of_a_picture_with_itself_they_are_one() -> None:
    wanted = pair(180, 180)[1]
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(ssim(wanted, wanted), ones)
    torch.testing.assert_close(ms_ssim(wanted, wanted), ones)


def test_pictures_that_are_too_small_are_refused() -> None:
    small = torch.zeros(1, 3, 10, 64)
    with pytest.raises(ValueError, match="11 pixels does not fit into pictures of 64x10"):
        ssim(small, small)
    with pytest.raises(ValueError, match="from 176x176 on, not 64x10"):
        ms_ssim(small, small)


def test_codebook_use_of_even_and_of_dead_codes() -> None:
    even = codebook_use(torch.arange(8).repeat(5).view(2, 4, 5), 8)
    assert even == pytest.approx({"codes_used": 1.0, "codebook_perplexity": 8.0})
    assert codebook_use(torch.tensor([1, 3, 1, 3]), 8) == pytest.approx(
        {"codes_used": 0.25, "codebook_perplexity": 2.0}
    )
