"""The method prior: its loss and gradients as diffusers' and transformers' networks give them, and what it writes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.models.clip import MEAN, STD
from inkwash.pipeline.prior import TextPrior, open_prior
from inkwash.training.objectives import Objective
from inkwash.training.pixels import PixelBatch
from inkwash.training.prior_run import new_prior
from inkwash.training.run import METHODS, prepare, trained
from inkwash.training.tasks.contrast import CLIP
from inkwash.training.tasks.prior import PriorTask
from inkwash.weights.checkpoint import TextEncoder
from inkwash.weights.models.clip_folder import read_clip, write_clip
from tests.training.test_network_methods import SMALL_CLIP

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SMALL = {"layers": 1, "heads": 2, "head_width": 8}
QUICK = {"steps": 4, "save_every": 2, "log_every": 1, "lr": 1e-3, "batch_size": 2}


@pytest.fixture(scope="module")
def clip(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose texts are as wide as its vectors."""
    from inkwash.training.clip_run import new_clip

    config = METHODS["clip"].config.model_validate(
        SMALL_CLIP | {"projection": 16, "data": "x", "output": "x"}
    )
    tokenizer = open_tokenizer()
    model = new_clip(config, tokenizer)  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, model.config, model.state_dict(), tokenizer)
    return folder


def open_tokenizer() -> Any:
    import inkwash

    return inkwash.load("mini").text_encoders[0].tokenizer


def test_loss_and_gradients_are_those_of_diffusers(clip: Path) -> None:
    """x0 of PriorTransformer at DDPMScheduler's noised vectors, from transformers' towers."""
    text, vision, _, tokenizer = read_clip(clip)
    config: Any = METHODS["prior"].config.model_validate(
        SMALL | {"clip": str(clip), "data": "x", "output": "x"}
    )
    network = new_prior(config, 16)
    network.clip_mean.data.normal_()
    network.clip_std.data.uniform_(0.5, 2)
    captions, pixels = ["a cat", "", "a red taxi"], torch.rand(3, 3, 16, 16) * 2 - 1

    class Source:
        size = 3

        def batch(self, number: int, rng: torch.Generator, rows: slice) -> PixelBatch:
            return PixelBatch(pixels[rows], captions[rows])

    objective = Objective("x0", timesteps="uniform")
    task = PriorTask(TextPrior(network, TextEncoder(text, tokenizer)), vision, Source(), objective)  # type: ignore[arg-type]
    [(name, loss, _)] = list(task.losses(0, 0, torch.Generator().manual_seed(3)))
    assert name == "prior"
    loss.backward()

    theirs = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16, num_embeddings=77
    )
    theirs.load_state_dict(network.state_dict())
    whole = transformers.CLIPModel.from_pretrained(clip, local_files_only=True).eval()
    rng = torch.Generator().manual_seed(3)
    t, noise = objective.draw_timesteps(3, rng), torch.randn(3, 16, generator=rng)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    ids = torch.tensor(tokenizer(captions))
    with torch.no_grad():
        eyes = whole.vision_model(pixel_values=((pixels + 1) / 2 - mean) / std)
        vectors = whole.visual_projection(eyes.pooler_output)
        words = whole.text_model(input_ids=ids)
        pooled = whole.text_projection(words.pooler_output)
    x0 = (vectors - theirs.clip_mean) / theirs.clip_std
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    mask = torch.arange(77) <= (ids == tokenizer.end).int().argmax(1, keepdim=True)
    made = theirs(
        scheduler.add_noise(x0, noise, t), t, pooled, words.last_hidden_state, mask
    ).predicted_image_embedding
    wanted = (made - x0).square().mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    wanted.backward()
    grads = dict(theirs.named_parameters())
    for key, p in network.named_parameters():
        if not key.startswith("clip_"):  # statistics, which do not learn
            torch.testing.assert_close(p.grad, grads[key].grad, rtol=1e-3, atol=1e-5, msg=key)


def test_it_learns_resumes_and_opens_again(pictures: Path, clip: Path, tmp_path: Path) -> None:
    more = {"data": str(pictures), "clip": str(clip)} | QUICK | SMALL
    path = trained("prior", output=str(tmp_path / "a"), **more)
    trained("prior", output=str(tmp_path / "b"), **more | {"steps": 2})
    trained("prior", output=str(tmp_path / "b"), **more)
    a, b = (load_file(tmp_path / side / "state.safetensors") for side in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert path is not None
    prior = open_prior(path)
    assert prior.bound == 5.0 and prior.spacing == "linspace"
    vectors = prior(["a red disc", "a blue disc"], [1, 2], steps=3)
    assert vectors.shape == (2, 16) and torch.isfinite(vectors).all()
    diffusers.PriorTransformer.from_pretrained(path / "prior", local_files_only=True)
    # the statistics are the pictures' own, and stay
    run = prepare("prior", METHODS["prior"].config.model_validate(more | {"output": str(tmp_path / "c")}))
    fresh = run.module
    torch.testing.assert_close(fresh.clip_mean, prior.network.clip_mean)
    assert (prior.network.clip_std > 0).all() and not torch.allclose(
        fresh.proj_in.weight, prior.network.proj_in.weight
    )
    on = trained("prior", output=str(tmp_path / "d"), model=str(path), **more | {"steps": 1})
    assert on is not None
    assert torch.equal(open_prior(on).network.clip_mean, prior.network.clip_mean)
    assert not torch.equal(open_prior(on).network.proj_in.weight, prior.network.proj_in.weight)


def test_learning_lowers_the_loss(pictures: Path, clip: Path, tmp_path: Path) -> None:
    more = {"data": str(pictures), "clip": str(clip), "output": str(tmp_path / "a"), "batch_size": 4} | SMALL
    config = METHODS["prior"].config.model_validate(more | {"steps": 40, "lr": 3e-3, "log_every": 1})
    run = prepare("prior", config)
    before = copy.deepcopy(run.module.state_dict())
    run.train()
    from inkwash.training.loop import generator_for

    def error() -> float:
        return sum(next(iter(run.task.losses(0, k, generator_for(9, k))))[1].item() for k in range(8))

    after = error()
    run.module.load_state_dict(before)
    assert after < 0.8 * error()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clip", "CLIP", "--resolution", "32"], "resolution 32 is not the 16 of"),
        (["--clip", "."], "is not a folder of a CLIP"),
        ([], "--clip is missing"),
        (["--clip", "CLIP", "--model", "."], "has no prior/config.json"),
    ],
)
def test_what_does_not_fit_is_one_line(
    pictures: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    more = [one.replace("CLIP", str(clip)) for one in more]
    assert main(["train", "prior", *more, "--data", str(pictures), "--output", "run"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error


def test_texts_and_vectors_of_two_widths_are_refused(pictures: Path, tmp_path: Path) -> None:
    own = METHODS["clip"].config.model_validate(SMALL_CLIP | {"data": "x", "output": "x"})
    from inkwash.training.clip_run import new_clip

    tokenizer = open_tokenizer()
    model: CLIP = new_clip(own, tokenizer)  # type: ignore[arg-type]
    write_clip(tmp_path / "clip", model.config, model.state_dict(), tokenizer)
    with pytest.raises(ValueError, match="its texts are 16 wide, its vectors 8"):
        trained(
            "prior", data=str(pictures), clip=str(tmp_path / "clip"), output=str(tmp_path / "run"), **QUICK
        )
