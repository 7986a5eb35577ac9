"""Latent diffusion's zoo and DDPM at a small size: single files and folders, and pictures as diffusers draws them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import inkwash
from inkwash.diffusion.noise import NoiseSource
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, PixelConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.conditions import ClassConfig, SemanticConfig
from inkwash.models.unet import UNetConfig
from inkwash.models.wordpiece import WordPiece
from inkwash.pipeline.api import Pipeline
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent, network_of
from inkwash.weights.families import (
    DDPM_CIFAR10,
    FAMILIES,
    LDM_CHURCHES,
    LDM_CIN256,
    LDM_INPAINTING,
    LDM_LAYOUT,
    LDM_SEMANTIC,
    LDM_SR,
    LDM_TEXT,
    LDM_VQ4,
    Family,
    TextTower,
)
from inkwash.weights.inspect import inspect
from inkwash.weights.models.convert import convert, read_checkpoint
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.single import write_single
from inkwash.weights.scheduler import scheduler_json
from tests.models.test_unet import randomise
from tests.pipeline.test_pipelines_parity import psnr

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

VQ = AutoencoderConfig(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, latent_channels=3, scale_factor=1.0, codebook_size=64
)
BERT = BERTConfig(width=64, num_layers=2, num_heads=1)


def small(of: Family, channels: int, context_dim: int | None = None, **fields: object) -> Family:
    """The family with as much of its structure as two levels have."""
    unet: UNetConfig = replace(
        of.unet,
        channels=channels,
        channel_mult=(1, 2),
        num_res_blocks=1,
        transformer_depth=(int(of.unet.transformer_depth[0] > 0), int(max(of.unet.transformer_depth) > 0)),
        transformer_depth_middle=1,
        context_dim=context_dim,
    )
    vae = VQ if of.autoencoder != AutoencoderConfig() else replace(VQ, latent_channels=4, codebook_size=None)
    vae = PixelConfig() if isinstance(of.autoencoder, PixelConfig) else vae
    return replace(of, name=f"small-{of.name}", unet=unet, autoencoder=vae, default_size=16, **fields)


SMALL = {
    f.name: f
    for f in (
        small(LDM_VQ4, 64),
        small(LDM_CHURCHES, 96),
        small(LDM_CIN256, 64, 24, cond_stage=ClassConfig(10, 24)),
        small(LDM_TEXT, 96, 64, text=(TextTower(BERT),)),
        small(LDM_LAYOUT, 64, 64, cond_stage=replace(BERT, vocab_size=90, max_length=11)),
        small(LDM_SR, 64),
        small(LDM_INPAINTING, 64),
        small(LDM_SEMANTIC, 64, cond_stage=SemanticConfig(7, 3)),
        small(DDPM_CIFAR10, 32),
    )
}
IN_DIFFUSERS = ["small-ldm-vq4", "small-ldm-text", "small-ldm-sr", "small-ddpm-cifar10"]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


def random_checkpoint(family: Family) -> Checkpoint:
    def component(config: object) -> Component:
        network: nn.Module = network_of(config)(config)
        randomise(network)
        return Component(config, network.state_dict())

    texts = [component(tower.config) for tower in family.text]
    return Checkpoint(
        unet=component(family.unet),
        autoencoder=component(family.autoencoder),
        text=tuple(TextComponent(text.config, text.tensors, WordPiece.bert()) for text in texts),
        scheduler=scheduler_json("eps", family.betas, beta_schedule=family.beta_schedule),
        default_size=family.default_size,
        files=(),
        cond_stage=component(family.cond_stage) if family.cond_stage else None,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each family a single file, as its authors wrote it."""
    folder = tmp_path_factory.mktemp("zoo")
    made = {}
    for name, family in SMALL.items():
        made[name] = folder / f"{name}.safetensors"
        checkpoint = random_checkpoint(family)
        write_single(checkpoint, made[name])
        extra = {"betas": torch.linspace(0, 1, 5), "scale_factor": torch.tensor(0.25)}
        if family.text:
            head = "cond_stage_model.transformer.to_logits"
            extra |= {f"{head}.bias": torch.ones(30522), f"{head}.weight": torch.ones(30522, 64)}
        if "inpainting" in name:  # whose condition is the first stage itself
            stage = checkpoint.autoencoder.tensors
            extra |= {f"cond_stage_model.{key}": value.clone() for key, value in stage.items()}
        if "churches" not in name:
            del extra["scale_factor"]
        save_file(load_file(made[name]) | extra, made[name])
    return made


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SMALL)
def test_a_single_file_says_what_it_is(files: dict[str, Path], name: str) -> None:
    family, checkpoint, report = SMALL[name], read_checkpoint(files[name]), inspect(files[name])
    assert (report["kind"], report["family"], report["variant"]) == ("checkpoint", name, "base")
    assert report["prediction_type"] == "eps" and report["keys"]["unknown"] == []
    assert checkpoint.unet.config == family.unet
    scale = {"small-ldm-churches": 0.25}.get(name, family.autoencoder.scale_factor)
    assert checkpoint.autoencoder.config == replace(family.autoencoder, scale_factor=scale)
    assert [text.config for text in checkpoint.text] == [tower.config for tower in family.text]
    assert (checkpoint.cond_stage and checkpoint.cond_stage.config) == family.cond_stage
    betas = (checkpoint.scheduler["beta_start"], checkpoint.scheduler["beta_end"])
    assert betas == family.betas and checkpoint.scheduler["beta_schedule"] == family.beta_schedule
    parts = {"unet", "vae", "text_encoder", "cond_stage"} & report["components"].keys()
    assert len(parts) == sum(1 for network in checkpoint.networks if network.tensors)


