"""`inkwash annotate`."""

from typing import get_args

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from inkwash.annotators import ANNOTATORS
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.names import HintKind
from tests.models.test_hed import random_tensors


@pytest.fixture
def photo(tmp_path) -> np.ndarray:
    pixels = np.ascontiguousarray(skimage.data.astronaut()[:96, 150:280])
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return pixels


def test_the_command_line_has_every_kind():
    assert sorted(get_args(HintKind)) == sorted(ANNOTATORS)


def test_a_hint_is_written_beside_the_picture(run, tmp_path, photo):
    done = run("annotate", "canny", "photo.png", "--low", "50")
    assert (done.code, done.out) == (0, "photo-canny.png\n")
    made = np.asarray(Image.open(tmp_path / "photo-canny.png"))
    assert np.array_equal(made, np.repeat(cv2.Canny(photo, 50, 200)[..., None], 3, 2))


@pytest.mark.parametrize("kind", [kind for kind in ANNOTATORS if kind != "segmentation"])
def test_each_kind_keeps_the_size_and_is_not_empty(run, tmp_path, photo, kind):
    assert run("annotate", kind, "photo.png", "--output", "hint.webp").code == 0
    made = Image.open(tmp_path / "hint.webp")
    assert made.size == (130, 96)
    assert max(high - low for low, high in made.getextrema()) > 50


def test_hed_and_scribbles_along_it_by_a_file_of_weights(run, tmp_path, photo):
    torch.save(random_tensors(False), tmp_path / "hed.pth")
    for kind, extra in (("hed", ()), ("scribble", ("--threshold", 1))):
        done = run("annotate", kind, "photo.png", "--weights", "hed.pth", *extra)
        assert (done.code, done.out) == (0, f"photo-{kind}.png\n")
        made = np.asarray(Image.open(tmp_path / f"photo-{kind}.png"))
        assert made.shape == (96, 130, 3) and np.ptp(made) > 50
    assert set(np.unique(made)) == {0, 255}


def test_depth_of_sixteen_bits_keeps_its_steps(run, tmp_path):
    near = np.linspace(1000, 1255, 256).round().astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(near).save(tmp_path / "near.png")
    assert run("annotate", "depth", "near.png").code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "near-depth.png"))[0, :, 0], np.arange(256))


def test_labels_of_a_palette_get_the_common_colours(run, tmp_path):
    labels = Image.fromarray(np.array([[0, 1, 2, 15]], dtype=np.uint8))
    labels.putpalette([7] * 768)
    labels.save(tmp_path / "labels.png")
    assert run("annotate", "segmentation", "labels.png").code == 0
    made = np.asarray(Image.open(tmp_path / "labels-segmentation.png"))
    assert made[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128]]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["canny", "none.png"], 1, "none.png"),
        (["canny", "photo.png", "--low", "300"], 2, "low 300 and high 200"),
        (["canny", "photo.png", "--sigma", "3"], 2, "canny takes low, high, and not sigma"),
        (["segmentation", "photo.png"], 1, "a map of labels"),
        (["blur", "photo.png", "--depth-model", "."], 2, "--depth-model is for depth and normal"),
        (["depth", "photo.png", "--depth-model", "."], 1, "no network for depth"),
        (["edges", "photo.png"], 2, "edges"),
        (["hed", "photo.png"], 2, "--weights is for hed, which needs it"),
        (["canny", "photo.png", "--weights", "hed.pth"], 2, "canny was given"),
        (["hed", "photo.png", "--weights", "photo.png"], 1, "a picture"),
        (["hed", "photo.png", "--weights", "no.pth"], 1, "no.pth"),
        (["blur", "photo.png", "--output", "hint.txt"], 2, "hint.txt"),
    ],
)
def test_bad_input_is_one_line(run, photo, argv, code, said):
    done = run("annotate", *argv)
    assert done.code == code
    assert said in done.err and done.err.count("\n") == 1


def test_an_unknown_kind_lists_what_there_is():
    with pytest.raises(ValueError, match="'mlsd' is not a kind of hint; there are blur, canny"):
        annotate("mlsd", Image.new("RGB", (8, 8)))
