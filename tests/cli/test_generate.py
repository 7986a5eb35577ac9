"""`inkwash generate`: files, reports, exit codes and the one line for each mistake."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from inkwash.cli import options
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.files import ModelFileError
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import read_parameters


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def same(a, b):
    with Image.open(a) as first, Image.open(b) as second:
        return ImageChops.difference(first, second).getbbox() is None


def test_picture_carries_its_recipe(run, tiny, tmp_path):
    result = run(
        *(
            "generate",
            "a red taxi, noto style",
            "--negative-prompt",
            "blue",
            "--steps",
            2,
            "--cfg-scale",
            4.5,
        ),
        *("--seed", 7, "--width", 48, "--sampler", "euler", "--schedule", "karras"),
        *("--model", tiny, "--output", "taxi.png"),
    )
    assert result == (0, "taxi.png\n", "")
    with Image.open("taxi.png") as image:
        assert (image.size, image.mode) == ((48, 32), "RGB")
    prompt, negative_prompt, fields = parse_parameters(read_parameters(tmp_path / "taxi.png") or "")
    assert (prompt, negative_prompt) == ("a red taxi, noto style", "blue")
    expected = {"Steps": "2", "Sampler": "Euler", "Schedule type": "Karras", "CFG scale": "4.5", "Seed": "7"}
    expected |= {"Size": "48x32", "Model": "tiny"}
    assert fields.items() >= expected.items()


def test_default_name_comes_from_prompt_and_seed_and_replaces_nothing(run, tiny, tmp_path):
    for _ in range(2):
        assert run("generate", "A red/taxi!", "--steps", 1, "--seed", 7, "--model", tiny).code == 0
    assert run("generate", "", "--steps", 1, "--seed", 7, "--model", tiny).out == "image-7.png\n"
    assert names(tmp_path) == ["a-red-taxi-7-2.png", "a-red-taxi-7.png", "image-7.png"]
    assert same("a-red-taxi-7.png", "a-red-taxi-7-2.png")


def test_output_replaces_what_is_there(run, tiny, tmp_path):
    (tmp_path / "a.png").write_text("old")
    assert run("generate", "a", "--steps", 1, "--model", tiny, "--output", "a.png").code == 0
    assert Image.open("a.png").size == (32, 32)
    assert names(tmp_path) == ["a.png"]


def test_random_seed_is_printed_and_repeats_the_picture(run, tiny):
    first = run("generate", "a", "--steps", 1, "--model", tiny, "--output", "first.png")
    seed = int(first.err.removeprefix("seed "))
    assert run("generate", "a", "--steps", 1, "--model", tiny, "--output", "b.png", "--seed", seed).err == ""
    assert same("first.png", "b.png")
    assert run("generate", "a", "--steps", 1, "--model", tiny, "--output", "c.png").err != first.err
    assert not same("first.png", "c.png")


def test_batch_counts_names_and_seeds(run, tiny, tmp_path):
    common = ("generate", "a", "--steps", 1, "--seed", 5, "--model", tiny)
    assert run(*common, "--batch-size", 2, "--output", "a.webp").out == "a-1.webp\na-2.webp\n"
    assert run(*common, "--batch-size", 2).out == "a-5.png\na-6.png\n"
    assert parse_parameters(read_parameters(tmp_path / "a-2.webp") or "")[2]["Seed"] == "6"
    run(*common, "--batch-size", 10, "--output", "many/../b.jpg")
    assert not (tmp_path / "b-01.jpg").exists()  # there is no folder `many`
    assert run(*common, "--batch-size", 10, "--output", "b.jpg").out.split()[::9] == ["b-01.jpg", "b-10.jpg"]


def test_json_report(run, tiny):
    result = run("generate", "é", "--steps", 2, "--seed", 5, "--batch-size", 2, "--model", tiny, "--json")
    report = json.loads(result.out)
    assert result.out.count("\n") == 1
    assert report["images"] == [{"path": "é-5.png", "seed": 5}, {"path": "é-6.png", "seed": 6}]
    assert report["model"]["name"] == "tiny" and len(report["model"]["hash"]) == 10
    assert report["seconds"].keys() == {"load", "sample"} and min(report["seconds"].values()) > 0
    expected = {"prompt": "é", "steps": 2, "seed": 5, "width": 32, "height": 32, "sampler": "dpmpp_2m"}
    assert report["parameters"].items() >= expected.items()


USAGE = {
    "--steps 0": ["--steps 0", "1"],
    "--steps 2.5": ["--steps", "'2.5'", "whole number"],
    "--steps x": ["--steps", "'x'", "whole number"],
    "--steps": ["--steps requires an argument"],
    "--batch-size 0": ["--batch-size 0", "1"],
    "--batch-size 100000000": ["--batch-size 100000000", "64"],
    "--cfg-scale nan": ["--cfg-scale nan", "finite"],
    "--cfg-scale=-inf": ["--cfg-scale -inf", "finite"],
    "--cfg-scale much": ["--cfg-scale", "much", "float"],
    "--width 8": ["--width 8", "32"],
    "--height -64": ["--height -64", "32"],
    "--seed -1": ["--seed -1", "0"],
    "--seed 9223372036854775808": ["--seed 9223372036854775808", "too large"],
    "--seed 9223372036854775807 --batch-size 2": ["seed", "9223372036854775808"],
    "--crop 1": ["--crop", "too few values"],
    "--sampler eule": ["--sampler", "'eule'", *SAMPLERS],
    "--schedule caras": ["--schedule", "'caras'", *SCHEDULES],
    "--output a.gif": ["--output", "'a.gif'", ".png, .jpg, .jpeg, .webp"],
    "--output a": ["--output", "'a'", ".png"],
    "--stepz 3": ["--stepz", "--steps"],
    "another": ["another"],
}


@pytest.mark.parametrize("arguments", USAGE)
def test_mistake_is_one_line_before_the_model_is_opened(run, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("inkwash.load", lambda *_, **__: pytest.fail("the model was opened"))
    result = run("generate", "a cat", *arguments.split())
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("inkwash: ")
    for part in USAGE[arguments]:
        assert part in result.err
    assert not names(tmp_path)


def test_each_problem_has_its_line(run):
    result = run("generate", "a", "--steps", 0, "--cfg-scale", "nan")
    assert result.code == 2
    assert [line.split()[1] for line in result.err.splitlines()] == ["--steps", "--cfg-scale"]


@pytest.mark.parametrize(
    "argv", [["generate"], ["paint", "a"], ["generate", "\udcff"], ["explain", "noise", "a"], ["--nope"]]
)
def test_wrong_command_is_one_line(run, argv):
    result = run(*argv)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_size_that_does_not_fit_the_model_names_the_nearest(run, tiny, tmp_path):
    result = run("generate", "a", "--width", 33, "--seed", 1, "--model", tiny)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "width 33" in result.err and "32" in result.err and "34" in result.err
    assert not names(tmp_path)


def test_output_that_cannot_be_written_is_said_before_the_model_is_opened(run, tmp_path, monkeypatch):
    monkeypatch.setattr("inkwash.load", lambda *_, **__: pytest.fail("the model was opened"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for output, part in {
        "none/a.png": "no folder none",
        "file/a.png": "no folder file",
        "folder.png": "is a folder",
        f"{'a' * 300}.png": "too long",
        "/proc/a.png": "No such file",
        "": "does not end in",
        ".": "does not end in",
    }.items():
        result = run("generate", "a", "--seed", 1, "--output", output)
        assert (result.code, result.out, result.err.count("\n")) == (1 if len(output) > 1 else 2, "", 1)
        assert output in result.err and part in result.err
    assert names(tmp_path) == ["file", "folder.png"]


def test_disk_that_fills_up_leaves_nothing(run, tiny, tmp_path, monkeypatch):
    def write(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    result = run("generate", "a", "--steps", 1, "--seed", 1, "--model", tiny)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err == "inkwash: a-1.png: No space left on device\n"
    assert not names(tmp_path)


def test_model_that_is_missing_or_damaged(run, tiny, tmp_path):
    result = run("generate", "a", "--seed", 1, "--model", "nowhere")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "nowhere" in result.err and "mini" in result.err

    for damage in (
        lambda broken: (broken / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"junk"),
        lambda broken: shutil.rmtree(broken / "vae"),
        lambda broken: (broken / "model_index.json").write_text("{"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(tiny, broken, dirs_exist_ok=True)
        damage(broken)
        result = run("generate", "a", "--seed", 1, "--model", broken)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert str(broken) in result.err
        shutil.rmtree(broken)


def test_too_little_memory_is_one_line(run, tiny, monkeypatch):
    def text_to_image(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("inkwash.pipeline.tasks.text_to_image.text_to_image", text_to_image)
    result = run("generate", "a", "--seed", 1, "--model", tiny)
    assert (result.code, result.err) == (1, "inkwash: not enough memory; draw fewer or smaller pictures\n")


def test_error_of_our_own_is_not_hidden(run, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("inkwash.load", load)
    with pytest.raises(RuntimeError, match="a bug"):
        run("generate", "a")


def test_message_of_several_lines_keeps_its_mark(run, monkeypatch):
    def load(*_, **__):
        raise ModelFileError("first\nsecond")

    monkeypatch.setattr("inkwash.load", load)
    assert run("generate", "a", "--seed", 1).err == "inkwash: first\ninkwash: second\n"


def test_ctrl_c_while_sampling(run, tiny, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def progress(num_steps):
        def on_step(step):
            seen.append(step.index)
            if step.index == 2:
                raise KeyboardInterrupt

        yield on_step

    monkeypatch.setattr(options, "progress", progress)
    result = run("generate", "a", "--seed", 1, "--model", tiny)
    assert result == (130, "", "inkwash: interrupted\n")
    assert seen == [0, 1, 2]
    assert not names(tmp_path)


def test_ctrl_c_while_writing(run, tiny, tmp_path, monkeypatch):
    def write(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    (tmp_path / "a.png").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", write)
    result = run("generate", "a", "--steps", 1, "--seed", 1, "--model", tiny, "--output", "a.png")
    assert result.code == 130
    assert names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_text() == "old"


def test_sigint_to_the_process(tiny, tmp_path):
    command = [sys.executable, "-m", "inkwash", "generate", "a", "--steps", "500", "--model", str(tiny)]
    heard = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a background job inherits that it is ignored
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("seed ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "inkwash: interrupted\n")
    assert not names(tmp_path)


def test_progress_is_drawn_on_a_terminal_only(run, tiny, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way of saying that stderr is a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    common = ("generate", "a", "--steps", 2, "--seed", 1, "--model", tiny)
    coloured = run(*common)
    assert "2/2" in coloured.err and "\x1b[3" in coloured.err
    assert coloured.out == "a-1.png\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run(*common).err
    assert "2/2" in plain and "\x1b[3" not in plain
