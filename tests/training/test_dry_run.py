"""A dry run: what it says is what the run then has, and it leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from inkwash.cli import main
from inkwash.training import dry_run
from inkwash.training.checkpoints import contents
from inkwash.training.loop import make_states, one_step
from inkwash.training.methods import METHODS
from inkwash.training.optimizers import OPTIMIZERS
from inkwash.training.run import Run, prepare, trained


def options(pictures: Path, tiny: Path, output: Path) -> dict[str, object]:
    return {"model": str(tiny), "data": str(pictures), "output": str(output), "buckets": False, "steps": 4,
            "batch_size": 2}  # fmt: skip


def words_of(given: dict[str, object]) -> list[str]:
    words: list[str] = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{flag}"]
            if value is True
            else [f"--no-{flag}"]
            if value is False
            else [f"--{flag}", str(value)]
        )
    return words


def dry(method: str, capsys: pytest.CaptureFixture[str], **given: object) -> dict:
    """The report, by the command line."""
    assert main(["train", method, *words_of(given), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", ["lora", "text-to-image", "hypernetwork", "autoencoder", "unconditional"])
def test_steps_are_tried_and_nothing_is_written(
    method: str, pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = options(pictures, tiny, tmp_path / "run")
    if method == "autoencoder":
        del own["model"]
        own |= {"design": "vq-f4", "width": 8, "res_blocks": 1, "codebook_size": 16, "resolution": 16}
        own |= {"disc_width": 8, "disc_layers": 1, "perceptual": "none"}
    if method == "unconditional":
        del own["model"]
        own |= {
            "design": "ddpm-cifar10",
            "width": 32,
            "channel_mult": "1,1",
            "resolution": 16,
            "precision": "fp32",
        }
    found = dry(method, capsys, **own)
    assert found["seconds_per_step"] > 0 and found["memory_peak"] > found["memory_for_weights_and_states"]
    assert (found["steps"], found["done"], found["pictures_per_step"]) == (4, 0, 2)
    assert found["sizes"] == ["32x32"] and found["without_caption"] == 0
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {"start"}  # a new model, with which the run begins


def test_it_is_a_table(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "0.txt").unlink()
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:80])  # its size can be read, its pixels can't
    (data / "2.png").write_text("no picture")
    own = options(data, tiny, tmp_path / "run") | {"buckets": True, "steps": 7200}
    monkeypatch.setattr(dry_run, "encoded", lambda *given: {"seconds_of_encoding": 90.0})
    assert main(["train", "lora", *words_of(own), "--dry-run"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines()[:-2])
    assert list(rows) == ["training", "pictures", "buckets", "steps", "learning", "memory", "time"]
    assert rows["training"].startswith("lora of ") and rows["training"].endswith("on cpu")
    assert rows["pictures"] == "2 of 32x32, 1 without a caption, 2 broken"
    assert rows["buckets"] == "32x32 2" and rows["steps"].startswith("7,200 of 2 pictures, 7200 epochs")
    assert "at most in a step" in rows["memory"] and " s a step, " in rows["time"]
    assert rows["time"].endswith(" for 7,200; 2 min to encode the pictures once")


def test_it_goes_on_from_what_is_there(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = options(pictures, tiny, tmp_path / "run")
    trained("lora", **own | {"steps": 3})
    assert dry("lora", capsys, **own)["done"] == 3
    before = (tmp_path / "run/config.json").read_bytes()
    assert main(["train", "lora", *words_of(own), "--rank", "2", "--dry-run"]) == 2
    assert "holds a run with rank 8, and 2 is given" in capsys.readouterr().err
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_too_little_memory_is_said_and_not_tried(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(dry_run, "free_memory", lambda device: 1000)
    own = options(pictures, tiny, tmp_path / "run")
    assert "seconds_per_step" not in dry("lora", capsys, **own)
    assert main(["train", "lora", *words_of(own), "--dry-run"]) == 0
    assert "not measured, since the memory does not suffice" in capsys.readouterr().out


def test_pictures_of_the_class_are_not_drawn(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = options(pictures, tiny, tmp_path / "run")
    own |= {"instance_prompt": "a sks disc", "class_prompt": "a disc", "class_pictures": 6}
    found = dry("dreambooth", capsys, **own)
    assert (found["to_be_drawn"], found["pictures"]) == (6, 10)
    assert not list((tmp_path / "run").iterdir())


def test_pictures_of_the_class_are_counted_in_all_formats_and_unfinished_ones_are_not(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "mine.jpg")
    (folder / ".inkwash-1-2-3.partial.png").write_bytes(b"half")  # as a kill leaves it
    own = options(pictures, tiny, tmp_path / "run") | {"class_data": str(folder), "class_pictures": 6}
    found = dry("dreambooth", capsys, **own, instance_prompt="a sks disc", class_prompt="a disc")
    assert (found["to_be_drawn"], found["pictures"]) == (5, 10)


def test_captions_are_encoded_once(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dry("lora", capsys, **options(pictures, tiny, tmp_path / "run"), cache_text=True)
    assert found["seconds_of_encoding"] > 0 and not list((tmp_path / "run").iterdir())


def test_states_are_counted_for_every_optimizer() -> None:
    assert dry_run.STATE_BYTES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_states_take_what_they_are_said_to(
    optimizer: str, pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    own = options(pictures, tiny, tmp_path / "run") | {"optimizer": optimizer, "ema": 0.5}
    run = prepare("text-to-image", METHODS["text-to-image"].config.model_validate(own))
    assert isinstance(run, Run)
    learning, said = dry_run.states_of(run)
    states = make_states(run.task, run.loop)
    one_step(run.task, run.loop, 0, states)
    tensors, _ = contents(states)
    kept = sum(value.nbytes for key, value in tensors.items() if key.startswith(("optimizers/", "emas/")))
    assert learning == sum(value.numel() for key, value in tensors.items() if key.startswith("modules/"))
    assert kept + 4 * learning == pytest.approx(said, rel=0.01)
