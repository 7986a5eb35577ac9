"""Recipes in picture files: every field in every format, damaged files, and other programs' ways to store them."""

import gzip
import io
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.images import Picture, in_mode, open_picture
from inkwash.pipeline.model import Model
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.containers import EXIF_IFD, USER_COMMENT
from inkwash.pipeline.record.metadata import RECIPE, read_parameters, read_recipes, save_image
from inkwash.pipeline.record.parameters import parameters, recipe
from inkwash.pipeline.replay import recorded
from inkwash.pipeline.request import Request
from inkwash.pipeline.tasks import TASKS
from tests.support.tiny_models import variants

TEXT = "a lighthouse\nSteps: 4, Sampler: Euler, Seed: 3, Size: 64x64"
IMAGE = Image.new("RGB", (64, 64), (10, 20, 30))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return variants(tiny)["plain"]


# for each option a value that is not its default: a new option that has none here fails the law
SAMPLES: dict[str, Any] = {
    "prompt": 'a "red" taxi, 木 <&> \x01 end',
    "negative_prompt": "rain\nand snow",
    "prompt_language": "comfy",
    "clip_skip": 2,
    "styles": ("noir", "wide"),
    "width": 96,
    "height": 160,
    "steps": 7,
    "cfg_scale": -3.25,
    "sampler": "dpmpp_3m_sde",
    "eta": 0.625,
    "schedule": "kl_optimal",
    "seed": 2**40,
    "batch_size": 3,
    "deep_cache": 2,
    "token_merging": 0.3,
    "variation_strength": 0.125,
    "variation_seed": 2**33,
    "seed_resize_from": (64, 32),
    "refiner_switch_at": 0.7,
    "class_label": 5,
    "original_size": (1024, 768),
    "crop": (3, 4),
    "target_size": (512, 513),
    "aesthetic": 7.5,
    "negative_aesthetic": 1.5,
    "cfg_batched": False,
    "cfg_rescale": 0.7,
    "guidance_start": 0.1,
    "guidance_end": 0.9,
    "mimic_scale": 6.5,
    "threshold_percentile": 0.95,
    "perp_neg": 0.5,
    "sag_scale": 0.75,
    "pag_scale": 3.0,
    "window": 64,
    "window_overlap": 0.25,
    "seamless": "x",
    "hires": 1.5,
    "hires_strength": 0.4,
    "hires_steps": 9,
    "hires_upscaler": "lanczos",
    "prior_prompt": "a blue taxi",
    "prior_steps": 7,
    "prior_cfg_scale": 2.5,
    "strength": 0.6,
    "step_rule": "exact",
    "mask_blur": 2.5,
    "fill": "noise",
    "only_masked": True,
    "padding": 8,
    "soft_mask": True,
    "tile_padding": 24,
    "tile_blending": 12,
    "left": 6,
    "top": 7,
    "right": 8,
    "bottom": 9,
    "image_cfg_scale": 1.25,
    "noise_level": 30,
    "factor": 2.5,
    "tile": 512,
    "boxes": ((0.0, 0.25, 0.5, 1.0, "red, apple"),),
    "preset": "lcm",
    "timesteps": (999, 850, 700, 500, 300, 100, 20),
    "mix": 0.25,
    "controls": (
        Control(
            file="edges.safetensors",
            weight=0.5,
            start=0.1,
            end=0.9,
            mode="prompt",
            resize="fill",
            passes="hires",
            type="depth",
        ),
        Control(file="reference_adain", style_fidelity=0.25),
    ),
}
# instead of others
SPECIAL = {
    "refiner_strength": (("refiner_switch_at",), 0.3),
    "blend_mask": (("soft_mask",), True),
    "sigmas": (("timesteps",), (14.5, 6.0, 3.25, 2.0, 1.0, 0.5, 0.0625)),
    "regions": (
        ("seamless", "only_masked", "tile"),
        ((0.0, 0.25, 0.5, 1.0, 'a "red" cat, 木; end'), (0.0, 0.0, 1.0, 0.5, "b")),
    ),
}