@pytest.mark.parametrize("name", IN_DIFFUSERS)
def test_there_and_back_is_the_same_file(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    convert(files[name], tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "again.safetensors", "single")
    assert same(load_file(files[name]), load_file(tmp_path / "again.safetensors"))
    convert(tmp_path / "again.safetensors", tmp_path / "folder2", "diffusers")
    for path in tmp_path.glob("folder/*/*.safetensors"):
        assert same(load_file(path), load_file(tmp_path / "folder2" / path.relative_to(tmp_path / "folder")))
    for path in [*tmp_path.glob("folder/*/*.json"), tmp_path / "folder/model_index.json"]:
        other = tmp_path / "folder2" / path.relative_to(tmp_path / "folder")
        assert json.loads(path.read_text()) == json.loads(other.read_text())
    assert inspect(tmp_path / "folder")["family"] == name


@pytest.mark.parametrize("name", [name for name in SMALL if name not in IN_DIFFUSERS])
def test_what_diffusers_has_no_layout_for_is_refused(files: dict, name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="diffusers has no layout|num_heads is 8"):
        convert(files[name], tmp_path / "folder", "diffusers")
    assert not (tmp_path / "folder").exists()
    convert(files[name], tmp_path / "half.safetensors", "single", torch.float16)
    assert read_checkpoint(tmp_path / "half.safetensors").unet.config == SMALL[name].unet


def close(ours: Image.Image, theirs: np.ndarray, most: int = 1) -> None:
    difference = np.abs(np.asarray(ours, dtype=int) - np.rint(theirs * 255).astype(int))
    assert difference.max() <= most and (difference > 0).mean() < 0.02
    assert np.asarray(ours).std() > 5


EULER = {"steps": 8, "sampler": "euler", "schedule": "uniform", "seed": 3}


def test_diffusers_draws_the_same_without_a_prompt(files: dict[str, Path], tmp_path: Path) -> None:
    """The pipeline draws its own noise; so ours is handed to it in place of what it would draw."""
    convert(files["small-ldm-vq4"], tmp_path / "folder", "diffusers")
    pipe = diffusers.LDMPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0
    )
    noise = NoiseSource([3], (3, 8, 8))().float()
    module = "diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.randn_tensor", lambda *args, **options: noise)
        theirs = pipe(num_inference_steps=8, output_type="np").images[0]
    close(inkwash.load(files["small-ldm-vq4"]).text_to_image("", **EULER)[0], theirs)


