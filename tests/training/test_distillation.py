"""Few-step students: their losses beside diffusers' parts of the published ones, exact resuming, and what is written."""

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

import inkwash
from inkwash.cli import main
from inkwash.pipeline.api import Pipeline
from inkwash.training.distill_config import DistillConfig
from inkwash.training.distillation import Levels, frozen_copy, noised, one_step_target, predicted
from inkwash.training.loop import generator_for
from inkwash.training.objectives import Objective
from inkwash.training.run import Run, prepare, trained
from inkwash.training.sources import Batch
from inkwash.training.tasks.distillation import Distillation
from inkwash.training.tasks.distillations import DISTILLATIONS
from inkwash.training.trainable import Learner
from inkwash.training.trainable.whole import told_guidance
from inkwash.weights.inspect import inspect
from tests.support.small_controls import write_model


class Fixed:
    """A source that gives one batch."""

    def __init__(self, num: int = 3):
        random = torch.Generator().manual_seed(5)
        latent, context, empty = (
            torch.randn(s, generator=random) for s in ((num, 4, 16, 16), (num, 77, 8), (1, 77, 8))
        )
        self.size = num
        self.one = Batch(latent, {"context": context}, uncond={"context": empty.expand(num, -1, -1)})

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        return self.one


class Whole(Learner):
    name = "model"

    def __init__(self, module: torch.nn.Module):
        self.module = module


def task_of(model: Pipeline, objective: str, **options: Any) -> Any:
    """A task whose student is the model's U-Net, and whose teacher is another one."""
    config = DistillConfig(
        **{"output": "x", "data": "x", "objective": objective, "whole": True, "guidance": "4,9"} | options
    )
    torch.manual_seed(3)
    teacher = frozen_copy(model.unet)
    for parameter in teacher.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    unet = told_guidance(model.unet) if config.guidance_input else model.unet
    unet.requires_grad_(True)
    objective_ = Objective(model.prediction, config.loss, config.huber_delta)
    return DISTILLATIONS[objective](unet, teacher, config, Whole(unet), Fixed(), objective_, model.schedule)


def peer(folder: Path, weights: Any = None, time_cond: Tensor | None = None) -> UNet2DConditionModel:
    """diffusers' network of the folder; with `weights`, ours of the same layout."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    if time_cond is not None:
        old = unet.state_dict()
        unet = UNet2DConditionModel.from_config(dict(unet.config) | {"time_cond_proj_dim": 256})
        unet.load_state_dict(old | {"time_embedding.cond_proj.weight": time_cond})
    return unet.eval()


def their_teacher(task: Any, model: Pipeline, folder: Path, tmp_path: Path) -> UNet2DConditionModel:
    from inkwash.weights.checkpoint import Component
    from inkwash.weights.models.folder import write_unet

    write_unet(
        Component(task.teacher.config, task.teacher.state_dict()), 16, folder.parent / "teacher", folder
    )
    return peer(folder.parent / "teacher")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def ddim(steps: int) -> DDIMScheduler:
    made = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize(("guided", "loss"), [(False, "l2"), (True, "huber")])
@torch.no_grad()
def test_a_step_of_latent_consistency_is_the_published_one(
    folder: Path, tmp_path: Path, guided: bool, loss: str
) -> None:
    model = inkwash.load(folder)
    task = task_of(model, "consistency", guidance_input=guided, loss=loss, huber_delta=1e-3)
    weight = torch.randn(8, 256) if guided else None
    if weight is not None:
        task.unet.time_cond_proj.weight.copy_(weight)
    rng = generator_for(0, 0)
    ((name, value, _),) = task.losses(0, 0, rng)
    # the same draws, in the order in which the task makes them
    rng = generator_for(0, 0)

    def uniform() -> Tensor:
        return (torch.randperm(3, generator=rng) + torch.rand(3, generator=rng)) / 3

    scale = 4 + 5 * uniform()
    t = ((uniform() * 50).long() + 1) * 20 - 1
    noise, batch = torch.randn(3, 4, 16, 16, generator=rng), task.source.one
    student, teacher = peer(folder, time_cond=weight), their_teacher(task, model, folder, tmp_path)
    solver, scalings = ddim(50), LCMScheduler()
    then = (t - 20).clamp(min=0)
    told = {}
    if guided:
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        told = {"timestep_cond": embed(None, scale - 1, embedding_dim=256)}  # type: ignore[arg-type]
    z = solver.add_noise(batch.latent, noise, t)

    def consistent(x: Tensor, at: Tensor) -> Tensor:
        eps = student(x, at, batch.cond["context"], **told).sample
        a = solver.alphas_cumprod[at].view(-1, 1, 1, 1)
        skip, out = (c.view(-1, 1, 1, 1) for c in scalings.get_scalings_for_boundary_condition_discrete(at))
        return skip * x + out * (x - (1 - a).sqrt() * eps) / a.sqrt()

    cond, uncond = (teacher(z, t, some["context"]).sample for some in (batch.cond, batch.uncond))
    eps = cond + (scale - 1).view(-1, 1, 1, 1) * (cond - uncond)
    before = torch.cat([solver.step(eps[k : k + 1], int(t[k]), z[k : k + 1]).prev_sample for k in range(3)])
    error = consistent(z, t) - consistent(before, then)
    wanted = error.square().mean() if loss == "l2" else 2e-3 * ((error.square() + 1e-6).sqrt() - 1e-3).mean()
    assert name == "model" and value.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_solver_reaches_the_last_timestep_whatever_its_steps(tiny: Path) -> None:
    """From there drawing begins; 1000 // 3 divides no 1000."""
    task, seen = task_of(inkwash.load(tiny), "consistency", solver_steps=3), []
    levels = task.levels
    task.levels = lambda t: seen.append(t) or levels(t)
    list(task.losses(0, 0, generator_for(0, 0)))
    assert sorted(seen[0].tolist()) == [332, 665, 999] and sorted(seen[1].tolist()) == [0, 332, 665]


