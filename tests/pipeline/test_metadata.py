"""The recipe inside a picture's file comes back as it went, and reads as A1111's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import IFD

from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES, USUAL
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES, resolve
from inkwash.pipeline.record.a1111 import format_parameters, parse_parameters
from inkwash.pipeline.record.containers import USER_COMMENT
from inkwash.pipeline.record.metadata import read_parameters, save_image
from inkwash.pipeline.task_requests import TextToImageRequest

FIELDS = {"Steps": 20, "Sampler": "euler", "Seed": 7}

# Few letters, so that the marks which matter meet each other often.
texts = st.text(st.sampled_from('ab ,:"\\\n\r\té木0')) | st.text(st.characters(exclude_categories=["Cs"]))
# what the format cannot tell apart: a line that looks like the negative prompt's, and a carriage return at a line's end
prompts = texts.filter(lambda text: not re.search(r"^[ \t]*Negative prompt:|\r$", text, re.MULTILINE))
negative_prompts = texts.filter(lambda text: not re.search(r"\r$", text, re.MULTILINE))
keys = st.from_regex(r"[A-Za-z0-9é][A-Za-z0-9 /\-]{1,20}", fullmatch=True)


@given(prompts, negative_prompts, st.dictionaries(keys, texts, min_size=3))
def test_parse_is_the_inverse_of_format(prompt, negative_prompt, fields):
    text = format_parameters(prompt, negative_prompt, fields)
    assert parse_parameters(text) == (prompt, negative_prompt, fields)


def test_text_is_what_a1111_writes():
    fields = {
        "Version": "v1.10.1",
        "Lora hashes": "a: 12ab, b: 34cd",
        "Model": "name",
        "Size": "512x512",
        "Seed": 1,
        "CFG scale": 7,
        "VAE": None,
        "Schedule type": "karras",
        "Sampler": "dpmpp_2m",
        "Steps": 20,
    }
    assert format_parameters("a cat\non a mat", "dog,\nrat", fields) == (
        "a cat\non a mat\nNegative prompt: dog,\nrat\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
        'Model: name, Lora hashes: "a: 12ab, b: 34cd", Version: v1.10.1'
    )


def test_empty_prompts_leave_no_lines():
    assert format_parameters("", "", FIELDS) == "Steps: 20, Sampler: Euler, Seed: 7"
    assert format_parameters("", "dog", FIELDS).startswith("Negative prompt: dog\nSteps")


@pytest.mark.parametrize("text", ["a cat, 4k: yes", "a\nb: c, dd: e", "", "Negative: no"])
def test_text_without_a_line_of_pairs_is_all_prompt(text):
    assert parse_parameters(text) == (text, "", {})


def test_quotes_that_are_no_json_stay():
    assert parse_parameters('a\nSteps: 1, Odd: "\\x", Seed: 2')[2]["Odd"] == '"\\x"'


@pytest.mark.parametrize(
    "fields", [{"Steps": 1, "Seed": 2}, FIELDS | {"a:b": 1}, FIELDS | {"a": 1}, FIELDS | {"": 1}]
)
def test_fields_that_would_be_lost_are_refused(fields):
    with pytest.raises(ValueError, match="fields|key"):
        format_parameters("a cat", "", fields)


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (("DPM++ 2M Karras", "automatic"), ("dpmpp_2m", "karras")),
        (("DPM++ 2M Karras", "Exponential"), ("dpmpp_2m", "exponential")),
        (("DPM++ 2M SDE Heun SGM Uniform", "automatic"), ("dpmpp_2m_sde_heun", "sgm_uniform")),
        (("Euler a", "Automatic"), ("euler_ancestral", "automatic")),
        (("k_euler_a", "Normal"), ("euler_ancestral", "uniform")),
        (("k_dpmpp_2m", "automatic"), ("dpmpp_2m", "automatic")),
        (("sample_dpmpp_2s_ancestral", "SGM Uniform"), ("dpmpp_2s_ancestral", "sgm_uniform")),
        (("dpmpp_3m_sde_gpu", "ddim_uniform"), ("dpmpp_3m_sde", "ddim")),
        (("DDIM", "DDIM"), ("ddim", "ddim")),
        (("Nobody Karras", "nothing"), ("Nobody Karras", "nothing")),
    ],
)
def test_other_programs_names_are_known(given, own):
    assert resolve(*given) == own


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_own_and_display_names_are_known(sampler, schedule):
    assert resolve(sampler, schedule) == (sampler, schedule)
    assert resolve(SAMPLER_NAMES[sampler], SCHEDULE_NAMES[schedule]) == (sampler, schedule)
    request = TextToImageRequest(prompt="", sampler=SAMPLER_NAMES[sampler], schedule=SCHEDULE_NAMES[schedule])
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_every_sampler_and_schedule_has_its_display_name():
    assert SAMPLER_NAMES.keys() == SAMPLERS.keys()
    assert SCHEDULE_NAMES.keys() == SCHEDULES.keys() | {"automatic"}
    assert USUAL.keys() < SAMPLERS.keys() and set(USUAL.values()) < SCHEDULES.keys()
    for names in (SAMPLER_NAMES, SCHEDULE_NAMES):
        assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("prompt", ["a red taxi", "un café\nle soir", "木の絵 🖼"])
def test_file_keeps_the_parameters(tmp_path, suffix, prompt):
    image = Image.new("RGB", (32, 24), (200, 30, 30))
    image.info["parameters"] = format_parameters(prompt, "", FIELDS)
    save_image(image, tmp_path / f"a{suffix}")
    assert read_parameters(tmp_path / f"a{suffix}") == image.info["parameters"]
    with Image.open(tmp_path / f"a{suffix}") as saved:
        assert saved.size == (32, 24)
    assert [file.name for file in tmp_path.iterdir()] == [f"a{suffix}"]


def test_image_without_parameters_has_none(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / name)
        assert read_parameters(tmp_path / name) is None


def test_other_byte_order_and_ascii_comments_are_read(tmp_path):
    text = "a cat\nSteps: 2, Seed: 1, Size: 8x8"
    for code, encoding in (
        (b"UNICODE\0", "utf-16-le"),
        (b"UNICODE\0", "utf-16-be"),
        (b"ASCII\0\0\0", "ascii"),
    ):
        exif = Image.Exif()
        exif.get_ifd(IFD.Exif)[USER_COMMENT] = code + text.encode(encoding)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
        assert read_parameters(tmp_path / "a.jpg") == text


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_text_too_long_for_jpeg_is_refused(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = "a" * 40_000
    with pytest.raises(ValueError, match="40000 characters"):
        save_image(image, tmp_path / "a.jpg")
    save_image(image, tmp_path / "a.webp")
    assert read_parameters(tmp_path / "a.webp") == image.info["parameters"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.webp"]
