"""Imagen's kind: DeepFloyd IF's folders open, and draw and enlarge as diffusers' pipelines do: 60 dB and more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import inkwash
from inkwash.cli import main
from inkwash.diffusion.guidance import cfg, threshold_pixels
from inkwash.diffusion.noise import NoiseSource, mixed
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import PixelConfig
from inkwash.models.t5 import T5, T5Config
from inkwash.models.unet import UNet, UNetConfig
from inkwash.models.unigram import Unigram
from inkwash.pipeline.cascade import cascade
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.training.run import trained
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import read_component
from inkwash.weights.models.convert import convert
from inkwash.weights.models.folder import write_folder
from tests.models.test_imagen_unet import FIRST, SECOND
from tests.models.test_unet import randomise
from tests.pipeline.test_pipelines_parity import psnr
from tests.weights.test_single_files import tensors_of

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SEED, TIMES = 5, [999, 700, 300, 0]  # theirs adds noise after the last one, if it is not 0
WORDS = Unigram(
    [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    + [(f"\u2581{word}", -2.0) for word in ("a", "red", "taxi", "rain")]
    + [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"],
    lower=True,
)
TEXT = T5Config(vocab_size=36, width=24, num_layers=2, num_heads=2, head_dim=16, mlp_width=32)
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
    "variance_type": "learned_range",
}
PROMPTS = {"prompt": "A red Taxi", "negative_prompt": "rain"}
OURS = {"seed": SEED, "timesteps": TIMES, "sampler": "ddpm", "cfg_scale": 3.0}


def checkpoint(config: UNetConfig, size: int) -> Checkpoint:
    def component(network: nn.Module) -> Component:
        randomise(network)
        return Component(network.config, network.state_dict())  # type: ignore[arg-type]

    text = component(T5(TEXT))
    return Checkpoint(
        unet=component(UNet(config)),
        autoencoder=Component(PixelConfig(threshold=(0.95, 1.5), variances=True), {}),
        text=(TextComponent(TEXT, text.tensors, WORDS),),
        scheduler=SCHEDULER,
        default_size=size,
        files=(),
    )


@pytest.fixture(scope="module")
def folders(module_path: Path) -> dict[str, Path]:
    write_folder(checkpoint(FIRST, 16), module_path / "first")
    write_folder(checkpoint(FIRST, 8), module_path / "smaller")
    write_folder(checkpoint(SECOND, 64), module_path / "second")
    return {name: module_path / name for name in ("first", "smaller", "second")}


@pytest.fixture
def theirs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Image.Image]:
    def draw(kind: str, name: str, draws: list[Tensor], **options: Any) -> Image.Image:
        pipe = getattr(diffusers, kind).from_pretrained(folders[name], local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        for module in (type(pipe).__module__, type(pipe.scheduler).__module__):
            monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: draws.pop(0))
        options = {"timesteps": TIMES, "guidance_scale": 3.0, "clean_caption": False} | options
        return pipe(**PROMPTS, **options).images[0]

    return draw


def noise(side: int) -> list[Tensor]:
    source = NoiseSource([SEED], (3, side, side))
    return [source() for _ in range(len(TIMES) + 1)]


def test_the_first_stage(folders: dict[str, Path], theirs: Callable[..., Image.Image]) -> None:
    wanted = theirs("IFPipeline", "first", noise(16), height=16, width=16)
    model = inkwash.load(folders["first"])
    assert (model.default_size, model.inputs.needed) == (16, None)
    assert psnr(model.text_to_image(**PROMPTS, **OURS)[0], wanted) >= 60
    other = model.text_to_image(prompt="rain", negative_prompt="rain", **OURS)[0]
    assert psnr(other, wanted) < 40


@pytest.mark.parametrize("level", [0, 250])
def test_an_upscaler(folders: dict[str, Path], theirs: Callable[..., Image.Image], level: int) -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    first, *others = noise(64)
    draws = [first, NoiseSource([mixed(SEED, -1)], (3, 64, 64))(), *others]
    wanted = theirs(
        "IFSuperResolutionPipeline", "second", draws, image=small, noise_level=level, height=64, width=64
    )
    model = inkwash.load(folders["second"])
    assert model.inputs.needed == "upscaler"
    assert psnr(model.upscale(image=small, noise_level=level, **PROMPTS, **OURS)[0], wanted) >= 60


def test_only_ddpm_has_learned_variances_and_where_the_folder_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    fixed = shutil.copytree(folders["first"], tmp_path / "fixed")
    scheduler = fixed / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("learned_range", "fixed_small"))
    for sampler, same in (("ddpm", False), ("euler_ancestral", True)):
        a, b = (
            inkwash.load(folder).text_to_image(**PROMPTS, **OURS | {"sampler": sampler})[0]
            for folder in (folders["first"], fixed)
        )
        assert (a.tobytes() == b.tobytes()) == same
    plain = inkwash.load(fixed).text_to_image(**PROMPTS, **OURS)[0]
    assert plain.tobytes() == b.tobytes()  # eta 1 is the least variance


@pytest.mark.parametrize(
    "options",
    [
        {"perp_neg": 1.0, "negative_prompt": "rain AND taxi :-1"}, {"prompt": "red AND taxi"},
        {"prompt": "[red:taxi:0.5] a"},
        {"guidance_start": 0.4}, {"cfg_scale": 1.0}, {"cfg_batched": False}, {"window": 32}, {"seamless": "both"},
        {"cfg_rescale": 0.5}, {"mimic_scale": 2.0}, {"batch_size": 2},
    ],
)  # fmt: skip
def test_learned_variances_go_with_all_guidance(folders: dict[str, Path], options: dict[str, Any]) -> None:
    """The least variance where the network is made to predict it, as with eta 1."""
    model = inkwash.load(folders["first"])
    side = {"width": 40, "height": 40} if "window" in options else {}
    given = PROMPTS | OURS | {"steps": 3, "timesteps": (999, 500, 0)} | side | options
    varied = model.text_to_image(**given)[-1]
    with torch.no_grad():
        last = model.unet.out[-1]
        last.weight[3:], last.bias[3:] = 0, -1.0
    least, plain = (model.text_to_image(**given | {"sampler": s})[-1] for s in ("ddpm", "euler_ancestral"))
    assert psnr(least, plain) > 60 and varied.tobytes() != least.tobytes()


def test_a_cascade_is_its_stages_one_by_one(folders: dict[str, Path]) -> None:
    models = [inkwash.load(folders[name]) for name in ("first", "second")]
    request = TextToImageRequest(**PROMPTS, steps=3, sampler="ddim", seed=2, batch_size=2)
    stages = cascade(models, request)
    assert [[image.size for image in stage] for stage in stages] == [[(16, 16)] * 2, [(64, 64)] * 2]
    for k in range(2):
        alone = models[1].upscale(image=stages[0][k], **PROMPTS, steps=3, sampler="ddim", seed=2 + k)[0]
        assert alone.tobytes() == stages[1][k].tobytes()
        assert "Seed: " in stages[1][k].info["parameters"]


def test_the_command_line_draws_a_cascade_and_replays_its_last_stage(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Three stages, as IF's 64, 256 and 1024: a network of pixels, one that enlarges, and the same once more."""
    monkeypatch.chdir(tmp_path)
    first, second = (str(folders[name]) for name in ("smaller", "second"))
    options = "--steps 2 --sampler ddpm --noise-level 100 --seed 2 --batch-size 2".split()
    words = ["a red taxi", "--negative-prompt", "rain", "--model", first, "--cascade", second, second]
    assert main(["generate", *words, *options, "--output", "taxi.png", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [[one["path"] for one in stage["images"]] for stage in stages] == [
        [f"taxi{middle}-{k}.png" for k in (1, 2)] for middle in ("-stage1", "-stage2", "")
    ]
    sizes = [Image.open(stage["images"][1]["path"]).size for stage in stages]
    assert sizes == [(8, 8), (32, 32), (128, 128)]
    models = [inkwash.load(folders[name]) for name in ("smaller", "second", "second")]
    asked = PROMPTS | {"prompt": "a red taxi", "sampler": "ddpm"}
    request = TextToImageRequest(**asked, steps=2, seed=2, batch_size=2, noise_level=100)
    for stage, made in zip(stages, cascade(models, request), strict=True):
        for one, image in zip(stage["images"], made, strict=True):
            assert Image.open(one["path"]).tobytes() == image.tobytes()
    assert main(["replay", "taxi-2.png", "--model", second, "--output", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("taxi-2.png").read_bytes()
    assert main(["generate", "a", "--model", first, "--cascade", first, "--output", "no.png"]) == 2
    assert "is not a model that enlarges a picture" in capsys.readouterr().err
    assert not list(tmp_path.glob("no*"))


def test_thresholds_are_those_of_diffusers() -> None:
    random = torch.Generator().manual_seed(0)
    x0 = 2 * torch.randn(4, 3, 8, 8, generator=random) * torch.tensor([0.2, 0.6, 1.0, 3.0]).view(4, 1, 1, 1)
    D = cfg(lambda x, sigma, cond: x, {"context": torch.zeros(4, 1)}, {"context": torch.zeros(4, 1)}, 2.0)
    theirs = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5)
    made = threshold_pixels(D, 0.95, 1.5)(x0, torch.ones(4))
    torch.testing.assert_close(made, theirs._threshold_sample(x0))
    torch.testing.assert_close(threshold_pixels(D, 1.0, 1.0)(x0, torch.ones(4)), x0.clamp(-1, 1))
    with pytest.raises(ValueError, match="quantile 0"):
        threshold_pixels(D, 0.0, 1.5)


def test_a_folder_is_written_as_it_was_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        convert(folder, tmp_path / name, "diffusers")
        a, b = tensors_of(folder), tensors_of(tmp_path / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        with pytest.raises(ModelFileError, match="no layout as a single file"):
            convert(folder, tmp_path / "one.safetensors", "single")


@pytest.mark.parametrize("gated", [True, False])
def test_a_lone_text_encoder_is_described_and_takes_its_place(
    folders: dict[str, Path], tmp_path: Path, gated: bool
) -> None:
    """As transformers saves a whole T5, and its encoder alone: the same network."""
    torch.manual_seed(0)
    shape = {"vocab_size": 36, "d_model": 24, "d_kv": 16, "num_heads": 2, "d_ff": 40, "num_layers": 3}
    config = transformers.T5Config(**shape, feed_forward_proj="gated-gelu" if gated else "relu")
    whole, own = transformers.T5Model(config), tmp_path / "encoder"
    whole.save_pretrained(tmp_path / "whole")
    transformers.T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(own)
    wanted = T5Config(36, 24, 3, 2, 16, 40, gated)
    made = []
    for path in (tmp_path / "whole", own, tmp_path / "whole/model.safetensors", own / "model.safetensors"):
        report = inspect(path)
        assert report["kind"] == "t5-encoder" and "num_layers 3" in report["evidence"][0]
        assert read_component(path).config == wanted
        made.append(inkwash.load(folders["first"], parts=[path]).text_to_image(**PROMPTS, **OURS)[0])
    assert len({image.tobytes() for image in made}) == 1
    assert made[0].tobytes() != inkwash.load(folders["first"]).text_to_image(**PROMPTS, **OURS)[0].tobytes()
    with pytest.raises(ModelFileError, match="no other part"):
        inkwash.load("mini", parts=[own])


def test_a_vocabulary_of_sentencepiece_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """As IF's folders have it, made by hand: pieces with their scores, as fields of a protocol buffer."""
    import struct

    def piece(text: str, score: float) -> bytes:
        content = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", score)
        return b"\x0a" + bytes([len(content)]) + content

    shutil.copytree(folders["first"], tmp_path / "if")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "if" / "tokenizer" / name).unlink()
    spiece = tmp_path / "if" / "tokenizer" / "spiece.model"
    spiece.write_bytes(b"".join(piece(*pair) for pair in WORDS.scored))
    made, wanted = (
        inkwash.load(path).text_to_image(**PROMPTS, **OURS)[0] for path in (tmp_path / "if", folders["first"])
    )
    assert made.tobytes() == wanted.tobytes()
    spiece.write_bytes(b"\x0b")
    with pytest.raises(ModelFileError, match=r"spiece\.model can't be read"):
        inkwash.load(tmp_path / "if")


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("unet/config.json", {"sample_size": None}, "sample_size None"),
        ("scheduler/scheduler_config.json", {"sample_max_value": 0.5}, "sample_max_value 0.5"),
        ("text_encoder/config.json", {"feed_forward_proj": "swish"}, "feed_forward_proj"),
        ("text_encoder/config.json", {"vocab_size": 20}, "34 tokens"),
        ("model_index.json", {"_class_name": "IFSuperResolutionPipeline"}, "6 channels"),
    ],
)
def test_what_does_not_fit_is_named(
    folders: dict[str, Path], tmp_path: Path, path: str, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(folders["first"], tmp_path / "if")
    file = tmp_path / "if" / path
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelFileError, match=message):
        inkwash.load(tmp_path / "if")


def test_a_folder_without_its_vocabulary_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["first"], tmp_path / "if")
    shutil.rmtree(tmp_path / "if/tokenizer")
    with pytest.raises(ModelFileError, match=r"tokenizer has neither spiece\.model nor tokenizer\.json"):
        inkwash.load(tmp_path / "if")


