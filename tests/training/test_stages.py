"""The published models' stages as configurations: each is read whole and checked against pictures that fit it."""

import json
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from inkwash.cli import main
from inkwash.training import dry_run
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from tests.weights.test_single_files import SMALL, random_checkpoint

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "recipes/configs").glob("*.toml"))}
STAGES = [name for name in CONFIGS if name.startswith(("sd1", "sd2", "sdxl"))]
# Figures of the model cards and of Podell et al. 2023: steps at a side
FIGURES = {
    "sd1-1-256": (237_000, 256), "sd1-1": (194_000, 512), "sd1-2": (515_000, 512), "sd1-3": (195_000, 512),
    "sd1-4": (225_000, 512), "sd1-5": (595_000, 512), "sd2-256": (550_000, 256), "sd2-base": (850_000, 512),
    "sd2-v": (150_000, 512), "sd2": (140_000, 768), "sdxl-256": (600_000, 256), "sdxl-512": (200_000, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(module_path: Path) -> dict[str, Path]:
    """A small model of each family."""
    made = {}
    for name, of in (
        ("sd1", "small-sd1"),
        ("sd2", "small-sd2"),
        ("sdxl", "small-sdxl"),
        ("refiner", "small-sdxl-refiner"),
    ):
        made[name] = module_path / name
        write_folder(random_checkpoint(SMALL[of]), made[name])
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures that every stage takes, and one that is small, unsafe, watermarked and disliked."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for k in range(9):
        size = (1024, 1200) if k else (200, 200)
        Image.new("RGB", size, (25 * k, 10, 90)).save(folder / f"{k}.png")
        said = (
            {"aesthetic": 6.5, "punsafe": 0.01, "pwatermark": 0.1}
            if k
            else {"aesthetic": 0.0, "punsafe": 0.9, "pwatermark": 0.9}
        )
        rows.append({"file_name": f"{k}.png", "text": f"number {k}", **said})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_dry_runs_with_its_figures(
    name: str, models: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(dry_run, "tried", lambda run: {})  # large pictures, and many
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)
    model = models[
        "refiner" if "refiner" in name else name[:4].rstrip("-") if name.startswith("sdxl") else name[:3]
    ]
    arguments = [
        "--model",
        str(model),
        "--data",
        str(pictures),
        "--output",
        str(tmp_path / "run"),
        "--precision",
        "fp32",
    ]
    assert main(["train", "text-to-image", str(CONFIGS[name]), *arguments, "--dry-run", "--json"]) == 0
    report, config = json.loads(capsys.readouterr().out), tomllib.loads(CONFIGS[name].read_text())["run"]
    assert report["pictures_per_step"] * 256 == 2048
    assert report["pictures"] == (8 if "filter" in config else 9)
    if name in FIGURES:
        assert (report["steps"], config["resolution"]) == FIGURES[name]
    sides = {int(side) for bucket in report["buckets"] for side in bucket.split("x")}
    assert config["buckets"] or sides == {config["resolution"]}


def test_each_stage_goes_on_from_one_that_is_there() -> None:
    for name in STAGES:
        model = tomllib.loads(CONFIGS[name].read_text())["run"]["model"]
        assert model.endswith("/model") is False or model.removesuffix("/model") in CONFIGS, name


@pytest.mark.parametrize(
    ("name", "method"),
    [("ddpm-cifar10", "unconditional"), ("ddpm-lsun", "unconditional"), ("sd-vae-ft-mse", "autoencoder")],
)
def test_the_others_are_read_whole(name: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", method, str(CONFIGS[name]), "--print-config"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    for section in tomllib.loads(CONFIGS[name].read_text()).values():
        for key, value in section.items():
            assert printed[key] == ([value, value] if key == "resolution" else value)
