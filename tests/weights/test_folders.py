"""The diffusers layout: what is written is read back, others open it, and what is broken is named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inkwash
from inkwash.files import ModelFileError
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import Checkpoint, Component, check_finite
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import read_folder, write_folder, write_unet
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from tests.models.test_autoencoder import older


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, to be spoiled."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(path: Path, change: Callable[[dict], dict]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same_tensors(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether all networks have the same configs, tensors and dtypes."""
    pairs = zip((a.unet, a.autoencoder, *a.text), (b.unet, b.autoencoder, *b.text), strict=True)
    return all(
        one.config == other.config
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(value, other.tensors[key]) for key, value in one.tensors.items())
        and all(value.dtype == other.tensors[key].dtype for key, value in one.tensors.items())
        for one, other in pairs
    )


def test_written_is_read_back(tiny: Path, tmp_path: Path) -> None:
    checkpoint = read_folder(tiny)
    write_folder(checkpoint, tmp_path)
    again = read_folder(tmp_path)
    assert same_tensors(checkpoint, again)
    assert (checkpoint.scheduler, checkpoint.default_size) == (again.scheduler, again.default_size)
    texts = ["a red taxi", "", "Ünïcode 🚕"]
    assert checkpoint.text[0].tokenizer(texts) == again.text[0].tokenizer(texts)
    assert inkwash.load(tiny).hash == inkwash.load(tmp_path).hash
    assert len(inkwash.load(tiny).hash) == 10


