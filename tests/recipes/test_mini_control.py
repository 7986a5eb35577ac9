"""A ControlNet of edges is trained on a handful of drawings, written, opened and measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import distance_transform_cdt

import inkwash
from inkwash.adapters.control import open_control
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.controlnet import ControlNet
from inkwash.models.unet import UNetConfig
from inkwash.pipeline.controls import Control
from inkwash.weights.checkpoint import Component
from inkwash.weights.families import SD1
from inkwash.weights.models.folder import read_folder, write_folder
from recipes.mini import control, drawing, evaluate_control, parts
from recipes.mini.labels import Labels
from tests.recipes.test_mini_world import prepare, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A build folder with a small world, and the tiny model for pictures of its size as `start`."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "data").mkdir()
    prepare(folder / "data")
    for split in ("train", "heldout"):
        write(folder / "data", split, 0)
    config = AutoencoderConfig(channels=4, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=1)
    torch.manual_seed(0)
    autoencoder = Component(config, AutoencoderKL(config).state_dict())
    write_folder(
        replace(read_folder(tiny), autoencoder=autoencoder, default_size=128, texts={}), folder / "start"
    )
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    control.train(build=folder, start=folder / "start", out=folder / "canny-net", steps=3, batch=2, lr=1e-3)
    return folder / "canny-net"


def test_it_is_trained_written_and_opened(folder: Path, trained: Path) -> None:
    lines = [json.loads(line) for line in (folder / "canny/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3] and math.isfinite(lines[0]["loss"])
    model = inkwash.load(folder / "start")
    network = open_control(trained, model)
    assert isinstance(network, ControlNet)
    assert network.zero_convs[0][0].weight.abs().max() > 0  # it has learnt
    other = ControlNetModel.from_pretrained(trained)
    assert sum(p.numel() for p in other.parameters()) == control.num_parameters(network)
    hint = Image.new("RGB", (128, 128))
    drawn = [
        model.text_to_image("an apple", steps=2, controls=[Control(file=trained, image=hint, weight=weight)])
        for weight in (0, 2)
    ]
    assert drawn[0][0].tobytes() != drawn[1][0].tobytes()


def test_it_is_measured(folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, value in (
        (drawing, "NUM_PICTURES", 3),
        (evaluate_control, "NUM_PICTURES", 3),
        (drawing, "STEPS", 2),
        (drawing, "SHOWN", 2),
    ):
        monkeypatch.setattr(where, name, value)
    evaluate_control.evaluate(build=folder, start=folder / "start", out=trained, sheet=folder / "sheet.png")
    figures = json.loads((folder / "canny/figures.json").read_text())
    assert figures.keys() == {"scenes", "drawings"}
    for group in figures.values():
        assert group["real"]["edge_overlap"] == 1
        assert all(0 <= v <= 1 for who in ("with", "without", "real") for v in group[who].values())
    card = (trained / "README.md").read_text()
    assert "3 steps of 2" in card and f"| {figures['scenes']['with']['edge_overlap']:.2f} |" in card
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width == 2 * 130 + 2


def test_it_starts_as_the_base_and_only_it_learns(folder: Path) -> None:
    model = parts.open_base(folder / "start", "cpu")
    seen = control.see(Labels(folder / "data", "train", model), folder, 3, torch.Generator().manual_seed(0))
    network = ControlNet.start(control.small_enough(model.unet.config), model.unet)
    rng = torch.Generator().manual_seed(1)
    latent, hint, tokens = seen.batch(4, 0.5, rng)
    t = torch.tensor([1.0, 300, 700, 999])
    with torch.no_grad():
        residuals = network(latent, t, hint, tokens.float())
        alone = model.unet(latent, t, tokens.float())
        both = model.unet(latent, t, tokens.float(), control=residuals)
    assert torch.equal(alone, both)
    loss = control.loss_of(model, network, model.schedule, seen, replace(control.FULL, batch=4), rng)
    loss.backward()
    assert network.zero_convs[0][0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.unet.parameters())


def texts_of(seen: control.Seen, i: int) -> list[int]:
    return seen.choices.table[i, : seen.choices.counts[i]].tolist()


def test_batches_hold_what_belongs_together(folder: Path) -> None:
    model = parts.open_base(folder / "start", "cpu")
    labels = Labels(folder / "data", "train", model)
    seen = control.see(labels, folder, None, torch.Generator().manual_seed(0))
    assert len(seen.means) == len(labels.records)
    bare = replace(seen, stds=torch.zeros_like(seen.stds))
    latent, hint, tokens = bare.batch(16, 0.25, torch.Generator().manual_seed(3))
    for one, edges, text in zip(latent, hint, tokens, strict=True):
        found = (bare.means.float() == one).flatten(1).all(1).nonzero().flatten().tolist()
        assert all(torch.equal(bare.hints[i].float().expand(3, -1, -1), edges) for i in found)
        rows = {0}.union(*(texts_of(seen, i) for i in found))
        assert found and any(torch.equal(text, seen.texts[row]) for row in rows)
    none = bare.batch(4, 1.0, torch.Generator().manual_seed(3))[2]
    assert all(torch.equal(text, seen.texts[0]) for text in none)


def test_cached_latents_are_taken_where_they_are_the_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parts.open_base(folder / "start", "cpu")
    labels = Labels(folder / "data", "train", model)
    seen = control.see(labels, folder, 5, torch.Generator().manual_seed(0))
    rows = torch.randperm(len(labels.records), generator=torch.Generator().manual_seed(0))
    num = len(labels.records)
    marks = torch.arange(num).view(-1, 1, 1, 1).expand(num, 4, 16, 16).bfloat16()
    texts = torch.randn(num + 1, 77, 8).bfloat16()
    cached = (marks, torch.zeros_like(marks), texts, [[i + 1] for i in range(num)], torch.ones(num))
    monkeypatch.setattr(control, "load_latents", lambda build: cached)
    for scale, used in ((model.autoencoder.config.scale_factor, True), (0.5, False)):
        metadata = {"scale_factor": repr(scale)}
        save_file({"means": marks.contiguous()}, tmp_path / "latents.safetensors", metadata=metadata)
        found = control.see(labels, tmp_path, 5, torch.Generator().manual_seed(0))
        assert torch.equal(found.hints, seen.hints)
        assert torch.equal(found.means, marks[rows[:5]] if used else seen.means)
        assert (
            found.choices.table[:, 0].tolist()
            == (rows[:5] + 1 if used else seen.choices.table[:, 0]).tolist()
        )


def test_edges_are_opencvs(folder: Path) -> None:
    labels = Labels(folder / "data", "heldout", parts.open_base(folder / "start", "cpu"))
    pixels = labels.pixels(torch.arange(2))
    for one, edges in zip(labels.pictures.images[labels.rows[:2]], control.edges_of(pixels), strict=True):
        wanted = cv2.Canny(np.ascontiguousarray(one), 100, 200) > 0
        assert (edges[0].numpy() != wanted).mean() < 0.002


def test_edge_overlap_is_that_of_distances() -> None:
    random = torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    made, wanted = random > 0.97, random.roll(3, 0).roll(2, 3) > 0.96
    for a, b, found in zip(made, wanted, evaluate_control.edge_overlap(made, wanted), strict=True):
        near = [distance_transform_cdt(~x[0].numpy(), "chessboard") <= 2 for x in (a, b)]
        precision, recall = near[1][a[0].numpy()].mean(), near[0][b[0].numpy()].mean()
        assert found.item() == pytest.approx(2 * precision * recall / (precision + recall))
    nothing = torch.zeros_like(made)
    assert evaluate_control.edge_overlap(nothing, wanted).tolist() == [0, 0, 0]


def test_the_largest_that_fits_is_taken() -> None:
    mini = UNetConfig(8, 8, 96, (1, 2, 2), 1, (0, 1, 1), 1, context_dim=256, num_heads=None, head_dim=64)
    assert control.small_enough(replace(mini, channels=32)).unet.transformer_depth == (0, 1, 1)
    assert control.small_enough(mini).unet.transformer_depth == (0, 0, 0)
    assert control.small_enough(SD1.unet).unet.transformer_depth_middle is None


def test_the_rate_falls_to_0_by_steps_or_time() -> None:
    r = control.FULL
    assert r.lr_at(0, 0) == pytest.approx(r.lr / r.warmup_steps)
    assert r.lr_at(10_000, 0.5) == pytest.approx(r.lr / 2) and r.lr_at(10_000, 1) == pytest.approx(0)