@torch.no_grad()
def test_one_step_to_the_target_is_two_of_the_teachers(folder: Path, tmp_path: Path) -> None:
    """By diffusers' DDIM: two guided steps of the teacher, and one with the x0 that the student is to give."""
    model = inkwash.load(folder)
    task = task_of(model, "progressive", guidance="6")
    batch, torch_noise = task.source.one, torch.randn(3, 4, 16, 16)
    k = torch.tensor([4, 2, 3])
    ways = [task.student_levels(2 * k - j, 2) for j in range(3)]
    assert ways[0].t.tolist() == [999, 499, 749] and ways[1].t.tolist() == [874, 374, 624]
    z = after = noised(batch.latent, torch_noise, ways[0])
    for level, then in pairwise(ways):
        after = noised(*task.guided(after, level, batch, torch.full((3,), 6.0)), then)
    target = one_step_target(z, after, ways[0], ways[2])
    teacher, fine, coarse = their_teacher(task, model, folder, tmp_path), ddim(8), ddim(4)
    x = z
    for level in ways[:2]:
        cond, uncond = (teacher(x, level.t, some["context"]).sample for some in (batch.cond, batch.uncond))
        eps = uncond + 6 * (cond - uncond)
        x = torch.cat(
            [fine.step(eps[i : i + 1], int(level.t[i]), x[i : i + 1]).prev_sample for i in range(3)]
        )
    torch.testing.assert_close(after, x, rtol=1e-3, atol=1e-3)
    eps = (z - ways[0].signal * target) / ways[0].spread
    once = [coarse.step(eps[i : i + 1], int(ways[0].t[i]), z[i : i + 1]).prev_sample for i in range(3)]
    torch.testing.assert_close(torch.cat(once), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_predictions_say_the_same_of_one_picture(prediction: str, tiny: Path) -> None:
    schedule = inkwash.load(tiny).schedule
    level = Levels.at(torch.tensor([3, 500, 999]), schedule)
    x0, eps = torch.randn(2, 3, 4, 8, 8)
    out = {"eps": eps, "v": level.signal * eps - level.spread * x0, "x0": x0}[prediction]
    for made, wanted in zip(
        predicted(prediction, out, noised(x0, eps, level), level), (x0, eps), strict=True
    ):
        torch.testing.assert_close(made, wanted, rtol=1e-3, atol=2e-3)
    with pytest.raises(ValueError, match="edm"):
        predicted("edm", out, x0, level)


@pytest.mark.parametrize("objective", ["guidance", "progressive", "dmd"])
def test_who_is_the_teacher_already_learns_nothing(tiny: Path, objective: str) -> None:
    """Without guidance, one teacher's step for one of the student's, and of two equal scores: no loss, no gradient."""
    model = inkwash.load(tiny)
    task = task_of(model, objective, guidance="1", teacher_steps=1)
    task.teacher.load_state_dict(task.unet.state_dict())
    if objective == "dmd":
        task.critic.load_state_dict(task.unet.state_dict())
    _, loss, _ = next(iter(task.losses(0, 0, generator_for(0, 0))))
    loss.backward()
    assert loss.item() < 1e-6 and max(p.grad.abs().max().item() for p in task.unet.parameters()) < 1e-3


@pytest.mark.parametrize("objective", ["guidance", "progressive", "dmd"])
@torch.no_grad()
def test_a_teacher_that_sees_the_scale_predicts_once(tiny: Path, objective: str) -> None:
    """Stage two of Meng et al. 2023: the same network, told the same scale, is its own student already."""
    model = inkwash.load(tiny)
    sees = told_guidance(model.unet)
    sees.time_cond_proj.weight.normal_()  # type: ignore[union-attr]
    task = task_of(replace(model, unet=sees), objective, guidance="4,9", teacher_steps=1)
    for network in (task.teacher, *([task.critic] if objective == "dmd" else [])):
        network.load_state_dict(sees.state_dict())
    told: list[tuple[Any, Tensor]] = []
    x0_eps = task.x0_eps
    task.x0_eps = lambda unet, z, level, cond: (
        told.append((unet, cond["time_cond"])) or x0_eps(unet, z, level, cond)
    )
    _, loss, _ = next(iter(task.losses(0, 0, generator_for(0, 0))))
    assert loss.item() < 1e-6 and task.few_steps.cfg_scale == 6.5
    assert sum(unet is task.teacher for unet, _ in told) == 1
    assert all(torch.equal(scale, told[0][1]) for _, scale in told)


def test_the_student_is_pushed_by_the_difference_of_the_scores(tiny: Path) -> None:
    model = inkwash.load(tiny)
    task = task_of(model, "dmd", guidance="1")
    drawn_x0: list[Tensor] = []
    simulated = task.simulated

    def watched(*given: Any) -> Tensor:
        drawn_x0.append(simulated(*given).detach().requires_grad_())
        return drawn_x0[0]

    task.simulated = watched
    with torch.no_grad():
        for parameter in task.critic.parameters():
            parameter.mul_(1.1)
    scores: list[Tensor] = []
    x0_eps = task.x0_eps

    def listening(*args: Any) -> tuple[Tensor, Tensor]:
        made = x0_eps(*args)
        scores.append(made[0].detach())
        return made

    task.x0_eps = listening
    name, loss, _ = next(iter(task.losses(0, 0, generator_for(0, 0))))
    loss.backward()
    real, _, fake = scores[-3:]
    size = (drawn_x0[0] - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert name == "model"
    torch.testing.assert_close(drawn_x0[0].grad, (fake - real) / size / real.numel(), rtol=1e-3, atol=1e-7)
    # of five steps, one is the student's
    assert [name for name, _, _ in task.losses(1, 0, generator_for(0, 1))] == ["critic"]


def test_the_discriminator_learns_to_tell_made_from_real(tiny: Path) -> None:
    task = task_of(inkwash.load(tiny), "adversarial")
    optimizer = torch.optim.Adam(task.heads.parameters(), 1e-2)
    losses = []
    for step in range(40):
        (_, of_student, _), (name, loss, _) = task.losses(step, 0, generator_for(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert name == "discriminator" and torch.isfinite(of_student)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


WHOLE = {"whole": True, "layout": "diffusers"}


@pytest.mark.parametrize(
    ("objective", "options", "preset"),
    [
        ("consistency", {}, "lcm-lora"),
        ("consistency", WHOLE | {"guidance": "3,8", "guidance_input": True}, "lcm"),
        ("progressive", {"draw_steps": 2, "conv_rank": 2}, "lightning"),
        ("adversarial", WHOLE | {"ema": 0.9}, "turbo"),
        ("dmd", {"critic_steps": 2}, "dmd2"),
        ("guidance", {"draw_steps": 20}, "guided"),
        ("guidance", WHOLE | {"draw_steps": 20, "guidance_input": True}, "guided"),
    ],
)
def test_each_learns_resumes_bit_equal_and_says_how_it_draws(
    objective: str,
    options: dict[str, Any],
    preset: str,
    pictures: Path,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = {
        "model": str(tiny),
        "data": str(pictures),
        "buckets": False,
        "objective": objective,
        "batch_size": 2,
    }
    own |= {"steps": 4, "lr": 1e-3, "save_every": 2, "log_every": 1} | options
    whole = trained("distill", output=str(tmp_path / "a/run"), **own)
    trained("distill", output=str(tmp_path / "b/run"), **own | {"steps": 2})
    again = trained("distill", output=str(tmp_path / "b/run"), **own)
    assert whole and again
    a, b = (load_file(tmp_path / side / "run/state.safetensors") for side in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    lines = [json.loads(line) for line in (tmp_path / "a/run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["error"] > 0
    steps = options.get("draw_steps", 4)
    how: dict[str, Any] = {"preset": preset, "steps": steps}
    how |= {"cfg_scale": 5.5 if preset == "lcm" else 5.0} if options.get("guidance_input") else {}
    assert inspect(whole)["suggested"] == how
    if options.get("whole"):
        model, prompt = inkwash.load(whole), "a disc"
    else:
        model, prompt = inkwash.load(tiny, loras=whole.parent), "a disc<lora:run:1>"
    plain = inkwash.load(tiny).text_to_image("a disc", preset=preset, steps=steps, seed=1)[0]
    caplog.clear()  # lcm has no use for a network without an input of guidance
    with caplog.at_level(logging.WARNING):
        made = model.text_to_image(prompt, **how, seed=1)[0]
    assert made.tobytes() != plain.tobytes() and not caplog.messages
    with caplog.at_level(logging.WARNING):
        model.text_to_image(prompt, steps=20, cfg_scale=16, seed=1)
    assert any("guidance in its weights" in text for text in caplog.messages)
    assert preset == "guided" or any(f"--preset {preset} --steps {steps}" in text for text in caplog.messages)


@pytest.mark.parametrize("objective", DISTILLATIONS)
def test_a_model_with_micro_conditions_learns_and_draws(
    objective: str, pictures: Path, tmp_path: Path
) -> None:
    model = str(write_model("sdxl", tmp_path))
    own = {"model": model, "data": str(pictures), "resolution": "32", "buckets": False, "batch_size": 2}
    own |= {"objective": objective, "output": str(tmp_path / "run"), "steps": 1, "lr": 1e-3}
    made = trained("distill", **own)
    assert made
    how = inspect(made)["suggested"] | {"steps": 2, "seed": 1}
    student = inkwash.load(model, loras=made.parent).text_to_image("a disc<lora:run:1>", **how)[0]
    assert student.tobytes() != inkwash.load(model).text_to_image("a disc", **how)[0].tobytes()


def test_guidance_alone_keeps_the_usual_number_of_steps(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    own = {"output": str(tmp_path / "run"), "data": str(pictures), "model": str(tiny), "buckets": False}
    own |= {"objective": "guidance", "steps": 1}
    assert inspect(trained("distill", **own) or "")["suggested"] == {"preset": "guided", "steps": 20}
    assert DistillConfig.model_validate(own | {"draw_steps": 30}).draw_steps == 30


def test_the_memory_of_a_dry_run_counts_the_teacher(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    own = {"output": str(tmp_path / "run"), "data": str(pictures), "model": str(tiny), "buckets": False}
    run = prepare("distill", DistillConfig.model_validate(own | {"objective": "dmd"}))
    assert isinstance(run, Run) and isinstance(run.task, Distillation)
    assert {id(run.task.teacher), id(run.task.modules["critic"])} <= {id(one) for one in run.networks}


def test_one_wrong_scale_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "distill", "--data", "x", "--output", "y", "--guidance", "0.5"]) == 2
    assert capsys.readouterr().err.strip() == "inkwash: --guidance '0.5' is too small; the least is 1.0"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance_input": True}, "guidance_input needs whole"),
        ({"weighting": "min-snr"}, "weighting 'min-snr': distillation has its own"),
        ({"text_lr": 1e-5}, "its text encoders stay"),
        ({"guidance": "0.5"}, "greater than or equal to 1"),
        (
            {"objective": "progressive", "draw_steps": 50, "teacher_steps": 21},
            "draw_steps 50 times teacher_steps 21 are 1050 noise levels, and there are 1000 timesteps",
        ),
        ({"prediction": "edm"}, "predicts edm can't be distilled; eps, v and x0 can"),
        (
            {"model": "mini-inpainting"},
            "mini-inpainting is a model for inpainting, and is trained by that method",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    options: dict[str, Any], said: str, pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    own = {
        "model": str(tiny),
        "data": str(pictures),
        "buckets": False,
        "output": str(tmp_path / "run"),
        "steps": 1,
    }
    with pytest.raises(ValueError, match=said):
        trained("distill", **own | options)


@pytest.mark.parametrize(
    ("options", "guidance", "said"),
    [
        (
            {"objective": "progressive"},
            "5",
            "has guidance in its weights (inkwash.few_steps is 'lightning 4'), and guidance 5",
        ),
        ({"objective": "progressive"}, "1", None),
    ],
)
def test_a_teacher_that_was_distilled_is_noted(
    options: dict[str, Any], guidance: str, said: str | None, pictures: Path, tiny: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    own = {"data": str(pictures), "buckets": False, "whole": True, "steps": 1, "batch_size": 1}
    first = trained("distill", model=str(tiny), output=str(tmp_path / "first"), **own, **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        config = {"model": str(first), "output": str(tmp_path / "second"), "guidance": guidance}
        prepare("distill", DistillConfig(**own | config | {"objective": "progressive"}))
    assert [text for text in caplog.messages if said and said in text] or (
        said is None and not caplog.messages
    )


def test_an_input_of_guidance_is_not_replaced(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    own = {"data": str(pictures), "buckets": False, "whole": True, "guidance_input": True, "steps": 1}
    first = trained("distill", **own, model=str(tiny), output=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="a sees the guidance scale as it is; leave guidance_input out"):
        trained("distill", **own, model=str(first), output=str(tmp_path / "b"))
