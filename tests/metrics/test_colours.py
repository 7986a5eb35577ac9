"""Colours against Python's colorsys, and plain ones by their names."""

import colorsys

import pytest
import torch

from inkwash.metrics.colours import NAMES, colour_names, colour_of, to_hsv

PLAIN = {
    "red": (220, 30, 30),
    "orange": (250, 140, 30),
    "yellow": (250, 220, 50),
    "green": (60, 170, 70),
    "blue": (50, 110, 220),
    "purple": (140, 70, 190),
    "pink": (245, 150, 200),
    "brown": (120, 75, 40),
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
    "black": (15, 15, 15),
}


def test_hue_saturation_and_value_are_those_of_colorsys() -> None:
    pixels = torch.rand(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([colorsys.rgb_to_hsv(*pixel.tolist()) for pixel in pixels.T], dtype=torch.float64)
    hue, saturation, value = to_hsv(pixels)
    torch.testing.assert_close(torch.stack([hue / 360, saturation, value], 1), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_colours_have_their_names(name: str) -> None:
    pixel = torch.tensor(PLAIN[name])[:, None] / 255
    assert NAMES[int(colour_names(pixel)[0])] == name


@pytest.mark.parametrize("background", ["white", "black", "gray", "blue"])
def test_an_objects_colour_is_not_its_backgrounds(background: str) -> None:
    crop = torch.tensor(PLAIN[background])[:, None, None].expand(3, 32, 32).clone() / 127.5 - 1
    assert colour_of(crop) is None
    crop[:, 8:24, 8:24] = torch.tensor(PLAIN["yellow"])[:, None, None] / 127.5 - 1
    crop[:, 8:24, 8:14] = 0.6  # a grey part, less than the rest
    assert colour_of(crop) == "yellow"
