"""Several processes of a share of the batch each are one of a whole batch, within rounding."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.training.run import trained
from tests.support.processes import run_ranks

OPTIONS = "--lr 1e-1 --no-buckets --log-every 1 --cache none --optimizer sgd --save-dtype fp32"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    for k in range(8):
        Image.new("RGB", (32, 32), (30 * k, 255 - 30 * k, 90)).save(folder / f"{k}.png")
    return folder


def command(
    processes: int, method: str, tiny: Path, colours: Path, output: Path, *more: str, steps: int = 3
) -> list[str]:
    """A run with 4 pictures a step."""
    given = {"model": tiny, "data": colours, "output": output, "batch-size": 4 // processes, "steps": steps}
    return ["train", method, *(f"--{name}={value}" for name, value in given.items()), *OPTIONS.split(), *more]


def learnt(
    processes: int, method: str, tiny: Path, colours: Path, output: Path, *more: str, steps: int = 3
) -> Path:
    """The file that so many processes write."""
    line = command(processes, method, tiny, colours, output, *more, steps=steps)
    if processes == 1:
        assert main(line) == 0
    else:
        run_ranks(processes, main, line)
    return output / f"{output.name}.safetensors"


def compare(one: Path, many: Path) -> None:
    wanted, found = load_file(one), load_file(many)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_ranks_of_torchrun_equal_one(tiny: Path, colours: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = command(2, "lora", tiny, colours, tmp_path / "two")
    done = subprocess.run([*torchrun, "-m", "inkwash", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    compare(learnt(1, "lora", tiny, colours, tmp_path / "one"), tmp_path / "two/two.safetensors")


def test_four_ranks_equal_one(tiny: Path, colours: Path, tmp_path: Path) -> None:
    compare(*(learnt(n, "lora", tiny, colours, tmp_path / str(n)) for n in (1, 4)))


def test_a_spread_unet_learns_as_a_whole_one_and_other_ranks_go_on(
    tiny: Path, colours: Path, tmp_path: Path
) -> None:
    """Four processes, then two, then one: as one from the start, with an average and moments by momentum."""
    more = ("--ema", "0.5", "--gradient-checkpointing")
    one = learnt(1, "text-to-image", tiny, colours, tmp_path / "one", *more, steps=4)
    run = tmp_path / "many"
    for processes, steps in ((4, 2), (2, 3), (1, 4)):
        spread = (*more, "--parallel", "fsdp")
        many = learnt(processes, "text-to-image", tiny, colours, run, *spread, steps=steps)
        files = {path.name for path in (run / "state").iterdir()}
        assert len(files) == processes + 1 and "about.json" in files
        if processes == 4:
            sizes = [path.stat().st_size for path in (run / "state").glob("*.safetensors")]
            assert max(sizes) < 0.4 * sum(sizes)  # each wrote its own share
    compare(one, many)


def test_a_lora_beside_a_spread_unet(tiny: Path, colours: Path, tmp_path: Path) -> None:
    one = learnt(1, "lora", tiny, colours, tmp_path / "one")
    compare(one, learnt(2, "lora", tiny, colours, tmp_path / "two", "--parallel", "fsdp"))


def spread(tiny: Path, colours: Path, output: Path, steps: int) -> dict[str, torch.Tensor]:
    """What a run of one process writes whose states are shards."""
    path = trained("text-to-image", model=str(tiny), data=str(colours), output=str(output), steps=steps, save_every=1,
                   lr=1e-3, buckets=False, parallel="fsdp", save_dtype="fp32")  # fmt: skip
    assert path is not None
    return load_file(path)


@pytest.fixture(scope="module")
def half(tiny: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("half") / "run"
    spread(tiny, colours, folder, 2)
    return folder


@pytest.fixture(scope="module")
def wanted(tiny: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What three steps give."""
    return spread(tiny, colours, tmp_path_factory.mktemp("whole") / "run", 3)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "half"])
def test_damaged_shards_fall_back(
    damage: str, tiny: Path, colours: Path, tmp_path: Path, half: Path, wanted: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A flipped bit, a cut or a missing file in the newest state, or one that was not written to its end."""
    shutil.copytree(half, tmp_path / "run")
    state = tmp_path / "run/state"
    file = next(state.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    if damage == "half":
        (state / "about.json").unlink()
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-100])
    found = spread(tiny, colours, tmp_path / "run", 3)
    assert damage == "half" or "trying the state before it" in caplog.text
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"optimizer": "muon"}, "goes with optimizer adamw or sgd, not muon"),
        ({"sample_every": 5}, "does not go with sample_every 5"),
        ({"precision": "fp16"}, "does not go with precision fp16"),
    ],
)
def test_what_needs_a_whole_unet_is_refused(
    more: dict[str, object], said: str, tiny: Path, colours: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        trained(
            "text-to-image",
            model=str(tiny),
            data=str(colours),
            output=str(tmp_path / "o"),
            parallel="fsdp",
            **more,
        )


def test_another_number_of_pictures_a_step_is_another_run(tiny: Path, colours: Path, tmp_path: Path) -> None:
    given = {
        "model": str(tiny),
        "data": str(colours),
        "output": str(tmp_path / "o"),
        "steps": 1,
        "buckets": False,
    }
    trained("lora", **given, batch_size=2)
    with pytest.raises(ValueError, match="holds a run of 2 pictures a step, and 4 are given"):
        trained("lora", **given, batch_size=4)