@pytest.mark.parametrize(("name", "variant"), [("first", "pixels"), ("second", "upscaler")])
def test_stages_are_described(folders: dict[str, Path], name: str, variant: str) -> None:
    report = inspect(folders[name])
    assert (report["kind"], report["variant"], report["prediction_type"]) == ("checkpoint", variant, "eps")
    assert "Imagen's kind" in report["evidence"][0] and report["keys"]["dropped"] == 0


def test_loras_are_refused(folders: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    said = "not covered with U-Nets of pixels"
    with pytest.raises(ModelFileError, match=said):
        inkwash.load(folders["first"]).text_to_image("a taxi<lora:mini-turbo:1>", steps=1)
    with pytest.raises(ModelFileError, match=said):
        trained(
            "lora", model=str(folders["first"]), data=str(pictures), output=str(tmp_path / "run"), steps=1
        )
    assert not (tmp_path / "run/state.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "name", "options", "said"),
    [
        ("text-to-image", "first", {}, "first reads T5, which has no layout as a single file; give layout diffusers"),
        ("distill", "first", {"whole": True}, "give layout diffusers"),
        ("hypernetwork", "first", {}, "no attention to a prompt that a hypernetwork could change"),
        ("upscaler", "second", {"layout": "diffusers"}, "second is an upscaler of Imagen's kind"),
    ],
)  # fmt: skip
def test_what_can_not_be_trained_is_said_before(
    folders: dict[str, Path], pictures: Path, tmp_path: Path, method: str, name: str, options: dict[str, Any], said: str
) -> None:  # fmt: skip
    own = {"model": str(folders[name]), "data": str(pictures), "output": str(tmp_path / "run"), "steps": 1}
    with pytest.raises(ValueError, match=said):
        trained(method, **own | options)


def test_the_first_stage_is_trained(folders: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """Its variances are not: diffusers' trainings of IF leave them out, too."""
    own = {"model": str(folders["first"]), "data": str(pictures), "buckets": False, "batch_size": 2}
    made = trained(
        "text-to-image",
        **own,
        output=str(tmp_path / "run"),
        steps=2,
        weight_decay=0,
        save_dtype="fp32",
        layout="diffusers",
    )
    before, after = (inkwash.load(path).unet.state_dict() for path in (folders["first"], made))
    last = max(name for name in before if name.startswith("out.") and name.endswith("weight"))
    moved = (before[last] != after[last]).flatten(1).any(dim=1)
    assert moved.tolist() == [True] * 3 + [False] * 3


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a red taxi")
    return folder


def test_long_prompts_have_more_chunks(folders: dict[str, Path]) -> None:
    model = inkwash.load(folders["first"])
    made = [model.text_to_image("taxi " * num, steps=1, seed=1)[0] for num in (76, 77)]
    assert made[0].tobytes() != made[1].tobytes()
