"""Files of tensors are read as their writers meant them: every dtype, layout and age, by content alone."""

import collections
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.weights.bytes.tensor_file import DTYPES, TensorFile, read_tensors, release
from tests.support.mutators import archive, parts, saved

LAYOUTS = [(legacy, protocol) for legacy in (False, True) for protocol in (2, 3, 4, 5)]
TORCH_ONLY = [torch.complex64, torch.complex128]
FORMATS = {False: "torch", True: "torch legacy"}


def reread(value: Any, folder: Path, *, legacy: bool = False, protocol: int = 2) -> TensorFile:
    path = folder / "model.ckpt"
    path.write_bytes(saved(value, legacy=legacy, protocol=protocol))
    file = read_tensors(path)
    assert file.format == FORMATS[legacy] and file.path == path
    return file


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    b = b.detach()
    content = [x.contiguous().flatten().view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*content)


def of_every_dtype(dtypes: list[torch.dtype]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 2, (3, 5), generator=random)
    return {str(dtype): numbers.to(dtype) for dtype in dtypes} | {
        "none": torch.ones(2, 0),
        "one": torch.tensor(7),
    }


@pytest.mark.parametrize(("legacy", "protocol"), LAYOUTS)
def test_torch_files_of_every_dtype(tmp_path: Path, legacy: bool, protocol: int) -> None:
    tensors = of_every_dtype([*DTYPES.values(), *TORCH_ONLY])
    again = reread(tensors, tmp_path, legacy=legacy, protocol=protocol).tensors
    assert again.keys() == tensors.keys()
    assert all(same(again[name], value) for name, value in tensors.items())