def unset(kind: type[Request], name: str) -> Any:
    return kind.model_fields[name].default


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("task", TASKS)
def test_every_option_of_every_task_comes_back_from_every_format(
    model: Model, tmp_path: Path, task: str, suffix: str
) -> None:
    kind = TASKS[task].request
    assert kind.model_fields.keys() <= SAMPLES.keys() | SPECIAL.keys(), "give the new option a sample"
    values = {name: SAMPLES[name] for name in kind.model_fields if name in SAMPLES}
    special = {name: pair for name, pair in SPECIAL.items() if name in kind.model_fields}
    for changed in (
        {},
        *(
            {name: value} | {other: unset(kind, other) for other in others if other in kind.model_fields}
            for name, (others, value) in special.items()
        ),
    ):
        request = kind.model_validate(values | changed)
        for name, value in (values | changed).items():
            unchanged = changed and value == unset(kind, name)
            assert kind.model_fields[name].default != value or unchanged, f"{name}'s sample is its default"
        given = {role: IMAGE for role in TASKS[task].images}
        image = IMAGE.copy()
        # names no files, which are not here
        bare = request.model_copy(update={"prompt_language": "plain", "controls": (), "styles": ()})
        bare = resolve(model, bare)
        image.info |= {"parameters": parameters(model, bare, 1), RECIPE: recipe(model, bare, 1, given)}
        image.info[RECIPE] = json.dumps(json.loads(image.info[RECIPE]) | {"request": request.model_dump()})
        save_image(image, tmp_path / f"a.{suffix}")
        known = recorded(read_recipes(tmp_path / f"a.{suffix}"))
        assert known.request == request and known.picture == 1 and not known.not_applied
        assert known.given.keys() == given.keys()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_saves_its_recipe_itself(model: Model, tmp_path: Path, suffix: str) -> None:
    image = model.text_to_image("a taxi", steps=1, seamless="both")[0]
    assert isinstance(image, Picture)
    image.save(tmp_path / f"own.{suffix}")
    save_image(image, tmp_path / f"whole.{suffix}")
    assert read_recipes(tmp_path / f"own.{suffix}") == read_recipes(tmp_path / f"whole.{suffix}")
    assert recorded(read_recipes(tmp_path / f"own.{suffix}")).request.seamless == "both"
    buffer = io.BytesIO()
    image.save(buffer, "BMP")  # holds no recipe
    assert Image.open(buffer).size == image.size


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_long_recipes_are_compressed_and_too_long_ones_refused(tmp_path: Path, suffix: str) -> None:
    image = IMAGE.copy()
    image.info |= {"parameters": TEXT, RECIPE: json.dumps({"task": "x" * 200_000})}
    save_image(image, tmp_path / f"a.{suffix}")
    assert read_recipes(tmp_path / f"a.{suffix}")[RECIPE] == {"task": "x" * 200_000}
    noise = np.random.default_rng(0).integers(33, 123, 200_000, dtype=np.uint8).tobytes().decode()
    image.info[RECIPE] = json.dumps({"task": noise})
    if suffix == "jpg":
        with pytest.raises(ValueError, match="does not fit into a JPEG; use PNG or WebP"):
            save_image(image, tmp_path / "b.jpg")
        assert not (tmp_path / "b.jpg").exists()
    else:
        save_image(image, tmp_path / "b.webp")
        assert read_recipes(tmp_path / "b.webp")[RECIPE] == {"task": noise}


def png(*chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """A small PNG with further chunks before or behind its pixels."""
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    place = len(data) - 12 if behind else 33
    return data[:place] + more + data[place:]


TEXT_CHUNK = (b"tEXt", b"parameters\0" + TEXT.encode())


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"eXIf", b"\0\x08\0\2\1\x12\0\3"), TEXT_CHUNK],
        [(b"eXIf", b"b'Exif\\x00\\x00II*'"), TEXT_CHUNK],
        [(b"zTXt", b"junk\0\0" + zlib.compress(b"x" * 1_200_000)), TEXT_CHUNK],
        [(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_200_000))), TEXT_CHUNK],
        [(b"zTXt", b"junk\0\0no zlib"), (b"tEXt", b"no separator"), (b"iTXt", b"short\0\0"), TEXT_CHUNK],
        [(b"zTXt", b"parameters\0\0" + zlib.compress(TEXT.encode()))],
        [(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(TEXT.encode()))],
        [(b"iTXt", b"parameters\0\0\0\0\0" + TEXT.encode())],
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_metadata_never_costs_the_picture(tmp_path: Path, chunks: list, behind: bool) -> None:
    (tmp_path / "a.png").write_bytes(png(*chunks, behind=behind))
    assert read_parameters(tmp_path / "a.png") == TEXT
    assert open_picture(tmp_path / "a.png").tobytes() == IMAGE.tobytes()