def test_shards_are_small_and_say_where_each_tensor_is(tiny: Path, tmp_path: Path) -> None:
    checkpoint = read_folder(tiny)
    write_folder(checkpoint, tmp_path, 140_000)
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size <= 140_000 for shard in shards)
    listing = json.loads((tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    for shard in shards:
        assert all(listing["weight_map"][key] == shard.name for key in load_file(shard))
    assert same_tensors(checkpoint, read_folder(tmp_path))
    write_folder(checkpoint, tmp_path)  # the shards of before do not stay beside the one file
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
    assert same_tensors(before, after)
    assert before.text[0].tokenizer(["a red taxi"]) == after.text[0].tokenizer(["a red taxi"])


def test_older_names_are_read(tiny: Path, copy: Path) -> None:
    """The attention of autoencoders before diffusers 0.17, and a text encoder's position_ids."""
    checkpoint = read_folder(tiny)
    vae_table = tables.autoencoder_table(checkpoint.autoencoder.config)
    old = older(translate(checkpoint.autoencoder.tensors, vae_table))
    assert any(".query." in key for key in old)
    save_file(
        {key: value.contiguous() for key, value in old.items()},
        copy / "vae/diffusion_pytorch_model.safetensors",
    )
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rename(copy / "text_encoder/model.safetensors", lambda tensors: tensors | ids)
    assert same_tensors(checkpoint, read_folder(copy))


def test_half_precision_is_kept_on_disk_and_computed_as_asked(tiny: Path, copy: Path, tmp_path: Path) -> None:
    rename(copy / UNET, lambda tensors: {key: value.half() for key, value in tensors.items()})
    write_folder(read_folder(copy), tmp_path / "again")
    assert load_file(tmp_path / "again" / UNET)["conv_in.weight"].dtype == torch.float16
    assert inkwash.load(copy).dtype == torch.float32
    assert inkwash.load(copy, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_variants_are_found(tiny: Path, copy: Path) -> None:
    """Alone they are taken; beside the plain weights they have to be asked for."""
    half = (copy / UNET).with_name("diffusion_pytorch_model.fp16.safetensors")
    (copy / UNET).rename(half)
    rename(half, lambda tensors: {key: value.half() for key, value in tensors.items()})
    assert read_folder(copy).unet.tensors["out.2.bias"].dtype == torch.float16
    shutil.copy(tiny / UNET, copy / UNET)
    assert read_folder(copy).unet.tensors["out.2.bias"].dtype == torch.float32


def test_what_has_no_place_stays(tiny: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "safety_checker").mkdir()
    save_file({"concept": torch.ones(3)}, copy / "safety_checker/model.safetensors")
    (copy / "notes.txt").write_text("mine")
    write_folder(read_folder(copy), tmp_path / "again")
    assert load_file(tmp_path / "again/safety_checker/model.safetensors")["concept"].tolist() == [1, 1, 1]
    assert (tmp_path / "again/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]
)
def test_no_value_that_is_not_finite_gets_through(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    for num in (1, 5, 1000):
        for at in (0, num // 2, num - 1):
            value = torch.full((num,), largest, dtype=torch.float64)
            check_finite({"a": value.to(dtype), "none": torch.zeros(0)}, "the network")
            value[at] = bad
            with pytest.raises(ModelFileError, match="the network: a holds values that are not finite"):
                check_finite({"a": value.to(dtype)}, "the network")


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def without(path: Path, key: str) -> None:
    rename(path, lambda tensors: {k: v for k, v in tensors.items() if k != key})


def spoil(path: Path, key: str, value: float) -> None:
    rename(path, lambda tensors: tensors | {key: torch.full_like(tensors[key], value)})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"has no model_index\.json"),
    "index no JSON": (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json can't be read"),
    "index no object": (lambda f: (f / "model_index.json").write_text("[]"), "holds no JSON object"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "has no weights of vae"),
    "no weights": (lambda f: (f / UNET).unlink(), "has no weights of unet"),
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
    "not finite": (
        lambda f: spoil(f / UNET, "conv_in.bias", float("nan")),
        r"input_blocks\.0\.0\.bias holds values",
    ),
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
    "betas that are no numbers": (
        lambda f: edit(f / "scheduler/scheduler_config.json", beta_end="much"),
        "beta_end 'much' is not a number between 0 and 1",
    ),
    "no text encoder": (
        lambda f: edit(f / "model_index.json", text_encoder=[None, None]),
        "no weights of text_encoder",
    ),
    "an odd size": (lambda f: edit(f / "unet/config.json", sample_size=-3), "sample_size -3 is not a whole"),
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


def test_a_unet_alone_takes_the_rest_from_its_base(tiny: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    checkpoint = read_folder(base)
    changed = {name: value + 1 for name, value in checkpoint.unet.tensors.items()}
    write_unet(Component(checkpoint.unet.config, changed), 16, tmp_path / "variant", base)
    assert sorted(path.name for path in (tmp_path / "variant").iterdir()) == ["model_index.json", "unet"]
    opened = read_folder(tmp_path / "variant")
    assert same_tensors(opened, replace(checkpoint, unet=Component(checkpoint.unet.config, changed)))
    assert (opened.scheduler, opened.default_size) == (checkpoint.scheduler, checkpoint.default_size)
    assert [file.parts[-3] for file in opened.files] == ["variant"]  # so that its hash is its own
    write_folder(opened, tmp_path / "elsewhere" / "whole")  # which needs no base
    assert same_tensors(read_folder(tmp_path / "elsewhere" / "whole"), opened)


@pytest.mark.parametrize("name", ["../base", "/base", "..", ".", "", "other", 5])
def test_a_base_is_a_folder_beside(name: object, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    edit(copy / "model_index.json", inkwash_base=name)
    with pytest.raises(ModelFileError, match="is not a folder beside"):
        read_folder(copy)


def test_a_name_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(
        ModelFileError,
        match="there is no model 'maxi'; give a folder, a file, an id of the hub, or one of mini",
    ):
        inkwash.load("maxi")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="can't be read"):
        inkwash.load(tmp_path / "file")


def test_opening_imports_no_compiler(tiny: Path) -> None:
    """torch's takes a second to import, and its meta device asks for it when parameters are drawn."""
    code = f"import inkwash, sys; inkwash.load({str(tiny)!r}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("False\n", "")


@torch.no_grad()
def test_the_inpainting_model_opens_as_an_inpainting_pipeline(tmp_path: Path) -> None:
    """From its own folder with the parts of the model beside, and from the folder that it is converted to."""
    diffusers = pytest.importorskip("diffusers")
    shipped = diffusers.StableDiffusionInpaintPipeline
    base = diffusers.StableDiffusionPipeline.from_pretrained(model_path("mini"))
    shared = {name: part for name, part in base.components.items() if part is not None and name != "unet"}
    a = shipped.from_pretrained(model_path("mini-inpainting"), **shared)
    convert(model_path("mini-inpainting"), tmp_path / "whole", "diffusers", torch.float32)
    assert json.loads((tmp_path / "whole/model_index.json").read_text())["_class_name"] == shipped.__name__
    b = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert type(b) is shipped
    ours, theirs = a.unet.state_dict(), b.unet.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
