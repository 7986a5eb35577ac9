"""Every pipeline draws what diffusers' draws, with the same random weights, noise and noise levels: 60 dB and more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import inkwash
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.files import ModelFileError
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.tasks.depth import estimate_depth
from inkwash.weights.families import SD1, SD2, X4_UPSCALER, Family
from inkwash.weights.models.folder import write_folder
from tests.support.peers import their_pipeline
from tests.weights.test_single_files import SMALL, random_checkpoint, small

diffusers = pytest.importorskip("diffusers")

STEPS, SEED, SIDE = 6, 3, 32
OURS = {"steps": STEPS, "seed": SEED, "sampler": "euler", "schedule": "uniform"}
PLAIN = SMALL["small-sd1"]


def sees(family: Family, channels: int) -> Family:
    return replace(family, unet=replace(family.unet, in_channels=channels))


UPSCALER = small(replace(X4_UPSCALER, unet=replace(X4_UPSCALER.unet, only_cross_attention=None)), (0, 1))
UPSCALER = replace(UPSCALER, unet=replace(UPSCALER.unet, only_cross_attention=(False, True)))
VARIANTS = {
    "plain": PLAIN,
    "inpainting": sees(PLAIN, 9),
    "depth": sees(small(SD2, (1, 1)), 5),
    "instructions": sees(small(SD1, (1, 0)), 8),
    "upscaler": UPSCALER,
    "sdxl": SMALL["small-sdxl"],
    "refiner": SMALL["small-sdxl-refiner"],
}


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    for name, family in VARIANTS.items():
        write_folder(random_checkpoint(family, family.prediction or "eps"), module_path / name)
    return {name: module_path / name for name in VARIANTS}


@pytest.fixture
def theirs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A pipeline of diffusers, its random numbers replaced by these draws, its posteriors by their means."""

    def make(kind: str, name: str, draws: list[Tensor], **parts: Any) -> Any:
        return their_pipeline(monkeypatch, folders[name], kind, draws, **parts)

    return make


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (220, 210, 190))
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 6, 20, 24), fill=(200, 40, 30))
    draw.rectangle((16, 14, 30, 30), fill=(20, 60, 160))
    return image


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    made = Image.new("L", (SIDE, SIDE))
    made.paste(255, (8, 8, 24, 20))
    return made


