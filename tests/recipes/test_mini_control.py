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
from recipes.mini.fast import Captioned
from recipes.mini.labels import Labels
from recipes.mini.pictures import load_pictures
from tests.recipes.test_mini_world import prepare, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(module_path: Path, tiny: Path) -> Path:
    """A build folder with a small world, and the tiny model for pictures of its size as `start`."""
    (module_path / "data").mkdir()
    prepare(module_path / "data")
    for split in ("train", "heldout"):
        write(module_path / "data", split, 0)
    config = AutoencoderConfig(channels=4, channel_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=1)
    torch.manual_seed(0)
    autoencoder = Component(config, AutoencoderKL(config).state_dict())
    write_folder(
        replace(read_folder(tiny), autoencoder=autoencoder, default_size=128, texts={}), module_path / "start"
    )
    return module_path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    parts.cache_latents(folder, "f8c8", "cpu", folder / "start")
    control.train(build=folder, start=folder / "start", out=folder / "canny-net", steps=3, batch=2, lr=1e-3)
    return folder / "canny-net"


def test_it_is_trained_written_and_opened(folder: Path, trained: Path) -> None:
    lines = [json.loads(line) for line in (folder / "canny/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3] and math.isfinite(lines[0]["network"])
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


def seen_of(folder: Path) -> tuple[Captioned, torch.Tensor]:
    cpu = torch.device("cpu")
    data = Captioned(parts.load_latents(folder), cpu)
    return data, control.all_edges(load_pictures(folder / "data", "train"), cpu)


def test_it_starts_as_the_base_and_only_it_learns(folder: Path, trained: Path) -> None:
    model = parts.open_base(folder / "start", "cpu")
    data, edges = seen_of(folder)
    network = ControlNet.start(control.small_enough(model.unet.config), model.unet)
    torch.manual_seed(1)
    pictures, rows = data.draw(4, 0.5)
    latent, hint, tokens = data.latents(pictures), control.as_hint(edges[pictures]), data.contexts[rows]
    t = torch.tensor([1.0, 300, 700, 999])
    with torch.no_grad():
        residuals = network(latent, t, hint, tokens.float())
        alone = model.unet(latent, t, tokens.float())
        both = model.unet(latent, t, tokens.float(), control=residuals)
    assert torch.equal(alone, both)
    loss = control.loss_of(model, network, model.schedule, data, edges, 4)
    loss.backward()
    assert network.zero_convs[0][0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.unet.parameters())


def test_edges_lie_beside_their_latents(folder: Path, trained: Path) -> None:
    data, edges = seen_of(folder)
    labels = Labels(folder / "data", "train", parts.open_base(folder / "start", "cpu"))
    assert len(data.means) == len(edges) == len(labels.records)
    rows = torch.arange(len(edges))
    assert torch.equal(edges, control.edges_of(labels.pixels(rows)))
    with torch.inference_mode():
        means = labels.model.autoencoder.encode(labels.pixels(rows)).mean
    torch.testing.assert_close(data.means.float(), means, rtol=0.05, atol=0.05)


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


def test_a_stopped_training_goes_on_as_if_it_was_not(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"start": folder / "start", "batch": 2, "lr": 1e-3, "steps": 3, "out": folder / "two"}
    stopped, loss_of = folder / "stopped", control.loss_of
    stopped.mkdir()
    for name in ("data", "latents.safetensors"):
        (stopped / name).symlink_to(folder / name)
    left = iter([True, True])
    monkeypatch.setattr(control, "TRAINING", replace(control.TRAINING, save_every=1))
    monkeypatch.setattr(control, "loss_of", lambda *args: next(left) and loss_of(*args))
    with pytest.raises(RuntimeError, match="StopIteration"):
        control.train(build=stopped, **given)
    monkeypatch.setattr(control, "loss_of", loss_of)
    control.train(build=stopped, **given)
    one, two = (next(path.glob("*.safetensors")).read_bytes() for path in (trained, folder / "two"))
    assert one == two
