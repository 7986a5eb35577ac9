"""The sampler benchmark draws what everybody draws, and goes on where it stopped."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from benchmarks import samplers as benchmark
from inkwash.metrics.networks import FeatureNetwork, Identity
from inkwash.models.efficientnet import EfficientNetLite0
from inkwash.pipeline.images import to_pixels
from recipes.mini import outside, parts
from recipes.mini.classifier import Classifier
from recipes.mini.pictures import Pictures
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
    drawn = []

    def pictures(self: object, rows: range, sampler: str, steps: int) -> Tensor:
        drawn.append(sampler)
        return torch.rand(len(rows), 3, 32, 32)

    monkeypatch.setattr(benchmark.Drawing, "pictures", pictures)
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
    run("ddim", "lms")  # of which one is euler under another name
    cells = json.loads(out.read_text())["cells"]
    assert cells["ddim"]["5"] == cells["euler"]["5"] and "ddim" not in drawn and "lms" in drawn
    with pytest.raises(SystemExit):
        run("--pictures", "35")
    assert "give another --out" in capsys.readouterr().err


def test_the_outside_judge_is_seen_by_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in which real pictures differ most, in `prepare` as in `draw`."""
    torch.manual_seed(0)
    judge = outside.OutsideJudge(
        FeatureNetwork(Identity("", "", ""), EfficientNetLite0().eval(), lambda x: x), 3, 5
    ).eval()
    pictures = Pictures(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), [])
    records = [{"kind": "single", "caption": f"number {k}"} for k in range(9)]
    monkeypatch.setattr(benchmark, "COMPONENTS", 4)
    monkeypatch.setattr(parts, "load_judge", lambda build, judged_by: judge)
    monkeypatch.setattr(outside, "make", lambda num: judge)
    monkeypatch.setattr(
        "recipes.mini.pictures.load_pictures", lambda data, split: replace(pictures, records=records)
    )
    benchmark.prepare(tmp_path, tmp_path / "p.safetensors", "cpu", "outside")
    embed, judged_by, real, captions = benchmark.opened(tmp_path / "p.safetensors", "cpu")
    assert (judged_by, real.shape, len(captions)) == ("outside", (9, 4), 9)
    rows = torch.tensor([int(caption.split()[1]) for caption in captions])
    with torch.inference_mode():
        torch.testing.assert_close(embed(pictures.pixels(rows)), real, rtol=1e-3, atol=1e-3)
        whole = judge.embed(pictures.pixels(rows))
    most = torch.linalg.eigvalsh(whole.T.double().cov())[-4:].sum()
    assert real.double().var(dim=0).sum() == pytest.approx(most.item(), rel=1e-3)


def test_it_needs_no_packages_that_a_bare_machine_lacks() -> None:
    code = "import sys, benchmarks.samplers; print(*sorted({'pydantic', 'cyclopts', 'PIL', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
