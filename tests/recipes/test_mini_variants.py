"""The U-Net's variants: they start as the base, see what they should, learn from it, resume, and open."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import inkwash
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText
from inkwash.models.unet import UNet
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.latents import encode
from inkwash.training import masks
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import LoopConfig, train
from inkwash.training.trainable.whole import widened
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.folder import read_folder, write_folder, write_unet
from recipes.mini import __main__ as command
from recipes.mini import drawing, parts
from recipes.mini import evaluate_variants as measures
from recipes.mini.classifier import Classifier
from recipes.mini.labels import Labels, caption_alone, touch
from recipes.mini.recipe import FULL, STYLES
from recipes.mini.tasks import Beside, TextToImageTask
from recipes.mini.variants import (
    VARIANTS,
    background,
    near,
    noised,
    painted,
    restaged,
    variant_task,
    with_hole,
)
from recipes.mini.words import noun
from tests.recipes.test_mini_world import prepare, write

SHORT = LoopConfig(2, lr=1e-3, warmup_steps=0, log_every=1)
NAMES = list(VARIANTS)


@pytest.fixture(scope="module")
def build(module_path: Path) -> Path:
    """A build folder with a small world."""
    (module_path / "data").mkdir()
    prepare(module_path / "data")
    for split in ("train", "heldout"):
        write(module_path / "data", split, 0)
    return module_path


@pytest.fixture(scope="module")
def start(tiny: Path, build: Path) -> Path:
    """The tiny model for pictures of the world's size: latents of 4 x 16 x 16."""
    config = AutoencoderConfig(channels=4, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=1)
    torch.manual_seed(0)
    autoencoder = Component(config, AutoencoderKL(config).state_dict())
    checkpoint = replace(read_folder(tiny), autoencoder=autoencoder, default_size=128, texts={})
    write_folder(checkpoint, build / "start")
    return build / "start"


@pytest.fixture(scope="module")
def labels(build: Path, start: Path) -> Labels:
    return Labels(build / "data", "train", inkwash.load(start))


@pytest.fixture(scope="module")
def cached(labels: Labels) -> parts.Latents:
    """Latents and two captions for each picture, as `parts.load_latents` gives them."""
    num, random = len(labels.records), torch.Generator().manual_seed(0)
    means, contexts = (torch.randn(s, generator=random) for s in ((num, 4, 16, 16), (2 * num, 77, 8)))
    choices = [[2 * i, 2 * i + 1] for i in range(num)]
    return means, torch.full_like(means, 0.1), contexts, choices, torch.ones(num)


def text(model: Pipeline) -> CLIPText:
    return model.text_encoders[0].model


@pytest.mark.parametrize("name", NAMES)
def test_each_is_trained_written_opened_and_measured(
    name: str, build: Path, start: Path, cached: parts.Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    judge = Classifier(len(parts.common_names(build / "data")), len(STYLES), 4).eval()
    monkeypatch.setattr(command, "REDUCED", replace(FULL, variant=SHORT, variant_batch=2))
    monkeypatch.setattr(parts, "load_latents", lambda build: cached)
    monkeypatch.setattr(parts, "load_classifier", lambda build, which: judge)
    for attribute, value in (("NUM_PICTURES", 3), ("STEPS", 2), ("SHOWN", 2)):
        monkeypatch.setattr(measures, attribute, value)
        monkeypatch.setattr(drawing, attribute, value)
    command.variant(name, build=build, start=start, reduced=True)
    run = build / "variants" / name
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["unet"]) for line in lines)
    base, model = inkwash.load(start), inkwash.load(start.with_name(f"start-{name}"))
    extra = {"inpainting": 5, "upscaler": 3, "depth": 1, "class": 0, "layout": 8}[name]
    assert model.unet.config.in_channels == 4 + extra
    first = model.unet.state_dict()["input_blocks.0.0.weight"]
    assert extra == 0 or first[:, 4:].abs().max() > 0  # what is seen besides counts by now
    assert model.hash != base.hash
    for ours, theirs in ((model.autoencoder, base.autoencoder), (text(model), text(base))):
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    command.evaluate_variant(name, build=build, start=start, sheet=build / f"{name}.png")
    figures = json.loads((run / "figures.json").read_text())
    assert figures and all(math.isfinite(value) for group in figures.values() for value in group.values())
    with Image.open(build / f"{name}.png") as sheet:
        assert sheet.width == 2 * 130 + 2


