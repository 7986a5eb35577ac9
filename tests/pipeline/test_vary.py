"""A picture's meaning drawn again, as Stable unCLIP and SD1 image variations do in diffusers: 60 dB and more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import inkwash
from inkwash.cli import main
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVisionConfig
from inkwash.models.conditions import PictureConfig, PictureEmbedder
from inkwash.pipeline.images import to_clip
from inkwash.pipeline.tasks.vary import between
from inkwash.weights.checkpoint import Checkpoint, Component
from inkwash.weights.families import FAMILIES, UNCLIP_H
from inkwash.weights.inspect import inspect
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import write_folder
from tests.models.test_unet import randomise
from tests.pipeline.test_pipelines_parity import psnr
from tests.support.peers import their_pipeline
from tests.weights.test_single_files import SMALL, random_checkpoint, small, tensors_of

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SEED, SIDE, STEPS = 3, 32, 4
OURS = {"seed": SEED, "steps": STEPS, "sampler": "euler", "schedule": "uniform", "cfg_scale": 4.0}
EYE = CLIPVisionConfig(
    width=64,
    num_layers=2,
    num_heads=1,
    mlp_width=128,
    image_size=28,
    patch_size=14,
    activation="gelu",
    projection_dim=64,
)
UNCLIP = small(UNCLIP_H, (1, 1))
UNCLIP = replace(
    UNCLIP,
    unet=replace(UNCLIP.unet, vector_dim=128, image_vector=True),
    cond_stage=PictureConfig(EYE),
    prediction="eps",
    default_size=SIDE,
)
PICTURES = [
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((50, 41))
    for k in range(2)
]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, UNCLIP.name, UNCLIP)
    monkeypatch.setitem(FAMILIES, "small-sd1", SMALL["small-sd1"])


def seeing(checkpoint: Checkpoint, config: PictureConfig) -> Checkpoint:
    stage = PictureEmbedder(config)
    randomise(stage)
    return replace(checkpoint, cond_stage=Component(config, stage.state_dict()))


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    write_folder(seeing(random_checkpoint(UNCLIP), PictureConfig(EYE)), module_path / "unclip")
    # its context is a picture's vector, as wide as its text was
    silent = replace(random_checkpoint(SMALL["small-sd1"]), text=())
    write_folder(seeing(silent, PictureConfig(EYE, noised=False)), module_path / "variations")
    return {name: module_path / name for name in ("unclip", "variations")}


@pytest.fixture
def theirs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Image.Image]:
    def draw(kind: str, name: str, *draws: Tensor, **options: Any) -> Image.Image:
        pipe = their_pipeline(monkeypatch, folders[name], kind, list(draws))
        first = NoiseSource([SEED], (4, SIDE // 2, SIDE // 2))()
        if kind == "StableUnCLIPImg2ImgPipeline":  # which scales only what it draws itself
            first = first * pipe.scheduler.init_noise_sigma
        options = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "latents": first} | options
        return pipe(**options, width=SIDE, height=SIDE).images[0]

    return draw


@pytest.mark.parametrize("level", [0, 300])
def test_unclip(folders: dict[str, Path], theirs: Callable[..., Image.Image], level: int) -> None:
    noise = NoiseSource([mixed(SEED, -1)], (64,))()
    words = {"prompt": "a red taxi", "negative_prompt": "rain"}
    kind = "StableUnCLIPImg2ImgPipeline"
    wanted = theirs(kind, "unclip", noise, image=PICTURES[0], noise_level=level, **words)
    model = inkwash.load(folders["unclip"])
    made = model.vary(PICTURES[0], noise_level=level, **words, **OURS)[0]
    assert psnr(made, wanted) >= 60
    assert psnr(model.vary(PICTURES[1], noise_level=level, **words, **OURS)[0], wanted) < 50


def test_image_variations(folders: dict[str, Path], theirs: Callable[..., Image.Image]) -> None:
    wanted = theirs("StableDiffusionImageVariationPipeline", "variations", image=PICTURES[0])
    assert psnr(inkwash.load(folders["variations"]).vary(PICTURES[0], **OURS)[0], wanted) >= 60


@pytest.mark.parametrize("size", [(50, 41), (41, 50), (28, 28), (9, 31)])
def test_pictures_are_prepared_as_transformers_does(size: tuple[int, int]) -> None:
    image = PICTURES[0].resize(size)
    wanted = transformers.CLIPImageProcessor(size=28, crop_size=28)(
        images=image, return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(to_clip(image, 28), wanted, rtol=0, atol=1e-5)


def test_between_two_pictures_the_ends_are_the_pictures(folders: dict[str, Path]) -> None:
    model = inkwash.load(folders["variations"])
    alone = [np.asarray(model.vary(picture, **OURS)[0], float) for picture in PICTURES]
    first, second, middle = (
        np.asarray(model.vary(*PICTURES, mix=mix, **OURS)[0], float) for mix in (0.0, 1.0, 0.5)
    )
    assert abs(first - alone[0]).max() <= 1 and abs(second - alone[1]).max() <= 1
    assert min(abs(middle - other).mean() for other in alone) > 1


def test_the_way_between_vectors_is_along_the_sphere() -> None:
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(between(first, second, 0.5), torch.full((1, 2), 2**0.5))
    torch.testing.assert_close(between(first, 3 * first, 0.5), 2 * first)


@pytest.mark.parametrize("name", ["unclip", "variations"])
def test_a_single_file_and_back_draws_the_same(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    convert(folders[name], tmp_path / "one.safetensors", "single")
    convert(tmp_path / "one.safetensors", tmp_path / "again", "diffusers")
    a, b = tensors_of(folders[name]), tensors_of(tmp_path / "again")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    drawn = [
        inkwash.load(path).vary(PICTURES[0], **OURS)[0]
        for path in (folders[name], tmp_path / "one.safetensors")
    ]
    assert psnr(*drawn) >= 60


@pytest.mark.parametrize("name", ["unclip", "variations"])
def test_single_files_of_other_programs_are_known(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Such a file has no description of a folder, and what is left of CLIP's text tower beside its eyes."""
    from safetensors.torch import save_file

    convert(folders[name], tmp_path / "one.safetensors", "single")
    tensors = load_file(tmp_path / "one.safetensors")
    prefix = "cond_stage_model.model" if name == "variations" else "embedder.model"
    tensors |= {f"{prefix}.ln_final.weight": torch.ones(4), f"{prefix}.logit_scale": torch.ones(())}
    save_file(tensors, tmp_path / "plain.safetensors")
    model = inkwash.load(tmp_path / "plain.safetensors")
    assert model.inputs.needed == "picture"
    made = model.vary(PICTURES[0], **OURS)[0]
    wanted = inkwash.load(folders[name]).vary(PICTURES[0], **OURS)[0]
    assert psnr(made, wanted) >= 60
    report = inspect(tmp_path / "plain.safetensors")
    assert (
        report["missing"] == [] and report["keys"]["unknown"] == [] and "cond_stage" in report["components"]
    )


