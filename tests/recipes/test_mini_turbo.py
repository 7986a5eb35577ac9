"""The few-step student of `mini`: its teacher's ways, its lessons, and the folder that comes of it."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import inkwash
from inkwash.diffusion.denoiser import precondition
from inkwash.diffusion.guidance import cfg
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.pipeline.api import Pipeline
from inkwash.training.distillation import noised, predicted
from inkwash.training.loop import LoopConfig
from inkwash.weights.inspect import inspect
from recipes.mini import evaluate as measures
from recipes.mini import kin, parts
from recipes.mini import turbo as few
from recipes.mini.classifier import Classifier
from recipes.mini.fast import Captioned, teach
from recipes.mini.recipe import STYLES
from tests.recipes.test_mini_world import prepare


@pytest.fixture(scope="module")
def start(tiny: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("turbo") / "start"
    shutil.copytree(tiny, folder)
    return folder


@pytest.fixture(scope="module")
def cached() -> parts.Latents:
    random = torch.Generator().manual_seed(0)
    means, contexts = (torch.randn(s, generator=random) for s in ((6, 4, 16, 16), (13, 77, 8)))
    choices = [[2 * i + 1, 2 * i + 2] for i in range(5)] + [[12]]
    return means, torch.full_like(means, 0.1), contexts, choices, torch.tensor([1.0, 1, 1, 1, 1, 0])


def ways_of(start: Path, cached: parts.Latents, prediction: str | None = None) -> tuple[Pipeline, few.Ways]:
    torch.manual_seed(0)
    model = inkwash.load(start, prediction=prediction)
    ways = few.make_ways(model, Captioned(cached, torch.device("cpu")), 3.0, 4)
    ways.kept, ways.z, ways.rows, ways.first = 2, ways.z[:, :8].clone(), ways.rows[:8], ways.first[:8]
    return model, ways


def test_captions_are_drawn_as_often_as_their_pictures_weigh(cached: parts.Latents) -> None:
    torch.manual_seed(0)
    data = Captioned(cached, torch.device("cpu"))
    pictures, rows = data.draw(4000, dropout=0.25)
    assert torch.bincount(pictures, minlength=6)[:5].min() > 600 and not (pictures == 5).any()
    said = rows[rows > 0]
    assert set(said.tolist()) == set(range(1, 11)) and 0.2 < (rows == 0).float().mean() < 0.3
    assert torch.equal((said - 1) // 2, pictures[rows > 0])  # each its own


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_teacher_goes_as_the_library_draws(
    prediction: str, start: Path, cached: parts.Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ways = ways_of(start, cached, prediction)
    monkeypatch.setattr(few, "bf16", lambda device: torch.autocast("cpu", enabled=False))
    ways.refresh(0)
    context = ways.data.contexts[ways.rows[:4]]
    empty = ways.data.contexts[:1].expand_as(context)
    denoise = precondition(model.network(), model.prediction, model.schedule)
    D = cfg(denoise, {"context": context}, {"context": empty}, 3.0)
    sigmas = SCHEDULES["turbo"](20, model.schedule)
    with torch.no_grad():
        x = ways.z[0, :4] / ways.levels.signal[0]
        path = [step.x for step in SAMPLERS["dpmpp_2m"](D, x, sigmas)]
    for i, wanted in enumerate(path, 1):
        torch.testing.assert_close(ways.z[i, :4] / ways.levels.signal[i], wanted, rtol=1e-3, atol=1e-3)


def test_ways_that_start_from_the_student_go_on_from_its_steps(
    start: Path, cached: parts.Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few, "bf16", lambda device: torch.autocast("cpu", enabled=False))
    model, ways = ways_of(start, cached)
    ways.refresh(2)  # of two kept batches the first turn that is no longer the teacher's alone
    assert ways.first[:4].tolist() == [10] * 4
    # what the library makes of the first noise in two steps of Euler's without guidance
    rows = ways_of(start, cached)[1].data.draw(4, dropout=0.05)[1]  # the same draws again
    assert torch.equal(rows, ways.rows[:4])
    x = torch.randn(4, 4, 16, 16) / ways.levels.signal[0]
    denoise = precondition(model.network(), model.prediction, model.schedule)
    D = lambda x, sigma: denoise(x, sigma, {"context": ways.data.contexts[rows]})  # noqa: E731
    with torch.no_grad():
        *_, last = SAMPLERS["euler"](D, x, SCHEDULES["turbo"](4, model.schedule)[:3])
    torch.testing.assert_close(ways.z[10, :4] / ways.levels.signal[10], last.x, rtol=1e-3, atol=1e-3)


def test_the_student_comes_nearer_to_its_teacher(start: Path, cached: parts.Latents, tmp_path: Path) -> None:
    _, ways = ways_of(start, cached, "v")
    ways.kept, ways.z, ways.rows, ways.first = 1, ways.z[:, :4], ways.rows[:4], ways.first[:4]

    @torch.no_grad()
    def error() -> float:
        z = ways.z[0, :4]
        for i in range(0, 20, 5):
            out = ways.student(z, ways.level(i, 4).t, ways.data.contexts[ways.rows[:4]])
            z = noised(*predicted(ways.prediction, out, z, ways.level(i, 1)), ways.level(i + 5, 1))
        return (z - ways.z[20, :4]).square().mean().item()

    ways.refresh(0)
    before = error()
    config = LoopConfig(40, warmup_steps=5, lr=1e-2, decay_steps=28, ema_decay=0.5)
    teach(ways.student, lambda step: ways.loss(8), config, tmp_path)
    assert error() < 0.6 * before


def test_the_command_writes_a_folder_that_says_how_it_draws(
    start: Path,
    cached: parts.Latents,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, data = start.parent / "build", start.parent / "build/data"
    data.mkdir(parents=True)
    prepare(data)
    torch.manual_seed(0)
    judge = Classifier(len(parts.common_names(data)), len(STYLES), 4).eval()
    monkeypatch.setattr(parts, "load_latents", lambda build: cached)
    monkeypatch.setattr(parts, "load_classifier", lambda build, which: judge)
    monkeypatch.setattr(measures, "NUM_PROMPTS", 3)
    monkeypatch.setattr(measures, "STEPS", 3)
    monkeypatch.setattr(few, "COLUMNS", ["a taxi", "a book"])
    kin.turbo(build=build, start=start, steps=2, batch=2)
    (line,) = (build / "turbo/log.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2
    folder = start.with_name("start-turbo")
    assert inspect(folder)["suggested"] == {"preset": "lightning", "steps": 4}
    model, base = inkwash.load(folder), inkwash.load(start)
    assert model.hash != base.hash and model.few_steps
    with caplog.at_level(logging.WARNING):
        model.text_to_image("a taxi", preset="lightning", steps=4, seed=1)
        assert not caplog.messages
        model.text_to_image("a taxi", steps=20, cfg_scale=5, seed=1)
    assert any("--preset lightning --steps 4" in message for message in caplog.messages)
    # random networks' pictures are too small for the judge
    monkeypatch.setattr(measures, "recognition", lambda judge, pixels, names, styles: {"name_top1": 0.5})
    kin.evaluate_turbo(build=build, start=start, sheet=build / "sheet.png")
    figures = json.loads((build / "turbo/figures.json").read_text())
    assert [name for name in figures] == [
        *(f"start at {n} steps" for n in (3, 1, 2, 4, 8)),
        *(f"start-turbo at {n} steps" for n in (1, 2, 4, 8)),
    ]
    with Image.open(build / "sheet.png") as picture:
        assert picture.size == (2 * 34 + 2, 5 * 34 + 2)