def test_a_variant_starts_as_the_base(labels: Labels) -> None:
    unet = labels.model.unet
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
    t = torch.tensor([10.0, 900.0])
    seen = torch.cat([x, torch.randn(2, 5, 8, 8)], dim=1)
    wide = widened(unet, 5, 7)
    torch.testing.assert_close(wide(seen, t, context, torch.tensor([0, 6])), unet(x, t, context))


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    name: str, labels: Labels, cached: parts.Latents, tmp_path: Path
) -> None:
    def run(*stops: int) -> dict[str, Tensor]:
        folder = tmp_path / str(len(stops))
        for stop in stops:
            torch.manual_seed(0)
            train(variant_task(VARIANTS[name], labels, cached, 2), replace(SHORT, num_steps=stop), folder)
        return load_file(folder / "state.safetensors")

    whole, parted = run(3), run(1, 3)
    assert all(torch.equal(value, parted[key]) for key, value in whole.items())


def test_what_is_seen_is_learned_from(labels: Labels, tmp_path: Path) -> None:
    """A network that sees the answer beside the noise finds it; one that does not, can't."""

    def last_loss(beside: Callable[[Tensor, torch.Generator], Beside], channels: int) -> float:
        torch.manual_seed(0)
        latents = torch.randn(8, 4, 8, 8)
        seen = (latents, torch.zeros_like(latents), torch.zeros(1, 2, 8), [[0]] * 8, torch.ones(8))
        unet = preserve_variance(UNet(replace(labels.model.unet.config, in_channels=4 + channels)))
        task = TextToImageTask(
            unet,
            *seen,
            parts.noise_schedule(),
            8,
            "x0",
            beside=lambda chosen, rng: beside(latents[chosen], rng),
            min_snr_gamma=1e9,
            timestep_power=0.1,
        )
        folder = tmp_path / str(channels)
        train(task, LoopConfig(30, lr=1e-2, warmup_steps=0, log_every=10), folder)
        logs = [json.loads(line)["x0"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert logs[-1] < logs[0]
        return logs[-1]

    assert last_loss(lambda latent, rng: Beside(latent), 4) < 0.5 * last_loss(lambda latent, rng: Beside(), 0)


@pytest.mark.parametrize("shape", masks.SHAPES)
def test_masks_cover_something(shape: Callable[[int, torch.Generator], Tensor]) -> None:
    shares = []
    for seed in range(50):
        mask = shape(64, torch.Generator().manual_seed(seed))
        assert mask.shape == (64, 64) and mask.dtype == torch.bool
        shares.append(mask.float().mean().item())
    assert min(shares) > 0.005
    assert shape is masks.whole or (max(shares) < 1 and len(set(shares)) > 40)
    assert shape is not masks.whole or set(shares) == {1.0}


def test_the_mask_of_an_object_covers_its_box() -> None:
    for seed in range(20):
        mask = masks.around((10, 20, 30, 50), 64, torch.Generator().manual_seed(seed))
        assert mask[20:50, 10:30].all()
        assert not mask[:8].any() and not mask[:, 43:].any()


def test_what_a_mask_hides_is_not_seen(labels: Labels) -> None:
    pixels = labels.pixels(torch.arange(2))
    mask = masks.boxed((16, 32, 72, 96), 128)[None, None].float().expand(2, -1, -1, -1)
    seen = with_hole(labels.model, pixels, mask)
    other = with_hole(labels.model, torch.where(mask.bool(), torch.rand_like(pixels), pixels), mask)
    assert torch.equal(seen, other)
    assert torch.equal(seen[:, 0], mask[:, 0, ::8, ::8])
    outside = with_hole(labels.model, pixels + (1 - mask), mask)
    assert not torch.allclose(seen, outside)


def test_captions_of_object_masks_are_of_pictures_of_that_object(labels: Labels) -> None:
    scenes = [i for i, r in enumerate(labels.records) if r["kind"] == "scene"]
    own = 0
    for seed in range(20):
        seen = VARIANTS["inpainting"].see(labels, torch.tensor(scenes), torch.Generator().manual_seed(seed))
        assert seen.described is not None
        for i, described in zip(scenes, seen.described, strict=True):
            if i != described:
                own += 1
                captions = {caption_alone(one) for one in labels.apart(i)}
                assert captions & set(labels.records[described]["captions"])
    assert own > 10


def test_objects_that_are_apart_touch_nothing(labels: Labels) -> None:
    for i, record in enumerate(labels.records):
        apart = labels.apart(i)
        for one in record["objects"]:
            alone = not any(touch(one["box"], o["box"]) for o in record["objects"] if o is not one)
            assert alone == (one in apart)


def test_layers_are_those_of_the_objects_and_depth_is_their_order(labels: Labels) -> None:
    for i, record in enumerate(labels.records):
        layers = torch.from_numpy(np.array(labels.layers(i)))
        assert set(layers.unique().tolist()) == {0, *(one["layer"] for one in record["objects"])}
        map_ = near(labels, torch.tensor([i]))
        assert map_.shape == (1, 1, 16, 16) and (map_.min(), map_.max()) == (-1, 1)
        there = F.interpolate(map_, size=(128, 128))[0, 0]
        means = [there[layers == k].mean().item() for k in range(len(record["objects"]) + 1)]
        assert means == sorted(means)


def test_noise_levels_run_from_the_picture_to_noise() -> None:
    small, noise = torch.full((3, 3, 4, 4), 0.5), torch.ones(3, 3, 4, 4)
    made = noised(small, torch.tensor([0, 350, 999]), noise)
    signal = (made[:, 0, 0, 0] - (1 - 0.5**2) ** 0.5).tolist()
    assert made[0].mean() == pytest.approx(0.5, abs=0.02)
    assert 0.5 < made[1].mean() < made[2].mean() < 1.1, signal


def test_layouts_hold_each_noun_in_its_box(labels: Labels) -> None:
    objects = [
        {"name": "apple", "colour": None, "box": [0, 0, 64, 64], "layer": 1},
        {"name": "book", "colour": None, "box": [32, 32, 128, 128], "layer": 2},
    ]
    apple, book = (labels.vectors[noun(name)] for name in ("apple", "book"))
    canvas = painted(objects, labels, 16)
    assert torch.equal(canvas[:, 0, 0], apple) and torch.equal(canvas[:, 5, 5], book)  # the upper one hides
    assert not canvas[:, 12, 1].any()
    assert torch.equal(painted(objects[::-1], labels, 16), canvas)


def test_guidance_sees_no_class(labels: Labels) -> None:
    num = len(parts.common_names(labels.data))
    chosen = torch.arange(len(labels.records)).repeat(20)
    vector = VARIANTS["class"].see(labels, chosen, torch.Generator().manual_seed(0)).vector
    assert vector is not None and vector.max() == num and vector.min() >= 0
    for i, number in zip(chosen.tolist(), vector.tolist(), strict=True):
        assert number in (num, parts.common_names(labels.data).index(labels.records[i].get("slug", "apple")))


def test_close_ups_show_the_box() -> None:
    pixels = torch.zeros(1, 3, 128, 128)
    pixels[:, :, 20:76, 40:96] = 1
    cut = measures.close_ups(pixels, [(40, 20, 96, 76)])
    assert cut.shape == (1, 3, 128, 128)
    assert (cut[0, 0] > 0.5).float().mean().item() == pytest.approx((112 / 128) ** 2, abs=0.03)


def test_psnr_within_a_mask_is_that_of_its_pixels() -> None:
    wanted, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1
    made = 0.2 * mask.expand_as(wanted)
    assert measures.psnr_within(made, wanted, mask).item() == pytest.approx(20.0)


def test_an_unknown_variant_is_named(build: Path) -> None:
    with pytest.raises(
        ValueError, match="'outpainting' is not one of inpainting, upscaler, depth, class, layout"
    ):
        command.variant("outpainting", build=build)


def test_a_variant_lies_beside_its_base(start: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(start, tmp_path / "else")
    unet = inkwash.load(start).unet
    with pytest.raises(ValueError, match="does not lie beside"):
        write_unet(Component(unet.config, unet.state_dict()), 64, tmp_path / "a" / "b", moved)


def test_a_drawing_before_another_background_is_its_blend(labels: Labels) -> None:
    for i in (i for i, r in enumerate(labels.records) if r["kind"] == "single"):
        ground = background(128, torch.Generator().manual_seed(i))
        assert ground.shape == (3, 128, 128) and ground.abs().max() <= 1
        made = restaged(labels.pixels(torch.tensor([i]))[0], labels.alpha(i), ground)
        rgba = torch.from_numpy(np.array(labels.drawings[labels.records[i]["objects"][0]["drawing"]])).float()
        blend = torch.lerp(ground, rgba[..., :3].permute(2, 0, 1) / 127.5 - 1, rgba[..., 3] / 255)
        assert (made - blend).abs().max() < 0.01


def test_where_all_is_hidden_a_drawing_stays_on_white(labels: Labels) -> None:
    i = next(i for i, r in enumerate(labels.records) if r["kind"] == "single")
    white = encode(labels.model, labels.pixels(torch.tensor([i])))
    whole = 0
    for seed in range(40):
        seen = VARIANTS["inpainting"].see(labels, torch.tensor([i]), torch.Generator().manual_seed(seed))
        assert seen.latent is not None and seen.concat is not None
        if seen.concat[:, 0].all():
            whole += 1
            torch.testing.assert_close(seen.latent, white, rtol=0.1, atol=0.1)
    assert whole
