"""The one command that trains `mini`, whole, on a handful of drawings and for two steps a part."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import inkwash
from inkwash.models.prior import PriorConfig
from inkwash.models.tiny import TinyAutoencoder
from inkwash.pipeline.images import to_clip
from inkwash.pipeline.prior import open_prior
from inkwash.training.loop import LoopConfig
from recipes.mini import __main__ as command
from recipes.mini import cascade, kin, latent_classifier, parts, tiny, vision
from recipes.mini import evaluate as measures
from recipes.mini import ip_adapter as seer
from recipes.mini import prior as unclip
from recipes.mini import turbo as few
from recipes.mini.fast import Captioned
from recipes.mini.recipe import FULL, UNetTraining
from tests.recipes.test_mini_world import prepare, write

SHORT = LoopConfig(2, warmup_steps=0, log_every=1)
TINY = replace(
    FULL,
    features=SHORT,
    judge=SHORT,
    classifier_batch=4,
    autoencoder=SHORT,
    autoencoder_batch=2,
    crop=32,
    disc_start=1,
    trial_steps=1,
    clip=SHORT,
    clip_batch=4,
    pair_texts=replace(SHORT, lr=1e-6),  # the cached contexts are those of the encoder before it
    pair_texts_batch=3,
    unet=UNetTraining(SHORT, batch=2, timestep_power=0.5),
)


@pytest.fixture(scope="module")
def trained(module_path: Path) -> Path:
    build = module_path / "build"

    def build_data(out: Path, scenes: int) -> None:
        if not out.exists():
            out.mkdir(parents=True)
            prepare(out)
            for split in ("train", "heldout"):
                write(out, split, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "REDUCED", TINY)
        patch.setattr(command.data_builder, "build", build_data)
        patch.setattr(measures, "NUM_PROMPTS", 14)
        patch.setattr(measures, "STEPS", 2)
        patch.setattr(measures, "sheet_prompts", lambda: ["an apple, noto style", "a book"] * 5)
        run = lambda: command.everything(  # noqa: E731
            build=build, out=module_path / "model", sheet=module_path / "sheet.png", reduced=True
        )
        run()
        states = {path: path.stat().st_mtime_ns for path in build.rglob("*.safetensors")}
        run()  # nothing is left to train
        assert states == {path: path.stat().st_mtime_ns for path in build.rglob("*.safetensors")}
    return module_path


def test_every_part_is_trained(trained: Path) -> None:
    for name in ("features", "judge", "autoencoder/f8c8", "clip", "pair_texts", "unet"):
        lines = (trained / "build" / name / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        assert all(math.isfinite(value) for line in lines for value in json.loads(line).values())
    last = json.loads((trained / "build/autoencoder/f8c8/log.jsonl").read_text().splitlines()[-1])
    assert "discriminator" in last  # which starts at step 1


def test_what_is_exported_is_the_averaged_model(trained: Path) -> None:
    model = inkwash.load(trained / "model")
    text_encoder, tokenizer = parts.load_text_encoder(trained / "build")
    before = text_encoder.state_dict()["text_model.final_layer_norm.bias"].clone()
    parts.load_average(text_encoder, trained / "build/pair_texts/state.safetensors", "text")
    assert not torch.equal(text_encoder.state_dict()["text_model.final_layer_norm.bias"], before)
    autoencoder = parts.load_autoencoder(trained / "build", "f8c8")
    assert model.autoencoder.config.scale_factor == autoencoder.config.scale_factor != 1
    for ours, theirs in ((model.autoencoder, autoencoder), (model.text_encoders[0].model, text_encoder)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value.half().float())
    assert model.text_encoders[0].tokenizer(["an apple, noto style"]) == tokenizer(["an apple, noto style"])
    assert model.default_size == 128


def test_a_unet_goes_on_from_a_model_and_is_exported_with_its_other_parts(
    trained: Path, monkeypatch, tmp_path
) -> None:
    loop = replace(SHORT, num_steps=1, lr=1e-2, ema_decay=None)
    further = UNetTraining(loop, batch=2, timestep_power=0.5)
    monkeypatch.setattr(command, "REDUCED", replace(TINY, further=further))
    build, start, out = tmp_path / "build", trained / "model", tmp_path / "model"
    build.mkdir()
    for name in ("data", "latents.safetensors"):
        (build / name).symlink_to(trained / "build" / name)
    command.unet(build=build, start=start, reduced=True)
    command.export(build=build, out=out, start=start)
    before, after = inkwash.load(start), inkwash.load(out)
    state = load_file(build / "unet/state.safetensors")
    for key, value in after.unet.state_dict().items():
        assert torch.equal(value, state[f"modules/unet/{key}"].half().float())
    moved = [
        (a - b).abs().max() for a, b in zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1  # one step away from where it started
    for ours, theirs in (
        (after.autoencoder, before.autoencoder),
        (after.text_encoders[0].model, before.text_encoders[0].model),
    ):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value)
    assert after.text_encoders[0].tokenizer(["an apple"]) == before.text_encoders[0].tokenizer(["an apple"])
    assert after.default_size == before.default_size


def test_scenes_are_a_fifth_of_what_is_drawn_and_pairs_most_of_them() -> None:
    single = {"kind": "single", "slug": "apple"}
    pair, alone = {"kind": "scene", "objects": [{}, {}]}, {"kind": "scene", "objects": [{}]}
    weights = parts.picture_weights([single, {**single, "slug": "rare"}, pair, alone, pair], {"apple"})
    assert weights[2:].sum() / weights.sum() == pytest.approx(0.2)
    assert weights[2] == weights[4] == pytest.approx(2.7 * weights[3].item())
    assert weights[:2].tolist() == [8, 0.5]
    assert parts.picture_weights([single], {"apple"}).tolist() == [8]
    assert parts.picture_weights([pair, alone], set()).tolist() == pytest.approx([2.7, 1])


def test_latents_have_unit_variance_and_each_its_captions(trained: Path) -> None:
    means, stds, contexts, choices, weights = parts.load_latents(trained / "build")
    latents = means.float() + stds.float() * torch.randn(means.shape)
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    assert len(means) == len(stds) == len(choices) == len(weights)
    text_encoder, tokenizer = parts.load_text_encoder(trained / "build")
    empty = text_encoder(torch.tensor(tokenizer([""])))[0][0]
    torch.testing.assert_close(contexts[0].float(), empty, rtol=0.05, atol=0.05)
    assert all(row and min(row) > 0 for row in choices)  # 0 is the empty text


def test_figures_and_sheet(trained: Path) -> None:
    figures = json.loads((trained / "build/figures.json").read_text())
    for way in ("prompt", "regions"):
        pairs = figures[f"pairs by {way}"]
        assert pairs["pictures"] == 7 and 0 <= pairs["both_named"] <= pairs["named"] <= 1
    made = figures["text_to_image at cfg_scale 2"]
    assert made["heldout_pairs"] == 1
    for group in figures.values():
        assert all(math.isfinite(value) for value in group.values())
    assert all(0 <= made[key] <= 1 for key in ("name_top1", "name_top5", "style_top1"))
    with Image.open(trained / "sheet.png") as sheet:
        assert sheet.size == (8 * 130 + 2, 2 * 130 + 2)


def test_a_classifier_of_latents_is_trained_and_measured(trained: Path, monkeypatch) -> None:
    monkeypatch.setattr(latent_classifier, "REDUCED", SHORT)
    monkeypatch.setattr(latent_classifier, "BATCH", 4)
    monkeypatch.setattr(measures, "NUM_PROMPTS", 3)
    monkeypatch.setattr(measures, "STEPS", 2)
    build = trained / "build"
    command.guide(build=build, start=trained / "model", reduced=True, scale=[0, 2], pictures=3)
    figures = json.loads((build / "latent_classifier/figures.json").read_text())
    assert len(figures) == 5
    assert all(0 <= value <= 3 for group in figures.values() for value in group.values())
    task = latent_classifier.make_task(build, parts.noise_schedule())
    assert len(task.names) == len(task.means) and (task.names >= 0).all()
    x, sigma = torch.randn(2, 8, 16, 16), torch.tensor([0.5, 9.0])
    logits = task.model.eval()(x, sigma)
    assert logits.shape == (2, len(parts.common_names(build / "data")))
    assert not torch.allclose(logits, task.model(x, sigma.flip(0)))  # it knows the noise level


def test_a_tiny_autoencoder_is_trained_and_takes_the_first_stages_place(trained: Path, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "REDUCED", SHORT)
    monkeypatch.setattr(tiny, "BATCH", 2)
    build, start = trained / "build", trained / "model"
    command.tiny(build=build, start=start, reduced=True)
    lines = [json.loads(line) for line in (build / "tiny/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    figures = json.loads((build / "tiny/figures.json").read_text())
    assert figures["pictures"] == len(parts.load_pictures(build / "data", "heldout").records)
    assert all(math.isfinite(value) for value in figures.values())

    model = inkwash.load(start, parts=[build / "tiny/vae"])
    assert isinstance(model.autoencoder, TinyAutoencoder)
    averaged = parts.load_average(tiny.make(), build / "tiny/state.safetensors", "tiny").state_dict()
    for key, value in model.autoencoder.state_dict().items():
        assert torch.equal(value, averaged[key].half().float())
    draw = lambda model: model.text_to_image("an apple", steps=2, seed=1)[0]  # noqa: E731
    assert draw(model).size == (128, 128)
    assert draw(model).tobytes() != draw(inkwash.load(start)).tobytes()


def test_of_a_picture_and_itself_the_tiny_ones_figures_are_the_best(trained: Path) -> None:
    first_stage = inkwash.load(trained / "model").autoencoder
    heldout = parts.load_pictures(trained / "build/data", "heldout")
    figures = tiny.figures(first_stage, first_stage, heldout)  # in its own place
    assert figures["psnr_to_first_stage"] == figures["psnr_encoder"] == pytest.approx(120)
    assert figures["psnr_to_pictures"] == figures["psnr_first_stage_to_pictures"] < 60


def test_first_stages_are_compared(trained: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "REDUCED", TINY)
    command.first_stages(build=trained / "build", reduced=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["choice"] for line in lines] == ["f8c8", "f8c4", "f4c4"]
    assert all(math.isfinite(line[key]) for line in lines for key in ("psnr", "frechet_distance"))


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    for call, message in (
        (lambda: command.export(build=tmp_path), "run `python -m recipes.mini latents` first"),
        (lambda: command.unet(build=tmp_path), "run `python -m recipes.mini latents` first"),
        (lambda: command.autoencoder("f8c16", build=tmp_path), "f8c16.*f8c8, f8c4, f4c4"),
        (lambda: command.clip(build=tmp_path), r"python -m recipes\.mini\.data"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            call()


def test_a_prior_and_a_decoder_are_trained_written_and_drawn_with(trained: Path, monkeypatch) -> None:
    for place, name, value in (
        (unclip, "CONFIG", PriorConfig(vector_dim=256, num_heads=2, head_dim=16, num_layers=1)),
        (measures, "NUM_PROMPTS", 3),
        (measures, "STEPS", 2),
        (few, "COLUMNS", ["an apple", "a book"]),
    ):
        monkeypatch.setattr(place, name, value)
    build, start, folder = trained / "build", trained / "model", trained / "build/prior"
    kin.vision(build=build, start=start, steps=2, batch=4)
    found = json.loads((build / "vision/figures.json").read_text())
    assert all(0 <= made["top1"] <= made["top5"] <= 1 for made in found.values()) and "all" in found
    out = trained / "mini-ip-adapter"
    kin.prior(build=build, start=start, steps=2, batch=2)
    kin.ip_adapter(build=build, start=start, out=out, steps=2, batch=2)
    for log in (folder / "text/log.jsonl", build / "ip-adapter/log.jsonl"):
        (line,) = log.read_text().splitlines()
        assert json.loads(line)["step"] == 2
    text, base = open_prior(folder / "model"), inkwash.load(start)
    decoder = seer.Decoder(base, out)
    data = Captioned(parts.load_latents(build), torch.device("cpu"))
    tokenizer = base.text_encoders[0].tokenizer
    what = unclip.seen(build, vision.load_pair(base, build), tokenizer, data)
    assert what.vectors.std().item() == pytest.approx(1, rel=1e-3) and len(what.vectors) == len(data.means)
    pictures = parts.load_pictures(build / "data", "train")
    kept = [r for r in pictures.records if r["kind"] != "clipart"]
    texts, _choices = parts.captions_of(kept)
    assert len(texts) == len(what.pooled) == len(data.contexts)
    read = text.read(texts[:9])
    assert torch.equal(read["mask"].sum(1), what.lengths[:9])
    torch.testing.assert_close(read["pooled"], what.pooled[:9], rtol=0.05, atol=0.05)
    # what the written tower sees of a picture is what the adapter was trained on, but for how it was made smaller
    rows = [i for i, r in enumerate(pictures.records) if r["kind"] != "clipart"]
    pixels = to_clip(Image.fromarray(np.asarray(pictures.images[rows[0]])), 64)
    with torch.no_grad():
        seen = decoder.vision(pixels)[1][0]
    assert torch.cosine_similarity(seen, what.vectors[0], dim=0) > 0.98
    kin.evaluate_prior(build=build, start=start, out=out, sheet=trained / "prior.png")
    figures = json.loads((folder / "figures.json").read_text())
    assert all(0 <= made["name_top1"] <= 1 for made in figures.values()) and len(figures) == 4
    with Image.open(trained / "prior.png") as sheet:
        assert sheet.size == (2 * 130 + 2, 4 * 130 + 2)


def test_a_new_ip_adapter_guesses_the_states_of_captions(trained: Path) -> None:
    base, data = (
        inkwash.load(trained / "model"),
        Captioned(parts.load_latents(trained / "build"), torch.device("cpu")),
    )
    found = torch.randn(len(data.means), 256, generator=torch.Generator().manual_seed(0))
    what = unclip.Seen(found, data.contexts[:, -1].float(), torch.full((len(data.contexts),), 4), 1.0)
    adapter = seer.make(base, data, what, num=64)
    pictures, rows = data.draw(32)
    states = data.contexts[rows, : seer.TOKENS].float()
    with torch.no_grad():
        own, others = (
            (adapter.image_proj(what.vectors[some]) - states).square().mean()
            for some in (pictures, pictures.roll(1))
        )
    assert own < 0.8 * others


def test_noise_levels_are_found_and_measured(trained: Path, monkeypatch) -> None:
    monkeypatch.setattr(measures, "NUM_PROMPTS", 2)
    build = trained / "build"
    kin.align(build=build, start=trained / "model", steps=3, pictures=2, levels=6)
    figures = json.loads((build / "align/figures.json").read_text())
    assert figures["timesteps"][0] == 999 and figures["timesteps"][-1] == 0 and len(figures["timesteps"]) == 3
    assert {"aligned", "karras", "uniform"} < set(figures)


def test_a_cascade_is_trained_saved_and_measured(trained: Path, monkeypatch) -> None:
    for place, name, value in (
        (measures, "NUM_PROMPTS", 2),
        (measures, "STEPS", 2),
        (few, "COLUMNS", ["an apple", "a book"]),
    ):
        monkeypatch.setattr(place, name, value)
    monkeypatch.setattr(cascade, "DRAWN", {stage: (name, 2) for stage, (name, _) in cascade.DRAWN.items()})
    large = replace(cascade.UPSCALER, channels=8, norm_groups=4, head_dim=8)
    monkeypatch.setattr(cascade, "CONFIGS", cascade.CONFIGS | {"large": large})
    build = trained / "build"
    for stage in ("small", "large"):
        kin.cascade(stage, build=build, start=trained / "model", steps=2, batch=2)
        (line,) = (build / "cascade" / stage / "log.jsonl").read_text().splitlines()
        assert math.isfinite(json.loads(line)["network"])
    kin.evaluate_cascade(build=build, start=trained / "model", sheet=trained / "cascade.png")
    figures = json.loads((build / "cascade/figures.json").read_text())
    assert set(figures) == {"cascade", "first stage, interpolated", "model"} and all(
        0 <= f["name_top1"] <= 1 for f in figures.values()
    )
    with Image.open(trained / "cascade.png") as sheet:
        assert sheet.size == (2 * 130 + 2, 2 * 130 + 2)