@torch.no_grad()
def euler(eps: Callable[..., torch.Tensor], scheduler: dict, noise: torch.Tensor, clip: bool) -> torch.Tensor:
    """Eight steps of Euler's method by diffusers' network, which its own pipelines for text and pixels don't offer."""
    scheduler = {key: value for key, value in scheduler.items() if key.startswith("beta")}
    steps = diffusers.EulerDiscreteScheduler(**scheduler, timestep_spacing="linspace")
    steps.set_timesteps(8)
    x = noise * steps.sigmas[0]
    for t, sigma, lower in zip(steps.timesteps, steps.sigmas, steps.sigmas[1:], strict=False):
        x0 = x - sigma * eps(x / (sigma**2 + 1).sqrt(), t)
        x0 = x0.clamp(-1, 1) if clip else x0
        x = x0 + lower / sigma * (x - x0)
    return x


def pixels(made: torch.Tensor) -> np.ndarray:
    return ((made[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).detach().numpy()


def test_diffusers_draws_the_same_of_text(files: dict[str, Path], tmp_path: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    folder = tmp_path / "folder"
    convert(files["small-ldm-text"], folder, "diffusers")
    bert = LDMBertModel.from_pretrained(folder / "bert").eval()
    assert torch.equal(bert.to_logits.bias, torch.ones(30522))
    pipe = diffusers.LDMTextToImagePipeline.from_pretrained(folder, bert=bert, local_files_only=True)
    ids = pipe.tokenizer(["a red squirrel", ""], padding="max_length", max_length=77, return_tensors="pt")
    context = bert(ids.input_ids)[0]

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, uncond = (pipe.unet(x, t, encoder_hidden_states=one[None]).sample for one in context)
        return uncond + 4 * (cond - uncond)

    noise = NoiseSource([3], (4, 8, 8))().float()
    latent = euler(eps, pipe.scheduler.config, noise, clip=False)
    theirs = pixels(pipe.vqvae.decode(latent / pipe.vqvae.config.scaling_factor).sample)
    for path in (files["small-ldm-text"], folder):
        close(inkwash.load(path).text_to_image("a red squirrel", cfg_scale=4, **EULER)[0], theirs)


DDIM = {"steps": 8, "sampler": "ddim", "schedule": "ddim", "seed": 3}


def to_zero(pipe: Any) -> Any:
    """Their DDIM without its last step's end at the first noise level, which ours leaves."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_x(model: Pipeline, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise of seed 3 as these pipelines take it: at the first level's own variance, and not at 1."""
    sigma = float(SCHEDULES["ddim"](8, model.schedule)[0])
    return NoiseSource([3], shape)() * sigma / (1 + sigma**2) ** 0.5


def test_the_pipeline_for_text_draws_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    convert(files["small-ldm-text"], folder := tmp_path / "folder", "diffusers")
    bert = LDMBertModel.from_pretrained(folder / "bert").eval()
    pipe = diffusers.LDMTextToImagePipeline.from_pretrained(folder, bert=bert, local_files_only=True)
    to_zero(pipe)
    model = inkwash.load(folder)
    # it takes every first stage for one of f 8
    options = {"height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 4.0}
    theirs = pipe("a red squirrel", latents=first_x(model, (4, 8, 8)), **options).images[0]
    assert psnr(model.text_to_image("a red squirrel", cfg_scale=4, **DDIM)[0], theirs) >= 60


def test_the_pipeline_for_super_resolution_draws_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    convert(files["small-ldm-sr"], tmp_path / "folder", "diffusers")
    pipe = diffusers.LDMSuperResolutionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    to_zero(pipe)
    model = inkwash.load(tmp_path / "folder")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    x = first_x(model, (3, 32, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{type(pipe).__module__}.randn_tensor", lambda *_, **__: x)
        theirs = pipe(picture, num_inference_steps=8, eta=0.0).images[0]
    assert psnr(model.upscale("", picture, **DDIM)[0], theirs) >= 60


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_diffusers_draws_the_same_pixels(files: dict[str, Path], tmp_path: Path, flat: bool) -> None:
    """Predictions are clipped. flat is how the first published folders are."""
    folder = tmp_path / "folder"
    convert(files["small-ddpm-cifar10"], folder, "diffusers")
    if flat:
        for path in folder.glob("*/*"):
            path.rename(folder / path.name)
        for part in ("unet", "scheduler"):
            (folder / part).rmdir()
    pipe = diffusers.DDPMPipeline.from_pretrained(folder, local_files_only=True)
    noise = NoiseSource([3], (3, 16, 16))().float()
    theirs = euler(lambda x, t: pipe.unet(x, t).sample, pipe.scheduler.config, noise, clip=True)
    model = inkwash.load(folder)
    assert isinstance(model.autoencoder.config, PixelConfig) and model.default_size == 16
    close(model.text_to_image("", **EULER)[0], pixels(theirs))


def test_one_unet_in_a_folder_has_the_schedule_of_ddpm(files: dict[str, Path], tmp_path: Path) -> None:
    convert(files["small-ddpm-cifar10"], tmp_path / "folder", "diffusers")
    alone = inkwash.load(tmp_path / "folder/unet")
    whole = inkwash.load(tmp_path / "folder")
    assert alone.schedule.sigma_max == whole.schedule.sigma_max
    options = {"steps": 3, "seed": 1, "sampler": "euler"}
    a, b = (np.asarray(model.text_to_image("", **options)[0]) for model in (alone, whole))
    assert np.array_equal(a, b)


def test_grey_pictures_of_a_channel(tmp_path: Path) -> None:
    unet = replace(SMALL["small-ddpm-cifar10"].unet, in_channels=1, out_channels=1)
    family = replace(SMALL["small-ddpm-cifar10"], unet=unet, autoencoder=PixelConfig(1), default_size=32)
    write_folder(random_checkpoint(family), tmp_path / "grey")
    image = np.asarray(inkwash.load(tmp_path / "grey").text_to_image("", steps=2)[0])
    assert image.shape == (32, 32, 3) and np.array_equal(image[..., 0], image[..., 2]) and image.std() > 5


def test_pictures_of_a_batch_are_those_drawn_alone(files: dict[str, Path]) -> None:
    model = inkwash.load(files["small-ddpm-cifar10"])
    both = model.text_to_image("", steps=3, seed=5, batch_size=2)
    alone = model.text_to_image("", steps=3, seed=6)[0]
    assert np.abs(np.asarray(both[1], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    assert not np.array_equal(np.asarray(both[0]), np.asarray(both[1]))


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("small-ldm-vq4", "a face", "sees no text"),
        ("small-ldm-cin256", "", "class_label None is not one of"),
        ("small-ldm-layout", "", "needs boxes beside the latent"),
    ],
)
def test_what_it_cannot_draw_by_is_refused(files: dict, name: str, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inkwash.load(files[name]).text_to_image(prompt)


def test_classes_and_labels_are_embedded(files: dict[str, Path]) -> None:
    classes = inkwash.load(files["small-ldm-cin256"])
    with torch.no_grad():
        context = classes.cond_stage(torch.tensor([3, 9]))
    assert context.shape == (2, 1, 24)
    assert torch.equal(context[1, 0], classes.cond_stage.embedding.weight[9])
    with pytest.raises(ValueError, match=r"\[3, 10\] are not all in 0 to 9"):
        classes.cond_stage(torch.tensor([3, 10]))
    labels = inkwash.load(files["small-ldm-semantic"]).cond_stage
    one_hot = torch.zeros(1, 7, 16, 16)
    one_hot[:, 2] = 1
    with torch.no_grad():
        made = labels(one_hot)
    assert made.shape == (1, 3, 4, 4)
    assert torch.allclose(made[0, :, 0, 0], labels.channel_mapper.weight[:, 2, 0, 0])


DAMAGED = {
    "the codebook": ("first_stage_model.quantize.embedding.weight", "lacks|missing|has shape"),
    "a layer of attention": ("model.diffusion_model.middle_block.1.qkv.weight", "of no family|lacks|missing"),
    "the first stage": (
        "first_stage_model.",
        "it has no autoencoder; give each from another file with --part",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_missing_is_named(files: dict[str, Path], what: str, tmp_path: Path) -> None:
    gone, message = DAMAGED[what]
    kept = {k: v for k, v in load_file(files["small-ldm-vq4"]).items() if not k.startswith(gone)}
    save_file(kept, tmp_path / "broken.safetensors")
    with pytest.raises(ModelFileError, match=message):
        inkwash.load(tmp_path / "broken.safetensors")
