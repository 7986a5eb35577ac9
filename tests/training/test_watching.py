"""What a run says of itself, and what it is told before its first step."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.training.loop import progress_bar
from inkwash.training.methods import METHODS
from inkwash.training.run import Run, prepare, trained

OPTIONS = {"steps": 5, "batch_size": 2, "resolution": 32, "buckets": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures without captions."""
    place = tmp_path / "pictures"
    place.mkdir()
    for k in range(8):
        Image.new("RGB", (32, 32), (30 * k, 255 - 30 * k, 90)).save(place / f"{k}.png")
    return place


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {row["step"]: row["validation"] for row in rows if "validation" in row}


def test_held_out_pictures_are_measured_without_samples(folder: Path, tiny: Path, tmp_path: Path) -> None:
    """As often as the state is saved, and at the end; or with the samples."""
    given = OPTIONS | {"model": str(tiny), "data": str(folder), "validation": 0.4}
    trained("lora", output=str(tmp_path / "a"), save_every=2, **given)
    assert losses(tmp_path / "a").keys() == {2, 4, 5}
    more = {"sample_every": 3, "sample_steps": 1, "sample_prompts": ["x"]}
    trained("lora", output=str(tmp_path / "b"), save_every=2, **given, **more)
    assert losses(tmp_path / "b").keys() == {3, 5}
    assert losses(tmp_path / "a")[5] == losses(tmp_path / "b")[5]  # the noise is fixed


def test_few_pictures_are_split_too(folder: Path, tiny: Path, tmp_path: Path) -> None:
    """At least one is on each side, and more pictures do not change who is held out."""
    given = OPTIONS | {"model": str(tiny), "data": str(folder), "output": str(tmp_path / "run")}
    held: list[set[str]] = []
    for share in (0.01, 0.4, 0.5):
        run = prepare("lora", METHODS["lora"].config.model_validate(given | {"validation": share}))
        assert isinstance(run, Run) and run.held_out
        held.append({one.image.path.name for one in run.held_out.examples})
        assert len(held[-1]) + len(run.dataset.examples) == 8
    assert len(held[0]) == 1 and held[0] <= held[1] <= held[2]
    for path in list(folder.iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"validation 0\.5 needs two pictures"):
        prepare("lora", METHODS["lora"].config.model_validate(given | {"validation": 0.5}))


def test_a_loss_of_masked_parts_needs_masks(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = OPTIONS | {"model": str(tiny), "output": str(tmp_path / "run"), "masked_loss": True}
    config = METHODS["lora"].config
    with pytest.raises(
        ValueError, match="masked_loss true needs pictures of the role mask, and none has one"
    ):
        prepare("lora", config.model_validate(given | {"data": str(folder)}))
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in folder.iterdir():
        Image.linear_gradient("L").resize((32, 32)).save(masks / path.name)
    # kohya's masked loss takes its conditioning folder
    told = tmp_path / "set.toml"
    told.write_text(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pictures'\nconditioning_data_dir = 'masks'\n"
    )
    run = prepare("lora", config.model_validate(given | {"data": str(told)}))
    mask = run.source.batch(0, torch.Generator(), slice(None)).mask
    rows = mask.mean(dim=(1, 3))
    assert (rows[:, 1:] > rows[:, :-1]).all() and rows.min() < 0.2 < 0.8 < rows.max()


def test_progress_says_pictures_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    bar = progress_bar(False, 8)
    bar.get_time = lambda: float(next(now))
    bar.add_task("", total=9, losses="")
    (task,) = bar.tasks
    column = next(one for one in bar.columns if type(one).__name__ == "Rate")
    assert column(task).plain == ""
    for step in range(1, 5):
        bar.update(task.id, completed=step)
    steps_a_second = task.speed
    assert steps_a_second and column.render(task).plain == f"{8 * steps_a_second:.3g} pictures/s"


def test_memory_may_be_saved_when_a_run_goes_on(folder: Path, tiny: Path, tmp_path: Path) -> None:
    """Checkpointing changes no gradient."""
    given = OPTIONS | {"model": str(tiny), "data": str(folder)}
    whole = trained("lora", output=str(tmp_path / "a/run"), **given)
    trained("lora", output=str(tmp_path / "b/run"), **given | {"steps": 2})
    rest = trained("lora", output=str(tmp_path / "b/run"), gradient_checkpointing=True, **given)
    assert whole and rest
    one, two = load_file(whole), load_file(rest)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("method", ["lora", "autoencoder"])
def test_events_are_of_every_method(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: list[tuple[str, int]] = []
    board = SimpleNamespace(add_scalar=lambda name, value, step: seen.append((name, step)))
    for module in ("watching", "network_run"):
        monkeypatch.setattr(f"inkwash.training.{module}.event_writer", lambda folder: board)
    monkeypatch.setattr("inkwash.training.run.find_spec", lambda name: object())
    own: dict[str, object] = {"model": str(tiny)}
    if method == "autoencoder":
        own = {"design": "kl-f4", "width": 8, "res_blocks": 1, "disc_weight": 0}
    trained(method, data=str(folder), output=str(tmp_path / "run"), tensorboard=True, **OPTIONS | own)
    assert {step for _, step in seen} == {1, 2, 3, 4, 5} and (method, 5) in seen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["autoencoder", "--tensorboard"], "tensorboard true needs the package tensorboard"),
        (["lora", "--model=TINY", "--resolution=36"], "resolution 36 is not a multiple of 8; near: 32, 40"),
        (["lora", "--model=TINY", "--betas=0.9,3"], "--betas '3' is too large; it must be below 1"),
        (["textual-inversion", "--model=TINY", "--token=../a", "--template=object"], "'../a' holds a slash"),
        (["layout", "--model=TINY"], "has no list in the column boxes"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_step(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inkwash.training.run.find_spec", lambda name: None)
    line = ["train", *(one.replace("TINY", str(tiny)) for one in arguments)]
    assert main([*line, f"--data={folder}", "--output=run"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error
    assert not Path("run/cache").exists()


@pytest.mark.parametrize("method", ["inpainting", "depth", "instruct", "upscaler", "class"])
def test_a_network_that_sees_more_is_sampled_by_pictures(
    folder: Path, tiny: Path, tmp_path: Path, method: str
) -> None:
    """A sheet of pairs, without a change of what is learnt."""
    given = OPTIONS | {
        "model": str(tiny),
        "data": str(folder),
        "roles": [f"before={folder}", f"depth={folder}"],
    }
    plain = trained(method, output=str(tmp_path / "a/run"), **given)
    more = {"sample_every": 2, "sample_steps": 2}
    watched = trained(method, output=str(tmp_path / "b/run"), **given, **more)
    assert plain and watched
    one, two = load_file(plain), load_file(watched)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    sheets = sorted((tmp_path / "b/run/samples").iterdir())
    assert [path.name for path in sheets] == ["step-0000002.png", "step-0000004.png"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.width > 4 * 160  # two pictures, each with what was drawn
