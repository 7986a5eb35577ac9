"""Hints against OpenCV, scipy and scikit-image, and against formulas of surfaces."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import skimage.data
import torch
from torch import Tensor

from inkwash.annotators import ANNOTATORS
from inkwash.annotators.edges import canny, connected, lineart, scribble
from inkwash.annotators.surfaces import depth, normal
from inkwash.annotators.tones import blur, inpaint, palette, recolor, segmentation, tile


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Part of a photograph, uint8 (H, W, 3)."""
    return np.ascontiguousarray(skimage.data.astronaut()[:190, 100:301])


def of(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("low", "high"), [(100, 200), (10, 40), (0, 0), (300, 900)])
def test_canny_is_opencvs_to_the_pixel(photo, low, high):
    assert np.array_equal(canny(of(photo), low, high)[0, 0].numpy() * 255, cv2.Canny(photo, low, high))


def test_canny_of_noise_with_ties_is_opencvs():
    noise = np.random.default_rng(0).integers(0, 4, (65, 70, 3)).astype(np.uint8) * 60
    assert np.array_equal(canny(of(noise))[0, 0].numpy() * 255, cv2.Canny(noise, 100, 200))


def test_a_picture_in_a_batch_has_its_own_hint(photo):
    pair = torch.cat([of(photo), of(photo[::-1].copy())])
    for kind, annotator in ANNOTATORS.items():
        seen = pair if annotator.sees == "RGB" else (pair[:, :1] * 255).round()
        made = annotator.draw(seen)
        assert made.shape[2:] == pair.shape[2:] and made.min() >= 0 and made.max() <= 1, kind
        for k in range(2):
            torch.testing.assert_close(
                made[k : k + 1], annotator.draw(seen[k : k + 1]), rtol=0, atol=1e-5, msg=kind
            )


def test_connected_follows_a_path_to_its_end():
    rng = np.random.default_rng(1)
    within = rng.random((40, 50)) < 0.4
    seeds = within & (rng.random((40, 50)) < 0.02)
    labels, _ = scipy.ndimage.label(within, np.ones((3, 3)))
    expected = np.isin(labels, labels[seeds])
    found = connected(torch.from_numpy(seeds)[None, None], torch.from_numpy(within)[None, None])
    assert np.array_equal(found[0, 0].numpy(), expected)
    assert expected.sum() > seeds.sum()


@pytest.mark.parametrize("sigma", [0.5, 3.0, 90.0])
def test_blur_is_scipys(photo, sigma):
    expected = scipy.ndimage.gaussian_filter(photo / 255, (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(blur(of(photo), sigma)[0].permute(1, 2, 0), expected, atol=2e-6)


def test_lineart_is_bright_where_opencvs_blur_says_that_it_is_darker(photo):
    x = photo.astype(np.float32)
    around = cv2.GaussianBlur(x, (0, 0), 6.0, borderType=cv2.BORDER_REPLICATE)
    darker = (around - x).min(2).clip(0)
    expected = (darker / max(16, np.median(darker[darker > 8])) * 127 / 255).clip(0, 1)
    np.testing.assert_allclose(lineart(of(photo))[0, 0], expected, atol=0.01)
    assert not lineart(torch.ones(1, 3, 9, 9)).any()


def test_scribble_is_the_thresholded_difference_of_opencvs_blurs(photo):
    x = photo.astype(np.float32)
    wide, narrow = (cv2.GaussianBlur(x, (0, 0), s, borderType=cv2.BORDER_REPLICATE) for s in (5.0, 0.5))
    expected = 2 * (wide - narrow).min(2).clip(0) > 32
    found = scribble(of(photo))[0, 0].numpy() > 0
    assert (found != expected).mean() < 0.002
    assert 0.02 < found.mean() < 0.5


def test_recolor_is_the_lightness_of_cielab(photo):
    expected = skimage.color.rgb2lab(photo)[..., 0] / 100
    np.testing.assert_allclose(recolor(of(photo))[0, 0], expected, atol=1e-4)
    np.testing.assert_allclose(recolor(of(photo), 2.2)[0, 0], expected**2.2, atol=1e-4)


def test_segmentation_has_the_colours_of_pascal_voc():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    made = segmentation(torch.tensor(list(known)).view(1, 1, 1, -1)) * 255
    assert made[0, :, 0].T.tolist() == [list(map(float, colour)) for colour in known.values()]


def test_tile_keeps_a_slope_and_loses_fine_stripes():
    slope = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(tile(slope)[..., 8:-8], slope[..., 8:-8], rtol=0, atol=2e-3)
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    torch.testing.assert_close(tile(stripes), torch.full_like(stripes, 0.5))
    assert torch.equal(tile(slope, 1), slope)


def test_palette_is_the_mean_of_each_square(photo):
    square = of(photo)[..., :128, :192]
    expected = square.unfold(2, 64, 64).unfold(3, 64, 64).mean((-1, -2))
    torch.testing.assert_close(palette(square)[..., 32::64, 32::64], expected)


def test_depth_fills_its_range_and_flat_is_far():
    near = torch.tensor([[[[3.0, 7.0], [5.0, 4.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    assert depth(near).flatten(1).tolist() == [[0.0, 1.0, 0.5, 0.25], [0.0] * 4]
    with pytest.raises(ValueError, match="not finite"):
        depth(torch.tensor([[[[float("nan")]]]]))


def test_normals_of_a_ball_point_away_from_its_centre():
    y, x = torch.meshgrid(torch.arange(-40.0, 41), torch.arange(-40.0, 41), indexing="ij")
    z = (80.0**2 - x**2 - y**2).sqrt()
    n = normal(z[None, None], relief=(z.max() - z.min()).item() / 81)[0] * 2 - 1
    expected = torch.stack([-x, -y, z]) / 80  # left and up are positive
    torch.testing.assert_close(n[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=2e-3)


def test_inpaint_marks_what_is_masked(photo):
    mask = torch.zeros(1, 1, *photo.shape[:2])
    mask[..., :50] = 1
    made = inpaint(of(photo), mask)
    assert (made[..., :50] == -1).all()
    assert torch.equal(made[..., 50:], of(photo)[..., 50:])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: canny(x, 200, 100), "low 200 and high 100"),
        (lambda x: canny(x, float("nan"), 1), "low nan"),
        (lambda x: blur(x, 0), "sigma 0"),
        (lambda x: tile(x, 0.5), "factor 0.5"),
        (lambda x: recolor(x, -1), "gamma -1"),
        (lambda x: normal(x[:, :1], float("inf")), "relief inf"),
    ],
)
def test_a_number_out_of_range_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make(torch.zeros(1, 3, 8, 8))
