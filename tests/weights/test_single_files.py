"""Single files of every family at a small size: opened, converted both ways, and drawn as diffusers draws them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import inkwash
from inkwash.cli import main
from inkwash.diffusion.noise import NoiseSource
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent
from inkwash.weights.families import FAMILIES, REFINER, SD1, SD2, SDXL, Family, TextTower
from inkwash.weights.inspect import inspect
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import read_folder, write_folder
from inkwash.weights.models.single import read_single, write_single
from inkwash.weights.scheduler import scheduler_json
from tests.models.test_unet import randomise

VAE = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1)
SHAPE = {"channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "transformer_depth_middle": 1}


def tower(of: TextTower) -> TextTower:
    projection = 64 if of.config.projection_dim else None
    config = replace(of.config, width=64, num_layers=3, num_heads=1, mlp_width=128, projection_dim=projection)
    return replace(of, config=config)


def small(of: Family, depth: tuple[int, int]) -> Family:
    towers = tuple(map(tower, of.text))
    vector_dim = 64 + of.sizes * 256 if of.sizes else None
    unet = replace(
        of.unet, **SHAPE, transformer_depth=depth, context_dim=64 * len(towers), vector_dim=vector_dim
    )
    scale = of.autoencoder.scale_factor
    return replace(
        of,
        name=f"small-{of.name}",
        unet=unet,
        autoencoder=replace(VAE, scale_factor=scale),
        text=towers,
        default_size=32,
    )


SMALL = {
    f.name: f for f in (small(SD1, (1, 0)), small(SD2, (1, 1)), small(SDXL, (0, 1)), small(REFINER, (1, 0)))
}


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


def random_checkpoint(family: Family, prediction: str = "eps") -> Checkpoint:
    def component(network: nn.Module) -> Component:
        randomise(network)
        return Component(network.config, network.state_dict())  # type: ignore[arg-type]

    texts = []
    for of in family.text:
        made = component(CLIPText(of.config))
        texts.append(TextComponent(of.config, made.tensors, Tokenizer.clip(of.pad), of.skip, of.final_norm))
    return Checkpoint(
        unet=component(UNet(family.unet)),
        autoencoder=component(AutoencoderKL(family.autoencoder)),
        text=tuple(texts),
        scheduler=scheduler_json(prediction),
        default_size=family.default_size,
        files=(),
        sizes=family.sizes,
        zero_empty=family.zero_empty,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Of each family a single file, as its authors wrote them, and the folder of the same model."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, family in SMALL.items():
        single, multiple = folder / f"{name}.safetensors", folder / name
        checkpoint = random_checkpoint(family)
        write_folder(checkpoint, multiple)
        write_single(checkpoint, single)
        extra = {
            "betas": torch.linspace(0, 1, 5),
            "model_ema.decay": torch.tensor(0.9),
            "first_stage_model.loss.logvar": torch.zeros(1),
        }
        mark = {"modelspec.prediction_type": "epsilon", "modelspec.title": "a small one"}
        save_file(load_file(single) | extra, single, metadata=mark)
        made[name] = single, multiple
    return made


def tensors_of(path: Path) -> dict[str, Tensor]:
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    return {
        f"{file.parent.name if path.is_dir() else ''}:{k}": v
        for file in files
        for k, v in load_file(file).items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


@pytest.mark.parametrize("name", SMALL)
def test_there_and_back_is_the_same_file(files: dict, name: str, tmp_path: Path) -> None:
    single, _ = files[name]
    report = convert(single, tmp_path / "folder", "diffusers")
    assert {"betas", "model_ema.decay", "first_stage_model.loss.logvar"} <= set(report.kept)
    convert(tmp_path / "folder", tmp_path / "again.safetensors", "single")
    assert same(tensors_of(single), tensors_of(tmp_path / "again.safetensors"))
    assert read_single(tmp_path / "again.safetensors").metadata == read_single(single).metadata


@pytest.mark.parametrize("name", SMALL)
def test_back_and_there_is_the_same_folder(files: dict, name: str, tmp_path: Path) -> None:
    _, folder = files[name]
    convert(folder, tmp_path / "model.safetensors", "single")
    convert(tmp_path / "model.safetensors", tmp_path / "again", "diffusers")
    assert same(tensors_of(folder), tensors_of(tmp_path / "again"))
    for path in folder.glob("*/*.json"):
        assert json.loads(path.read_text()) == json.loads(
            (tmp_path / "again" / path.relative_to(folder)).read_text()
        )


@pytest.mark.parametrize("name", [name for name in SMALL if "refiner" not in name])  # theirs takes a picture
def test_diffusers_draws_the_same(files: dict, name: str) -> None:
    """The single file here, and the folder there: 10 steps of Euler at whole timesteps, with guidance."""
    diffusers = pytest.importorskip("diffusers")
    single, folder = files[name]
    model = inkwash.load(single)
    kinds = {
        0: "StableDiffusionPipeline",
        6: "StableDiffusionXLPipeline",
        5: "StableDiffusionXLImg2ImgPipeline",
    }
    pipe = getattr(diffusers, kinds[model.sizes]).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0
    )
    noise = NoiseSource([3], (4, 16, 16))()
    # an empty negative prompt is None there, where "" is not the zeros that SDXL was trained with
    for prompt, negative in (("a red taxi in the rain", "blurry, dark"), ("a hat", "")):
        options = {"prompt": prompt, "negative_prompt": negative or None, "guidance_scale": 4.0}
        theirs = pipe(**options, num_inference_steps=10, latents=noise.float(), width=32, height=32).images[0]
        ours = model.text_to_image(
            prompt, negative, steps=10, cfg_scale=4, seed=3, sampler="euler", schedule="uniform"
        )[0]
        difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
        assert np.asarray(ours).std() > 5


def test_the_refiner_goes_on_as_diffusers_does(files: dict) -> None:
    """Conditions of a picture: the pooled text, its sizes and its score."""
    diffusers = pytest.importorskip("diffusers")
    from inkwash.diffusion.denoiser import precondition
    from inkwash.pipeline.denoising.prompting import resolve
    from inkwash.pipeline.run import start
    from inkwash.pipeline.task_requests import TextToImageRequest

    single, folder = files["small-sdxl-refiner"]
    model = inkwash.load(single)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    prompt, _, pooled, _ = pipe.encode_prompt("a hat", negative_prompt="dark")
    ids, _ = pipe._get_add_time_ids(
        (32, 32), (0, 0), (32, 32), 6.0, 2.5, (32, 32), (0, 0), (32, 32), torch.float32, 64
    )
    request = TextToImageRequest(prompt="a hat", negative_prompt="dark", cfg_scale=1)
    D, sigmas, x, _ = start(model, resolve(model, request))

    def network(x: Tensor, t: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": ids}
        return pipe.unet(x, t, encoder_hidden_states=prompt, added_cond_kwargs=added).sample

    with torch.no_grad():
        wanted = precondition(network, "eps", model.schedule)(x.float(), sigmas[3], {})
        made = D(x.float(), sigmas[3])
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_inspect_says_what_it_is(files: dict, name: str, capsys: pytest.CaptureFixture) -> None:
    single, folder = files[name]
    report = inspect(single)
    assert (report["kind"], report["family"], report["variant"]) == ("checkpoint", name, "base")
    assert report["prediction_type"] == "eps" and "modelspec.prediction_type" in " ".join(report["evidence"])
    parameters = sum(value.numel() for value in read_single(single).unet.tensors.values())
    assert report["components"]["unet"] == {"parameters": parameters, "dtype": "float32"}
    assert report["keys"]["dropped"] >= 3 and report["keys"]["unknown"] == []
    assert report["metadata"]["modelspec.title"] == "a small one"
    assert len(report["hashes"]["sha256"]) == 64 and report["hashes"]["autov2"] == inkwash.load(single).hash
    assert inspect(folder)["components"] == report["components"] or name == "small-sd2"
    assert main(["inspect", str(single), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report, default=str))
    assert main(["inspect", str(single)]) == 0
    assert capsys.readouterr().out.startswith(f"{name} checkpoint, predicts eps\n")


def test_a_file_without_text_model_in_its_names_opens(files: dict, tmp_path: Path) -> None:
    single, _ = files["small-sd1"]
    old = tmp_path / "old.ckpt"
    renamed = {
        key.replace(".transformer.text_model.", ".transformer."): v for key, v in load_file(single).items()
    }
    ids = {"cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({"state_dict": renamed | ids, "global_step": 7, "epoch": 1}, old)
    ours, theirs = read_single(single), read_single(old)
    assert same(dict(ours.text[0].tensors), dict(theirs.text[0].tensors))
    assert same(dict(ours.unet.tensors), dict(theirs.unet.tensors))


def test_averaged_weights_are_taken_when_asked_for(files: dict, tmp_path: Path) -> None:
    single, _ = files["small-sd1"]
    tensors = load_file(single)
    unet = {key: value for key, value in tensors.items() if key.startswith("model.diffusion_model.")}
    ema = {f"model_ema.{key[6:].replace('.', '')}": value + 1 for key, value in unet.items()}
    save_file(tensors | ema, tmp_path / "ema.safetensors")
    plain, averaged = (
        read_single(tmp_path / "ema.safetensors"),
        read_single(tmp_path / "ema.safetensors", ema=True),
    )
    for key, value in plain.unet.tensors.items():
        assert torch.equal(averaged.unet.tensors[key], value + 1)
    with pytest.raises(ModelFileError, match="no averaged weights"):
        read_single(single, ema=True)


@pytest.mark.parametrize(
    ("marks", "metadata", "said"),
    [
        ({}, {"modelspec.prediction_type": "v"}, "v"),
        ({"v_pred": torch.zeros(0)}, {}, "v"),
        ({}, {}, "eps"),
        ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "v"),
    ],
)
def test_marks_say_the_prediction(
    files: dict, tmp_path: Path, marks: dict, metadata: dict, said: str
) -> None:
    single, _ = files["small-sdxl"]
    tensors = {key: value for key, value in load_file(single).items() if key != "betas"}
    save_file(tensors | marks, tmp_path / "model.safetensors", metadata=metadata or None)
    model = inkwash.load(tmp_path / "model.safetensors")
    assert model.prediction == said
    assert (model.schedule.sigma_max > 4000) == ("ztsnr" in marks)
    assert inkwash.load(tmp_path / "model.safetensors", prediction="x0").prediction == "x0"


@pytest.mark.parametrize("said", ["eps", "v"])
def test_a_probe_says_what_nothing_else_says(tmp_path: Path, said: str) -> None:
    """A U-Net of SD2 that passes on what it sees, as eps does at the noisiest level, or its negative."""
    family = SMALL["small-sd2"]
    checkpoint = random_checkpoint(family)
    tensors = {key: torch.zeros_like(value) for key, value in checkpoint.unet.tensors.items()}
    tensors["out.2.bias"] += 0.5 if said == "eps" else -1.5
    write_single(
        replace(checkpoint, unet=replace(checkpoint.unet, tensors=tensors)), tmp_path / "m.safetensors"
    )
    assert inkwash.load(tmp_path / "m.safetensors").prediction == said
    report = inspect(tmp_path / "m.safetensors")
    assert report["prediction_type"] == said and "probed" in " ".join(report["evidence"])


def test_a_model_that_sees_more_than_a_latent_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    family = SMALL["small-sd1"]
    depth = replace(family, unet=replace(family.unet, in_channels=5))
    write_single(random_checkpoint(depth), tmp_path / "m.safetensors")
    assert inspect(tmp_path / "m.safetensors")["variant"] == "depth"
    assert main(["generate", "a", "--seed", "1", "--model", str(tmp_path / "m.safetensors")]) == 2
    assert "m needs a depth map beside the latent; use depth_to_image" in capsys.readouterr().err


BROKEN = {
    "a tensor too few": (lambda t: t.pop("model.diffusion_model.out.0.weight"), "lacks out.0.weight"),
    "one of another shape": (
        lambda t: t.update({"first_stage_model.decoder.norm_out.bias": torch.zeros(3)}),
        r"decoder\.norm_out\.bias has shape \(3,\), \(32,\) is wanted",
    ),
    "one that nothing knows": (
        lambda t: t.update({"mystery": torch.zeros(1)}),
        "1 tensors not known:\n  mystery",
    ),
    "not finite": (
        lambda t: t["model.diffusion_model.out.0.bias"].fill_(float("nan")),
        r"out\.0\.bias holds values that are not finite",
    ),
    "another width": (
        lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3)}),
        "of no family that is known",
    ),
    "no autoencoder": (
        lambda t: [t.pop(key) for key in list(t) if key.startswith("first_stage")],
        "no autoencoder",
    ),
    "a LoRA": (
        lambda t: (t.clear(), t.update({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 4)})),
        "this file is a LoRA, not a full model; pass it with --lora",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(
    files: dict, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    damage, message = BROKEN[name]
    tensors = load_file(files["small-sd1"][0])
    damage(tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(ModelFileError, match=message):
        inkwash.load(tmp_path / "broken.safetensors")
    assert main(["generate", "a", "--model", str(tmp_path / "broken.safetensors")]) == 1
    assert "broken.safetensors" in capsys.readouterr().err


def test_convert_from_the_command_line(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    single, folder = files["small-sdxl"]
    assert (
        main(["convert", str(single), str(tmp_path / "f"), "--layout", "diffusers", "--dtype", "fp16"]) == 0
    )
    assert capsys.readouterr().out == f"{tmp_path / 'f'}\n"
    assert read_folder(tmp_path / "f").unet.tensors["out.2.bias"].dtype == torch.float16
    assert main(["convert", str(single), str(folder / "unet"), "--layout", "single"]) == 2
    assert main(["convert", str(single), str(single), "--layout", "diffusers"]) == 2
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "x"), "--layout", "single"]) == 1
    assert not (tmp_path / "x").exists()
    assert main(["convert", str(single), str(single), "--layout", "single"]) == 1
    assert inspect(single)["family"] == "small-sdxl"
