"""The sampler benchmark draws what everybody draws, and goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from benchmarks import samplers as benchmark
from inkwash.pipeline.images import to_pixels
from recipes.mini.classifier import Classifier
from recipes.mini.recipe import STYLES

CAPTIONS = ["a red taxi, noto style", "a cat (sitting), fluent style"]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim_cfgpp"])
def test_its_pictures_are_those_of_the_pipeline(sampler: str) -> None:
    model = inkwash.load("mini", dtype="fp32")
    drawing = benchmark.Drawing(model, CAPTIONS, "cpu", 2)
    options = {"steps": 2, "cfg_scale": 5.0, "schedule": "uniform", "prompt_language": "plain", "seed": 0}
    expected = model.text_to_image(tuple(CAPTIONS), batch_size=2, sampler=sampler, **options)
    with torch.inference_mode():
        made = drawing.pictures(range(2), sampler, 2)
    difference = (made - torch.cat([to_pixels(image) for image in expected])).abs() * 127.5
    assert difference.max() < 1.5 and difference.mean() < 0.05


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    judge = Classifier(3, len(STYLES), 4).eval()
    tensors: dict[str, Tensor] = {f"judge.{name}": value for name, value in judge.state_dict().items()}
    tensors["real"] = torch.randn(60, 32)
    save_file(
        tensors,
        tmp_path / "p.safetensors",
        {"captions": json.dumps([f"number {k}" for k in range(40)]), "halved": "true"},
    )
    return tmp_path / "p.safetensors"


def test_cells_are_kept_and_a_page_is_written(prepared: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        benchmark.Drawing, "pictures", lambda self, rows, *_: torch.rand(len(rows), 3, 32, 32)
    )
    out = tmp_path / "out.json"

    def run(*more: str) -> str:
        command = ["samplers.py", "draw", "--prepared", str(prepared), "--out", str(out), "--steps", "5"]
        monkeypatch.setattr(sys, "argv", [*command, "--samplers", "euler", "dpm_adaptive", *more])
        benchmark.main()
        return capsys.readouterr().out

    assert run().count("5 steps:") == 2
    cells = json.loads(out.read_text())["cells"]
    assert set(cells["euler"]) == {"5"} and set(cells["dpm_adaptive"]) == {"any"}
    assert cells["euler"]["5"]["low"] <= cells["euler"]["5"]["high"]
    page = out.with_suffix(".md").read_text()
    assert (
        "40 pictures of held-out captions" in " ".join(page.split())
        and page.count("| `euler` |") == 1
        and "<small>" in page
    )
    assert run() == ""  # all is there
    with pytest.raises(SystemExit):
        run("--pictures", "35")
    assert "give another --out" in capsys.readouterr().err


def test_it_needs_no_packages_that_a_bare_machine_lacks() -> None:
    code = "import sys, benchmarks.samplers; print(*sorted({'pydantic', 'cyclopts', 'PIL', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