def test_what_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    unclip, variations = (inkwash.load(folders[name]) for name in ("unclip", "variations"))
    with pytest.raises(ValueError, match="noise_level 3: variations is not told of noise"):
        variations.vary(PICTURES[0], noise_level=3)
    with pytest.raises(ValueError, match="sees no text"):
        variations.vary(PICTURES[0], prompt="a taxi")
    with pytest.raises(ValueError, match=r"mix 0\.3: there is no second picture"):
        variations.vary(PICTURES[0], mix=0.3)
    with pytest.raises(ValueError, match="use vary"):
        unclip.text_to_image("a taxi")
    with pytest.raises(ValueError, match="vary needs a model that sees what CLIP sees"):
        inkwash.load("mini").vary(PICTURES[0])
    broken = tmp_path / "broken"
    convert(folders["unclip"], broken, "diffusers")
    scheduler = broken / "image_noising_scheduler" / "scheduler_config.json"
    scheduler.write_text('{"beta_schedule": "linear"}')
    with pytest.raises(ModelFileError, match="beta_schedule is 'linear'"):
        inkwash.load(broken)


def test_the_command_line_draws_and_replays(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for k, picture in enumerate(PICTURES):
        picture.save(f"{k}.png")
    options = ["--model", str(folders["variations"]), "--steps", "2", "--seed", "1"]
    assert main(["vary", "0.png", "--second", "1.png", "--mix", "0.4", *options, "--output", "a.png"]) == 0
    assert main(["vary", "0.png", *options, "--output", "b.png"]) == 0
    for name in ("a", "b"):
        model = ["--model", str(folders["variations"])]
        assert main(["replay", f"{name}.png", *model, "--output", f"{name}2.png"]) == 0
        assert Path(f"{name}.png").read_bytes() == Path(f"{name}2.png").read_bytes()