def test_a_text_of_more_than_64_mib_is_left_out(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(65 << 20), 9)
    (tmp_path / "a.png").write_bytes(png((b"zTXt", b"parameters\0\0" + bomb)))
    assert read_recipes(tmp_path / "a.png") == {}
    assert open_picture(tmp_path / "a.png").size == (64, 64)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nothing", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_bad_exif_block_is_left_out(tmp_path: Path, suffix: str, exif: bytes) -> None:
    IMAGE.save(tmp_path / f"a.{suffix}", exif=exif)
    assert read_recipes(tmp_path / f"a.{suffix}") == {}
    assert open_picture(tmp_path / f"a.{suffix}").size == (64, 64)


def test_the_text_of_a_large_picture_is_read_without_its_pixels(tmp_path: Path) -> None:
    """Its pixels are damaged, so that whoever decodes them fails."""
    data = png(TEXT_CHUNK).replace(b"IDAT", b"IDAT", 1)
    place = data.index(b"IDAT") + 10
    (tmp_path / "a.png").write_bytes(data[:place] + b"\xff\xff\xff" + data[place + 3 :])
    assert read_parameters(tmp_path / "a.png") == TEXT
    with pytest.raises(ValueError, match="a.png is not a readable picture"):
        open_picture(tmp_path / "a.png")


UNICODE = "a lighthouse, 木 été\nSteps: 4, Sampler: Euler, Seed: 3, Size: 64x64"


