"""Feature networks opened from files: what fits, what does not, and ST-LPIPS beside its authors' program."""

from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from inkwash.files import ModelFileError
from inkwash.metrics.fetch import folder
from inkwash.metrics.networks import open_network, st_lpips
from inkwash.models.efficientnet import EfficientNetLite0
from inkwash.models.inception import InceptionV3
from inkwash.models.perceptual import BlurPool, ShiftTolerantAlexNetFeatures
from inkwash.pipeline.images import to_pixels

needs_weights = pytest.mark.skipif(
    not (folder() / "stlpips-alex.pth").exists(), reason="needs `inkwash fetch-metrics`"
)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(EfficientNetLite0().state_dict(), path)
    return path


def test_a_file_is_opened_and_named_by_its_hash(lite0: Path) -> None:
    network = open_network("efficientnet-lite0", lite0)
    found = network(torch.rand(2, 3, 40, 50) * 2 - 1)
    assert found.pooled.shape == (2, 1280) and found.logits is not None and found.logits.shape == (2, 1000)
    said = str(network.identity)
    assert said.startswith("efficientnet-lite0 ") and said.endswith("float32") and "224x224" in said
    half = open_network("efficientnet-lite0", lite0, dtype=torch.bfloat16)
    assert half.identity != network.identity and half.identity.hash == network.identity.hash


def test_wrong_files_and_names_end_in_one_line(lite0: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("INKWASH_METRICS", str(tmp_path))
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with torch.device("meta"):
        tensors = EfficientNetLite0(10).state_dict()
    save_file(
        {name: torch.zeros(value.shape) for name, value in tensors.items()}, tmp_path / "ten.safetensors"
    )
    for name, weights, said in (
        ("efficientnet", None, "network 'efficientnet' is not one of"),
        ("efficientnet-lite0", None, "run `inkwash fetch-metrics` once"),
        ("inception", None, "needs --weights"),
        ("inception", lite0, "is not InceptionV3's"),
        ("efficientnet-lite0", tmp_path / "other.safetensors", "1 tensors not known: other.weight"),
        (
            "efficientnet-lite0",
            tmp_path / "ten.safetensors",
            r"fc.bias is \(10,\), not \(1000,\)|fc.weight is",
        ),
        ("efficientnet-lite0", tmp_path / "none.pth", "none.pth can't be read: there is no such file"),
    ):
        with pytest.raises((ValueError, ModelFileError), match=said) as error:
            open_network(name, weights)
        assert "\n" not in str(error.value)


def test_the_two_forms_of_inception_differ_in_what_they_see(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(InceptionV3().state_dict(), tmp_path / "fid.safetensors")
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    ours, theirs = (
        open_network(name, tmp_path / "fid.safetensors") for name in ("inception", "inception-tf")
    )
    assert ours.prepare(pixels).shape == theirs.prepare(pixels).shape == (1, 3, 299, 299)
    # the first pixel is the picture's own in TensorFlow's, and (x - 128) / 128 of it
    torch.testing.assert_close(theirs.prepare(pixels)[..., 0, 0], (pixels[..., 0, 0] * 127.5 - 0.5) / 128)
    assert ours.identity != theirs.identity


def test_the_blur_is_a_binomial_of_mirrored_pixels() -> None:
    row = torch.arange(8.0).expand(1, 1, 8, 8)
    found = BlurPool(1)(row)[0, 0]
    # over 2 1 [0 1 2 ... 7] 6 5, every second one
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 3.0, 5.0, 6.5]))
    assert found.shape == (5, 5)


@needs_weights
def test_st_lpips_is_that_of_its_authors() -> None:
    """Their program gives these for scikit-image's astronaut beside itself blurred, and beside a cup of coffee."""
    data = Path(skimage.__file__).parent / "data"
    face = Image.open(data / "astronaut.png").convert("RGB").crop((150, 20, 278, 148))
    coffee = Image.open(data / "coffee.png").convert("RGB").crop((0, 0, 128, 128))
    distance = st_lpips()
    with torch.no_grad():
        blurred, other = (
            float(distance(to_pixels(face), to_pixels(image)))
            for image in (face.filter(ImageFilter.GaussianBlur(2)), coffee)
        )
    assert blurred == pytest.approx(0.5338051915, abs=1e-5)
    assert other == pytest.approx(0.7299016714, abs=1e-5)


def test_a_file_without_heads_is_refused(tmp_path: Path) -> None:
    state = ShiftTolerantAlexNetFeatures().state_dict()
    save_file(
        {name.replace("features", "net.slice1"): value for name, value in state.items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ModelFileError, match="holds no heads of LPIPS: there is no lin0"):
        st_lpips(tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="is not ShiftTolerantVGG16Features's"):
        st_lpips(tmp_path / "a.safetensors", "vgg")
    with pytest.raises(ValueError, match="'resnet' is not one of alex, vgg"):
        st_lpips(tmp_path / "a.safetensors", "resnet")