def first(shape: tuple[int, ...] = (4, SIDE // 2, SIDE // 2)) -> Tensor:
    return NoiseSource([SEED], shape)()


def psnr(ours: Image.Image, theirs: Image.Image, where: Image.Image | None = None) -> float:
    assert ours.size == theirs.size
    a, b = (np.asarray(image, dtype=float) for image in (ours, theirs))
    inside = slice(None) if where is None else np.asarray(where) > 0
    assert a[inside].std() > 5  # a picture, and not a colour
    return 10 * np.log10(255**2 / max(np.square(a - b)[inside].mean(), 1e-9))


PROMPTS = {"prompt": "a red taxi in the rain", "negative_prompt": "blurry"}
THEIRS = PROMPTS | {"num_inference_steps": STEPS, "guidance_scale": 4.0}


def load(folders: dict[str, Path], name: str) -> Pipeline:
    return inkwash.load(folders[name])


def test_text_to_image(folders: dict[str, Path], theirs: Callable) -> None:
    pipe = theirs("StableDiffusionPipeline", "plain", [])
    wanted = pipe(**THEIRS, latents=first(), width=SIDE, height=SIDE).images[0]
    made = load(folders, "plain").text_to_image(**PROMPTS, cfg_scale=4, **OURS)[0]
    assert psnr(made, wanted) >= 60


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_image_to_image(
    folders: dict[str, Path], theirs: Callable, picture: Image.Image, strength: float
) -> None:
    pipe = theirs("StableDiffusionImg2ImgPipeline", "plain", [first()])
    wanted = pipe(**THEIRS, image=picture, strength=strength).images[0]
    options = OURS | {"strength": strength, "step_rule": "diffusers"}
    made = load(folders, "plain").image_to_image(image=picture, **PROMPTS, cfg_scale=4, **options)[0]
    assert psnr(made, wanted) >= 60


@pytest.mark.parametrize(("name", "strength"), [("plain", 0.7), ("inpainting", 0.7), ("inpainting", 1.0)])
def test_inpaint(
    folders: dict[str, Path],
    theirs: Callable,
    picture: Image.Image,
    mask: Image.Image,
    name: str,
    strength: float,
) -> None:
    pipe = theirs("StableDiffusionInpaintPipeline", name, [first()])
    sizes = {"width": SIDE, "height": SIDE}
    wanted = pipe(**THEIRS, image=picture, mask_image=mask, strength=strength, **sizes).images[0]
    options = OURS | {"strength": strength, "step_rule": "diffusers", "mask_blur": 0}
    made = load(folders, name).inpaint(image=picture, mask=mask, **PROMPTS, cfg_scale=4, **options)[0]
    assert psnr(made, wanted, mask) >= 60
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(made)[outside], np.asarray(picture)[outside])


def test_an_inpainting_model_draws_from_words_as_with_a_whole_mask(
    folders: dict[str, Path], theirs: Callable, picture: Image.Image
) -> None:
    pipe = theirs("StableDiffusionInpaintPipeline", "inpainting", [first()])
    whole = Image.new("L", picture.size, 255)
    wanted = pipe(**THEIRS, image=picture, mask_image=whole, strength=1.0, width=SIDE, height=SIDE).images[0]
    made = load(folders, "inpainting").text_to_image(**PROMPTS, cfg_scale=4, **OURS)[0]
    assert psnr(made, wanted) >= 60


def test_depth_to_image(folders: dict[str, Path], theirs: Callable, picture: Image.Image) -> None:
    values = torch.linspace(0, 9, SIDE * SIDE).view(SIDE, SIDE).sin()
    parts = {"depth_estimator": None, "feature_extractor": None}
    pipe = theirs("StableDiffusionDepth2ImgPipeline", "depth", [first()], **parts)
    wanted = pipe(**THEIRS, image=picture, depth_map=values[None], strength=0.8).images[0]
    options = OURS | {"strength": 0.8, "step_rule": "diffusers", "cfg_scale": 4}
    depth = Image.fromarray(values.numpy())
    made = load(folders, "depth").depth_to_image(image=picture, depth=depth, **PROMPTS, **options)[0]
    assert psnr(made, wanted) >= 60


def test_instruct(folders: dict[str, Path], theirs: Callable, picture: Image.Image) -> None:
    pipe = theirs("StableDiffusionInstructPix2PixPipeline", "instructions", [])
    wanted = pipe(**THEIRS, image=picture, image_guidance_scale=1.7, latents=first()).images[0]
    options = OURS | {"image_cfg_scale": 1.7, "cfg_scale": 4}
    made = load(folders, "instructions").instruct(image=picture, **PROMPTS, **options)[0]
    assert psnr(made, wanted) >= 60


def test_upscale(folders: dict[str, Path], theirs: Callable, picture: Image.Image) -> None:
    augmentation = NoiseSource([mixed(SEED, -1)], (3, SIDE, SIDE))()
    low = diffusers.DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
    parts = {"low_res_scheduler": low, "max_noise_level": 350}
    pipe = theirs("StableDiffusionUpscalePipeline", "upscaler", [augmentation], **parts)
    noise = first((4, SIDE, SIDE))
    wanted = pipe(**THEIRS, image=picture, noise_level=35, latents=noise).images[0]
    made = load(folders, "upscaler").upscale(image=picture, **PROMPTS, noise_level=35, cfg_scale=4, **OURS)[0]
    assert made.size == (2 * SIDE, 2 * SIDE)
    assert psnr(made, wanted) >= 60


@pytest.fixture
def cascade(folders: dict[str, Path]) -> Pipeline:
    return inkwash.load(folders["sdxl"], refiner=folders["refiner"])


def test_the_refiner_takes_over(folders: dict[str, Path], theirs: Callable, cascade: Pipeline) -> None:
    base = theirs("StableDiffusionXLPipeline", "sdxl", [])
    refiner = theirs("StableDiffusionXLImg2ImgPipeline", "refiner", [], requires_aesthetics_score=True)
    refiner.vae = base.vae
    sizes = {"width": SIDE, "height": SIDE}
    latent = base(**THEIRS, **sizes, latents=first(), denoising_end=0.6, output_type="latent").images
    wanted = refiner(
        **THEIRS, image=latent, denoising_start=0.6, original_size=(SIDE, SIDE), target_size=(SIDE, SIDE)
    ).images[0]
    made = cascade.text_to_image(**PROMPTS, cfg_scale=4, refiner_switch_at=0.6, **OURS)[0]
    assert psnr(made, wanted) >= 60
    alone = inkwash.load(folders["sdxl"]).text_to_image(**PROMPTS, cfg_scale=4, **OURS)[0]
    assert psnr(made, alone) < 40


def test_the_refiner_goes_over_the_finished_picture(
    folders: dict[str, Path], theirs: Callable, cascade: Pipeline
) -> None:
    source = NoiseSource([SEED], (4, SIDE // 2, SIDE // 2))
    noise, again = source(), source()
    base = theirs("StableDiffusionXLPipeline", "sdxl", [])
    refiner = theirs("StableDiffusionXLImg2ImgPipeline", "refiner", [again], requires_aesthetics_score=True)
    refiner.vae = base.vae
    sizes = {"width": SIDE, "height": SIDE}
    latent = base(**THEIRS, **sizes, latents=noise, output_type="latent").images
    wanted = refiner(**THEIRS, image=latent, strength=0.5).images[0]
    made = cascade.text_to_image(**PROMPTS, cfg_scale=4, refiner_strength=0.5, **OURS)[0]
    assert psnr(made, wanted) >= 60


@pytest.mark.parametrize("size", [(64, 96), (90, 50)])
def test_depth_anything_sees_what_transformers_does(tmp_path: Path, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    backbone = transformers.Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    network.save_pretrained(tmp_path)
    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_pad=False,
    )
    processor.save_pretrained(tmp_path)
    shape = (size[1], size[0], 3)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    seen = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = Image.fromarray(network(seen).predicted_depth[0].numpy())
    made = estimate_depth(image, tmp_path)
    wanted = wanted.resize(size, Image.Resampling.BICUBIC)
    assert np.asarray(wanted).std() > 0
    np.testing.assert_allclose(np.asarray(made), np.asarray(wanted), rtol=1e-3, atol=1e-4)


def test_a_folder_of_another_network_estimates_no_depth(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelFileError, match="its model_type is bert; dpt, depth_anything are"):
        estimate_depth(picture, tmp_path)


def test_depth_is_estimated_as_transformers_does(tmp_path: Path, picture: Image.Image) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    torch.manual_seed(0)
    network = transformers.DPTForDepthEstimation(config).eval()
    network.save_pretrained(tmp_path)
    pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        wanted = Image.fromarray(network(pixels).predicted_depth[0].numpy())
    made = estimate_depth(picture, tmp_path)
    assert (made.size, made.mode) == (picture.size, "F")
    wanted = wanted.resize(picture.size, Image.Resampling.BICUBIC)
    assert np.asarray(wanted).std() > 0
    np.testing.assert_allclose(np.asarray(made), np.asarray(wanted), rtol=1e-4, atol=1e-6)