@pytest.mark.parametrize(
    ("comment", "wanted"),
    [
        (b"UNICODE\0" + UNICODE.encode("utf-16-be"), UNICODE),
        (b"UNICODE\0" + UNICODE.encode("utf-16-le"), UNICODE),
        (b"UNICODE\0\xff\xfe" + UNICODE.encode("utf-16-le"), UNICODE),
        (b"UNICODE\0\xfe\xff" + UNICODE.encode("utf-16-be"), UNICODE),
        (b"UNICODE\0" + UNICODE.encode("utf-8"), UNICODE),
        (b"UNICODE\0\xef\xbb\xbf" + UNICODE.encode("utf-8"), UNICODE),
        (b"Unicode\0" + UNICODE.encode("utf-16-le"), UNICODE),
        (b"UNICODE\0" + UNICODE.encode("utf-16-le") + bytes(6), UNICODE),
        (b"ASCII\0\0\0" + TEXT.encode(), TEXT),
        (b"ASCII\0\0\0" + TEXT.encode() + bytes(5), TEXT),
        (b"JIS\0\0\0\0\0" + "a 木".encode("iso2022_jp"), "a 木"),
        (bytes(8) + UNICODE.encode("utf-8"), UNICODE),
        (bytes(8) + UNICODE.encode("utf-16-le"), UNICODE),
        (UNICODE.encode("utf-8"), UNICODE),
        (TEXT.encode(), TEXT),
        (b"UNICODE\0", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_user_comments_of_every_encoding_are_read(
    tmp_path: Path, suffix: str, comment: bytes, wanted: str | None
):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    IMAGE.save(tmp_path / f"a.{suffix}", exif=exif.tobytes())
    assert read_parameters(tmp_path / f"a.{suffix}") == wanted


def test_other_exif_tags_that_hold_the_text_are_read(tmp_path: Path) -> None:
    for tag, value in ((0x9C9C, UNICODE.encode("utf-16-le") + b"\0\0"), (0x010E, TEXT)):
        exif = Image.Exif()
        exif[tag] = value
        IMAGE.save(tmp_path / "a.jpg", exif=exif)
        assert read_parameters(tmp_path / "a.jpg") == (UNICODE if tag == 0x9C9C else TEXT)


BASE = "a rocket\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, Seed: 3, Size: 64x64"


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        BASE + "\n",
        BASE + "\r\n\r\n",
        BASE.replace("\n", "\r\n"),
        BASE.replace("Neg", "  Neg"),
        BASE + "\nTemplate: a {rocket|car}\nNegative Template: blurry, ugly",
        BASE + "\n\nTemplate: a {rocket|car}\nof many: lines, of: text, and: more",
        BASE + ', Wildcard prompt: "a\nb, c: d, e: f, g: h"',
        BASE.replace(", ", ",  "),
    ],
)
def test_settings_are_found_behind_everything_that_extensions_add(text: str) -> None:
    prompt, negative_prompt, fields = parse_parameters(text)
    assert (prompt, negative_prompt) == ("a rocket", "blurry")
    assert {key: fields[key] for key in ("Steps", "Sampler", "Seed", "Size")} == {
        "Steps": "4",
        "Sampler": "Euler",
        "Seed": "3",
        "Size": "64x64",
    }


def request_of(fields: str, tmp_path: Path) -> Any:
    info = PngInfo()
    info.add_text(
        "parameters", f"a rocket\nSteps: 4, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 64x64, {fields}"
    )
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    return recorded(read_recipes(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ("Tiling: True", {"seamless": "both"}),
        ("Tiling: False", {}),
        ("SAG Guidance Enabled: True, SAG Guidance Scale: 0.5", {"sag_scale": 0.5}),
        ("SAG Guidance Enabled: False, SAG Guidance Scale: 0.5", {}),
        ("Dynamic thresholding enabled: True, Mimic scale: 6, Threshold percentile: 95",
         {"mimic_scale": 6.0, "threshold_percentile": 0.95}),
        ("dynthres_enabled: True, dynthres_mimic_scale: 8, dynthres_threshold_percentile: 1",
         {"mimic_scale": 8.0, "threshold_percentile": 1.0}),
        ("pag_enabled: True, pag_scale: 2", {"pag_scale": 2.0}),
        ("CFG Rescale: 0.7", {"cfg_rescale": 0.7}),
        ("Skip Early CFG: 0.2", {"guidance_start": 0.2}),
        ("Hypernet: style, Hypernet strength: 0.5", {"prompt": "a rocket<hypernet:style:0.5>"}),
        ("Hires resize: 128x128, Hires upscaler: Latent, Denoising strength: 0.5, Hires steps: 0",
         {"hires": 2.0, "hires_strength": 0.5}),
        ("Clip skip: 2, RNG: CPU, Version: v1.10, VAE: Automatic, ENSD: 0", {"clip_skip": 2}),
        ("Emphasis: No norm", {"prompt_language": "a1111_no_norm"}),
        ("Eta: 0", {"eta": 0.0}),
        ("Eta: 0.5", {"eta": 0.5}),
        ("Eta: 1", {}),
        ("Sampler: DDIM, Eta DDIM: 0.5", {"sampler": "ddim", "eta": 0.5}),
        ("Sampler: DDIM, Eta: 0.5", {"sampler": "ddim", "eta": 0.5}),
        ("Sampler: DDIM", {"sampler": "ddim"}),
        ("Sampler: DPM fast", {"sampler": "dpm_fast", "eta": 1.0}),
        ("Sampler: DPM adaptive, Eta: 0", {"sampler": "dpm_adaptive"}),
        ("Sampler: TCD, Eta: 0.5", {"sampler": "tcd", "eta": 0.5}),
        ("Sampler: Euler, Eta: 1", {"sampler": "euler"}),
    ],
)  # fmt: skip
def test_what_a1111_writes_is_applied(tmp_path: Path, fields: str, changed: dict) -> None:
    known = request_of(fields, tmp_path)
    assert known.not_applied == ()
    base = request_of("Version: 1", tmp_path).request
    assert known.request == type(base).model_validate(base.model_dump() | changed)


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ('ControlNet 0: "Module: canny, Weight: 1"', ("ControlNet 0: Module: canny, Weight: 1",)),
        ("Face restoration: CodeFormer", ("Face restoration: CodeFormer",)),
        ("ENSD: 31337, RNG: NV", ("ENSD: 31337", "RNG: NV")),
        ("Sampler: Euler, Eta: 0.5, Sigma churn: 2", ("Eta: 0.5", "Sigma churn: 2")),
        ("VAE: orange.vae.pt, VAE hash: abc", ("VAE: orange.vae.pt",)),
        ("ADetailer model: face.pt, ADetailer version: 23", ("ADetailer model: face.pt", "ADetailer version: 23")),
        ("Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+, Denoising strength: 0.3",
         ("Hires upscaler: R-ESRGAN 4x+; lanczos is used in its place",)),
    ],
)  # fmt: skip
def test_what_is_not_applied_is_named(tmp_path: Path, fields: str, lines: tuple[str, ...]) -> None:
    assert request_of(fields, tmp_path).not_applied == lines


GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 2**50, "steps": 4, "cfg": 6.5, "sampler_name": "dpmpp_2m_sde", "scheduler": "karras", "denoise": 1,
            "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a rocket", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "rain", "clip": ["10", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "x.safetensors", "strength_model": 0.5, "strength_clip": 0.25, "model": ["4", 0]},
    },
}  # fmt: skip
PROGRAMS = {
    "invokeai": ("invokeai_metadata", {
        "positive_prompt": "a rocket", "negative_prompt": "rain", "width": 96, "height": 64, "seed": 7, "steps": 4,
        "cfg_scale": 6.5, "scheduler": "dpmpp_2m_sde_k", "model": {"name": "sd15"}}),
    "swarmui": ("parameters", {"sui_image_params": {
        "prompt": "a rocket", "negativeprompt": "rain", "model": "sd15", "seed": 7, "steps": 4, "cfgscale": 6.5,
        "width": 96, "height": 64, "sampler": "dpmpp_2m_sde", "scheduler": "karras"}}),
    "fooocus": ("parameters", {
        "prompt": "a rocket", "negative_prompt": "rain", "steps": 4, "resolution": "(96, 64)", "guidance_scale": 6.5,
        "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": 7, "base_model": "sd15"}),
    "novelai": ("Comment", {
        "prompt": "a rocket", "uc": "rain", "steps": 4, "width": 96, "height": 64, "scale": 6.5, "seed": 7,
        "sampler": "k_dpmpp_2m_sde", "noise_schedule": "karras"}),
}  # fmt: skip
WANTED = {
    "prompt": "a rocket",
    "negative_prompt": "rain",
    "steps": 4,
    "cfg_scale": 6.5,
    "width": 96,
    "height": 64,
}
WANTED |= {"sampler": "dpmpp_2m_sde", "schedule": "karras"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_recipes_of_other_programs_are_drawn(tmp_path: Path, program: str) -> None:
    key, content = PROGRAMS[program]
    info = PngInfo()
    info.add_text(key, json.dumps(content))
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    recipes = read_recipes(tmp_path / "a.png")
    assert list(recipes) == [program]
    request = recorded(recipes).request.model_dump()
    assert {name: request[name] for name in WANTED} == WANTED and request["seed"] == 7


@pytest.mark.parametrize("sampler", ["dpm_fast", "ddim", "euler_ancestral", "tcd"])
def test_a_sampler_of_other_programs_has_its_own_eta(sampler: str) -> None:
    """Which A1111's default, the one of texts without it, is not for all of them."""
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"]["sampler_name"] = sampler
    request = recorded({"comfyui": graph}).request
    assert (request.sampler, request.eta) == (sampler, None)


@pytest.mark.parametrize("where", ["png", "webp", "jpg"])
def test_comfyuis_graph_is_read_wherever_it_is_stored(tmp_path: Path, where: str) -> None:
    if where == "png":
        info = PngInfo()
        info.add_text("prompt", json.dumps(GRAPH))
        IMAGE.save(tmp_path / "a.png", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[0x0110] = "prompt:" + json.dumps(GRAPH)
        exif[0x010F] = "workflow:" + json.dumps({"nodes": []})
        IMAGE.save(tmp_path / f"a.{where}", exif=exif)
    recipes = read_recipes(tmp_path / f"a.{where}")
    assert recipes["comfyui"] == GRAPH
    known = recorded(recipes)
    request = known.request.model_dump()
    assert {name: request[name] for name in WANTED if name != "prompt"} == {
        name: value for name, value in WANTED.items() if name != "prompt"
    }
    assert (request["prompt"], request["seed"]) == ("a rocket<lora:x:0.25:0.5>", 2**50)
    assert request["prompt_language"] == "comfy" and known.model["name"] == "sd15"


def test_comfyui_graphs_that_cannot_be_drawn_say_why(tmp_path: Path) -> None:
    odd = json.loads(json.dumps(GRAPH))
    odd["3"]["inputs"]["denoise"] = 0.5
    for content, message in (
        ({"comfyui": odd}, "made from another picture"),
        ({"comfyui": {"1": {"class_type": "LoadImage", "inputs": {}}}}, "0 samplers"),
        ({"comfyui workflow": {"nodes": []}}, "editor's workflow"),
        ({"comfyui": GRAPH | {"5": {}}}, "does not say enough"),
    ):
        with pytest.raises(ValueError, match=message):
            recorded(content)


def test_novelais_hidden_recipe_is_read(tmp_path: Path) -> None:
    content = {"Comment": json.dumps(PROGRAMS["novelai"][1]), "Software": "NovelAI"}
    packed = gzip.compress(json.dumps(content).encode())
    bits = np.unpackbits(
        np.frombuffer(b"stealth_pngcomp" + struct.pack(">I", 8 * len(packed)) + packed, np.uint8)
    )
    alpha = np.full(96 * 64, 255, np.uint8)
    alpha[: len(bits)] = 254 + bits
    image = Image.new("RGB", (96, 64))
    image.putalpha(Image.fromarray(alpha.reshape(96, 64).T))
    image.save(tmp_path / "a.png")
    assert read_recipes(tmp_path / "a.png") == {"novelai": PROGRAMS["novelai"][1]}
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / "b.png")
    assert read_recipes(tmp_path / "b.png") == {}


def test_nan_in_json_is_null(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", '{"1": {"class_type": "LoadImage", "is_changed": [NaN, Infinity]}}')
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    assert read_recipes(tmp_path / "a.png")["comfyui"]["1"]["is_changed"] == [None, None]


def test_wrong_values_are_said_in_plain_words(tmp_path: Path) -> None:
    for fields, message in (
        ("Clip skip: 99", "Clip skip '99' is too large; the most is 32"),
        ("Token merging ratio: high", "Token merging ratio 'high' is not a number"),
        ("Variation seed: 1.5", "Variation seed '1.5' is not a whole number"),
        ("CFG Rescale: x", "cfg_rescale 'x' is not a number"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            request_of(fields, tmp_path)


RAMP = np.tile(np.linspace(0, 65535, 64), (64, 1)).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(">u2").view(np.uint16))
        if sys.byteorder == "big"
        else Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray((RAMP / 65535).astype(np.float32)),
        Image.fromarray((RAMP / 257).astype(np.float32)),
    ],
    ids=["I;16", "I;16 again", "I", "F to 1", "F to 255"],
)
def test_grey_of_more_than_eight_bits_is_scaled(image: Image.Image) -> None:
    wanted = (RAMP / 257).round()
    for mode in ("RGB", "L"):
        got = np.asarray(in_mode(image, mode)).astype(int)
        assert np.abs(got.reshape(64, 64, -1)[..., 0] - wanted).max() <= 1


def test_sixteen_bit_files_are_scaled(tmp_path: Path) -> None:
    for suffix in ("png", "tiff"):
        Image.fromarray(RAMP).save(tmp_path / f"ramp.{suffix}")
        got = np.asarray(open_picture(tmp_path / f"ramp.{suffix}"))[0, :, 0]
        assert got[[0, 16, 32, 48, 63]].tolist() == [0, 65, 130, 194, 255]
        assert np.asarray(open_picture(tmp_path / f"ramp.{suffix}", "F")).max() == 65535


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "La", "RGBa"])
def test_the_opacity_of_a_mask_that_is_not_opaque_is_the_mask(mode: str) -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((0, 0, 0, 255), (24, 24, 40, 40))
    if mode == "P":
        mask = mask.convert("RGB").convert("P")
        mask.info["transparency"] = mask.getpixel((0, 0))
    elif mode in ("La", "RGBa"):
        mask = mask.convert("LA" if mode == "La" else "RGBA").convert(mode)
    elif mode == "PA":
        opacity, mask = mask.getchannel("A"), mask.convert("RGB").convert("P")
        mask.putalpha(opacity)
        assert mask.mode == "PA"
    else:
        mask = mask.convert(mode)
    got = np.asarray(in_mode(mask, "L"))
    assert got[:24].max() == 0 and got[24:40, 24:40].min() == 255


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "RGBA", "LA"]
)
def test_pictures_of_every_mode_are_taken(mode: str) -> None:
    white = Image.new("RGBA" if mode == "RGBA" else "RGB", (8, 8), "white").convert(
        "L" if mode == "LA" else mode
    )
    white = white.convert("LA") if mode == "LA" else white
    if mode == "I":
        white = Image.new("I", (8, 8), 65535)
    for wanted in ("RGB", "L"):
        assert np.asarray(in_mode(white, wanted)).min() >= 254


def test_a_mask_of_dark_grey_masks_nothing(model: Model) -> None:
    dark = Image.fromarray(np.full((64, 64), 300, np.uint16))  # of 65535
    with pytest.raises(ValueError, match="nothing to draw"):
        model.inpaint("a", IMAGE, dark, steps=1)
