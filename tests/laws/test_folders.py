"""The diffusers layout: what is written is read back, others open it, and what is broken is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.weights import folders, tables
from inkwash.weights.files import ModelFileError
from inkwash.weights.folders import read_folder, write_folder
from inkwash.weights.keymap import translate


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, to be spoiled."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(path: Path, change: Callable[[dict], dict]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_written_is_read_back(tiny: Path, tmp_path: Path) -> None:
    parts = read_folder(tiny)
    write_folder(parts, tmp_path)
    again = read_folder(tmp_path)
    for name in ("unet", "autoencoder", "text_encoder"):
        a, b = getattr(parts, name), getattr(again, name)
        assert a.config == b.config
        assert all(torch.equal(a.state_dict()[key], value) for key, value in b.state_dict().items())
    assert torch.equal(parts.schedule.alphas_cumprod, again.schedule.alphas_cumprod)
    texts = ["a red taxi", "", "Ünïcode 🚕"]
    assert parts.tokenizer(texts) == again.tokenizer(texts)
    assert (parts.prediction, parts.default_size, parts.hash) == (
        again.prediction,
        again.default_size,
        again.hash,
    )


def test_shards_are_small_and_say_where_each_tensor_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = read_folder(tiny)
    monkeypatch.setattr(folders, "MAX_SHARD", 140_000)
    write_folder(parts, tmp_path)
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size <= 140_000 for shard in shards)
    listing = json.loads((tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    for shard in shards:
        assert all(listing["weight_map"][key] == shard.name for key in load_file(shard))
    again = read_folder(tmp_path)
    assert all(torch.equal(parts.unet.state_dict()[k], v) for k, v in again.unet.state_dict().items())
    monkeypatch.undo()
    write_folder(parts, tmp_path)  # the shards of before do not stay beside the one file
    assert len(list((tmp_path / "unet").glob("*.safetensors*"))) == 1


def test_diffusers_draws_the_same_picture(tiny: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    model = inkwash.load(tiny)
    generator = torch.Generator().manual_seed(5)
    theirs = pipe("a taxi", num_inference_steps=6, guidance_scale=3.0, generator=generator).images[0]
    ours = model.text_to_image("a taxi", steps=6, cfg_scale=3, seed=5, sampler="ddim", schedule="ddim")[0]
    # theirs ends at the first alpha_bar, ours at 0: a last step of sigma 0.03
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.mean() < 4
    assert np.asarray(ours).std() > 10


def test_folders_that_diffusers_and_transformers_write_are_read(tiny: Path, tmp_path: Path) -> None:
    """transformers 5 writes a text encoder's tensors without the tower's name in front."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.StableDiffusionPipeline.from_pretrained(tiny, local_files_only=True).save_pretrained(tmp_path)
    before, after = read_folder(tiny), read_folder(tmp_path)
    for name in ("unet", "autoencoder", "text_encoder"):
        a, b = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert all(torch.equal(a[key], value) for key, value in b.items())
    assert before.tokenizer(["a red taxi"]) == after.tokenizer(["a red taxi"])


def test_older_names_are_read(tiny: Path, copy: Path) -> None:
    """The attention of autoencoders before diffusers 0.17, and a text encoder's position_ids."""
    parts = read_folder(tiny)
    vae_table = tables.autoencoder_table(parts.autoencoder.config, tables.OLD_ATTENTION)
    old = {
        key: value.contiguous() for key, value in translate(parts.autoencoder.state_dict(), vae_table).items()
    }
    assert any(".query." in key for key in old)
    save_file(old, copy / "vae/diffusion_pytorch_model.safetensors")
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rename(copy / "text_encoder/model.safetensors", lambda tensors: tensors | ids)
    again = read_folder(copy)
    a, b = parts.autoencoder.state_dict(), again.autoencoder.state_dict()
    assert all(torch.equal(a[key], value) for key, value in b.items())


def test_half_precision_is_kept_on_disk_and_computed_as_asked(tiny: Path, tmp_path: Path) -> None:
    parts = read_folder(tiny, dtype=torch.float16)
    write_folder(parts, tmp_path)
    assert load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == (
        torch.float16
    )
    assert inkwash.load(tmp_path).dtype == torch.float32
    assert inkwash.load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def without(path: Path, key: str) -> None:
    rename(path, lambda tensors: {k: v for k, v in tensors.items() if k != key})


def spoil(path: Path, key: str, value: float) -> None:
    rename(path, lambda tensors: tensors | {key: torch.full_like(tensors[key], value)})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index\.json can't be read"),
    "index no JSON": (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json can't be read"),
    "index no object": (lambda f: (f / "model_index.json").write_text("[]"), "holds no JSON object"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "has no vae"),
    "no weights": (lambda f: (f / UNET).unlink(), "has no diffusion_pytorch_model.safetensors"),
    "cut weights": (lambda f: cut(f / UNET), r"unet/.*safetensors can't be read"),
    "empty weights": (lambda f: (f / VAE).write_bytes(b""), r"vae/.*safetensors can't be read"),
    "missing tensor": (lambda f: without(f / UNET, "conv_in.weight"), r"lacks input_blocks\.0\.0\.weight"),
    "unknown tensor": (
        lambda f: rename(f / UNET, lambda t: t | {"lora.up": torch.zeros(1)}),
        r"1 tensors not known:\n  lora\.up",
    ),
    "other shape": (
        lambda f: rename(f / UNET, lambda t: t | {"conv_in.bias": torch.zeros(3)}),
        r"input_blocks\.0\.0\.bias has shape \(3,\), \(8,\) is wanted",
    ),
    "not finite": (lambda f: spoil(f / UNET, "conv_in.bias", float("nan")), "conv_in.bias holds values"),
    "shards outside": (
        lambda f: (
            (f / UNET).unlink(),
            (f / f"{UNET}.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}})),
        ),
        "names a file outside its folder",
    ),
    "shard missing": (
        lambda f: (
            (f / UNET).unlink(),
            (f / f"{UNET}.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}})),
        ),
        r"b\.safetensors can't be read",
    ),
    "other betas": (
        lambda f: edit(f / "scheduler/scheduler_config.json", beta_schedule="spiral"),
        "beta_schedule 'spiral' is not one of linear, scaled_linear",
    ),
    "other prediction": (
        lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="vibes"),
        "prediction_type 'vibes' is not one of epsilon, v_prediction, sample",
    ),
    "no vocabulary": (lambda f: (f / "tokenizer/merges.txt").unlink(), "merges.txt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(copy: Path, name: str) -> None:
    damage, message = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelFileError, match=message):
        inkwash.load(copy)


def test_a_name_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model 'maxi'; give a folder, or one of mini"):
        inkwash.load("maxi")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="not a folder in the diffusers layout"):
        inkwash.load(tmp_path / "file")