def test_safetensors_of_every_dtype(tmp_path: Path) -> None:
    tensors = of_every_dtype(list(DTYPES.values()))
    save_file(
        tensors, tmp_path / "model.ckpt", metadata={"format": "pt", "ss_tag": "ünï"}
    )  # a name that misleads
    file = read_tensors(tmp_path / "model.ckpt")
    assert (file.format, file.metadata) == ("safetensors", {"format": "pt", "ss_tag": "ünï"})
    assert file.tensors.keys() == tensors.keys()
    assert all(same(file.tensors[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_views_keep_their_storage_and_strides(tmp_path: Path, legacy: bool) -> None:
    whole = torch.arange(24.0).view(4, 6)
    tensors = {
        "whole": whole,
        "row": whole[2],
        "turned": whole.t(),
        "every": whole[::2, 1::3],
        "as": whole.T[1],
    }
    again = reread(tensors, tmp_path, legacy=legacy).tensors
    for name, value in tensors.items():
        assert same(again[name], value)
        assert (again[name].stride(), again[name].storage_offset()) == (
            value.stride(),
            value.storage_offset(),
        )
    again["whole"][2, 0] = -1
    assert again["row"][0] == -1 and again["turned"][0, 2] == -1
    assert read_tensors(tmp_path / "model.ckpt").tensors["row"][0] == 12  # the file stays as it was


@pytest.mark.parametrize("legacy", [False, True])
def test_nested_names_are_joined_and_parameters_are_tensors(tmp_path: Path, legacy: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    value = collections.OrderedDict(
        g_ema={"conv": {"weight": weight}}, layers=[torch.zeros(1), [torch.ones(1)]], step=3, ratio=0.5
    )
    file = reread(value, tmp_path, legacy=legacy)
    assert list(file.tensors) == ["g_ema.conv.weight", "layers.0", "layers.1.0"]
    assert not any(tensor.requires_grad for tensor in file.tensors.values())
    assert file.metadata == {"step": 3, "ratio": 0.5, "dropped": [], "foreign": []}


@pytest.mark.parametrize(("legacy", "protocol"), LAYOUTS)
def test_a_training_checkpoint(tmp_path: Path, legacy: bool, protocol: int) -> None:
    """As pytorch-lightning writes them: the state dict is opened, and a foreign class as a key is no obstacle."""
    import numpy as np

    network = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 4,
        "global_step": 470000,
        "state_dict": network.state_dict(),
        "callbacks": {
            torch.optim.AdamW: {"best": np.float32(2), "kept": collections.defaultdict(list, {"a": [1]})}
        },
        "optimizer_states": [optimizer.state_dict()],
        "ema": {"weight": torch.ones(1)},
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
        "mark": b"\xff\x00",
        "path": tmp_path,
    }
    file = reread(checkpoint, tmp_path, legacy=legacy, protocol=protocol)
    assert all(same(file.tensors[name], value) for name, value in network.state_dict().items())
    assert len(file.tensors) == 2
    metadata = dict(file.metadata)
    assert metadata.pop("foreign")[-1] == "torch.optim.adamw.AdamW"
    assert metadata == {
        "epoch": 4,
        "global_step": 470000,
        "callbacks.torch.optim.adamw.AdamW.kept.a": [1],
        "size": (2, 3),
        "device": "cuda:0",
        "dtype": torch.float16,
        "mark": b"\xff\x00",
        "dropped": ["optimizer_states", "ema"],
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_textual_inversions(tmp_path: Path, legacy: bool) -> None:
    """The first ones hold a ParameterDict, later ones a dict."""
    vector = torch.nn.Parameter(torch.arange(4.0))
    for table in (torch.nn.ParameterDict({"*": vector}), {"*": vector}):
        value = {"string_to_token": {"*": 265}, "string_to_param": table, "name": "taxi", "step": 99}
        file = reread(value, tmp_path, legacy=legacy)
        assert same(file.tensors["string_to_param.*"], vector)
        assert len(file.tensors) == 1
        assert file.metadata["string_to_token.*"] == 265
        assert (file.metadata["name"], file.metadata["step"]) == ("taxi", 99)


@pytest.mark.filterwarnings("ignore::torch.serialization.SourceChangeWarning")
def test_whole_modules_are_tables(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    for legacy in (False, True):
        file = reread(network, tmp_path, legacy=legacy)
        assert file.tensors.keys() == network.state_dict().keys()
        assert "torch.nn.modules.conv.Conv2d" in file.metadata["foreign"]


def test_hypernetworks_and_single_tensors(tmp_path: Path) -> None:
    assert list(reread({320: [{"linear.weight": torch.ones(1)}]}, tmp_path).tensors) == [
        "320.0.linear.weight"
    ]
    assert list(reread([torch.ones(1), torch.ones(1)], tmp_path).tensors) == ["0", "1"]
    assert list(reread(torch.ones(1), tmp_path).tensors) == ["tensor"]


def test_a_tensor_with_attributes(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.note = "kept by nobody"  # pyright: ignore[reportAttributeAccessIssue]
    assert same(reread({"w": weight}, tmp_path).tensors["w"], weight)


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Strings of bytes, in archives of another folder's name and with compressed parts that nobody needs."""
    pickle = parts(saved({"w": torch.ones(2)}))["data.pkl"]
    old = pickle.replace(b"X\1\0\0\0w", b"U\1w").replace(b"X\7\0\0\0storage", b"T\7\0\0\0storage")
    assert old != pickle
    (tmp_path / "model.pt").write_bytes(archive({"data.pkl": old}, saved({"w": torch.ones(2)})))
    assert same(read_tensors(tmp_path / "model.pt").tensors["w"], torch.ones(2))


OTHERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a pointer of Git LFS",
    b"<!doctype html><title>Sign in</title>": "a web page",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"GGUF\3\0\0\0": "in the GGUF format",
    b"\0" * 257 + b"ustar\0": "a tar archive",
    b"some text": "neither safetensors nor a file of torch's",
}


@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match=OTHERS[content]):
        read_tensors(tmp_path / "model.safetensors")


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.ckpt", Path("/dev/zero")):
        with pytest.raises(ModelFileError, match="there is no such file"):
            read_tensors(path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelFileError, match="empty"):
        read_tensors(tmp_path / "empty")


def test_released_tensors_are_read_again_and_others_are_left_alone(tmp_path: Path) -> None:
    values = {
        name: torch.randn(100_000, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")
    }
    save_file(values, tmp_path / "file.safetensors")
    file = read_tensors(tmp_path / "file.safetensors")
    own = values["b"].clone()
    for tensor in (file.tensors["b"], own, torch.empty(0)):
        release(tensor)
    assert all(torch.equal(file.tensors[name], value) for name, value in values.items())
    assert torch.equal(own, values["b"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_building_needs_little_more_memory_than_the_network(tmp_path: Path) -> None:
    """In a process of its own, whose peak is that of opening alone; 84 million parameters, 167 MB in float16."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoencoderKL().state_dict().items()}
    save_file(
        {n: torch.full(s, 0.1, dtype=torch.float16) for n, s in shapes.items()}, tmp_path / "vae.safetensors"
    )
    code = """
import sys, re, torch
from pathlib import Path
from inkwash.weights.checkpoint import build
from inkwash.weights.models.component import read_component
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
net = build(read_component(Path(sys.argv[1])), dtype=torch.bfloat16)
print((peak() - before) / sum(p.nbytes for p in net.parameters()))
"""
    run = [sys.executable, "-c", code, str(tmp_path / "vae.safetensors")]
    made = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert float(made) < 1.15


def test_files_may_be_opened_while_tensors_are_released(tmp_path: Path) -> None:
    """By other threads, as a merge does that hashes its models meanwhile."""
    save_file({"a": torch.ones(4)}, tmp_path / "a.safetensors")
    kept = [read_tensors(tmp_path / "a.safetensors") for _ in range(200)]
    ended = threading.Event()

    def released() -> int:
        num = 0
        while not ended.is_set():
            release(kept[num % len(kept)].tensors["a"])
            num += 1
        return num

    with ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(released)
        try:
            opened = [read_tensors(tmp_path / "a.safetensors") for _ in range(300)]
        finally:
            ended.set()
        assert releasing.result() > 0
    assert len(opened) == 300
