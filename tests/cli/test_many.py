"""`inkwash generate --from-file`: a picture of each line, gone on with, and by a cluster whose worker is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import inkwash
from inkwash.pipeline.api import Pipeline
from tests.support.processes import descendants

LINES = ["a fox", "", "a red taxi"]


def same(path: Path, model: Pipeline, prompt: str, seed: int, **options: int) -> bool:
    with Image.open(path) as image:
        return image.tobytes() == model.text_to_image(prompt, seed=seed, **options)[0].tobytes()


def test_a_picture_of_each_line_is_that_of_its_prompt_and_seed(run, tiny: Path) -> None:
    Path("p.txt").write_text("\n".join(LINES))
    common = ("generate", "--from-file", "p.txt", "--steps", 2, "--model", tiny)
    assert run(*common, "--seed", 5).out == f"2 drawn into p{os.sep}, 0 were there\n"
    model, made = inkwash.load(tiny), sorted(Path("p").glob("*.png"))
    assert [path.name for path in made] == ["00000000.png", "00000002.png"]
    assert same(made[0], model, "a fox", 5, steps=2) and same(made[1], model, "a red taxi", 7, steps=2)
    before = made[0].stat().st_mtime_ns
    made[1].unlink()
    Path("p.txt").write_text("\n".join([*LINES, "a house"]))
    report = json.loads(run(*common, "--json").out)
    assert report == {"folder": "p", "drawn": 2, "there": 1, "failed": [], "seed": 5}
    assert made[0].stat().st_mtime_ns == before and same(made[1], model, "a red taxi", 7, steps=2)
    assert same(Path("p/00000003.png"), model, "a house", 8, steps=2)
    assert run(*common, "--json").out == json.dumps(report | {"drawn": 0, "there": 3}) + "\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "3"], "p holds pictures of other options or lines"),
        (["--seed", "6"], "p holds pictures of other options or lines"),
        (["--cfg-scale", "2", "--output", "p.txt"], "--output p.txt is a file"),
        (["--batch-size", "2"], "--from-file draws one picture of each line"),
        (["--grid", "steps=1,2"], "--from-file draws a picture of each line, and goes without"),
        (["--ray", "-1"], "--ray -1: 1 to 10000 workers, for --from-file"),
    ],
)
def test_what_does_not_fit_is_one_line(run, tiny: Path, more: list[str], message: str) -> None:
    Path("p.txt").write_text("a fox")
    common = ("generate", "--from-file", "p.txt", "--model", tiny)
    assert run(*common, "--steps", 1, "--seed", 5).code == 0
    result = run(*common, *([] if "--steps" in more else ["--steps", 1]), *more)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_a_changed_file_does_not_go_on_in_the_same_folder(run, tiny: Path) -> None:
    common = ("generate", "--from-file", "p.txt", "--steps", 1, "--model", tiny)
    Path("p.txt").write_text("a fox")
    assert run(*common).code == 0
    Path("p.txt").write_text("a taxi")
    assert run(*common).code == 2


def test_a_line_that_fails_costs_itself(run, tiny: Path) -> None:
    Path("p.txt").write_text("a fox\n<lora:nowhere:1>\na taxi")
    result = run("generate", "--from-file", "p.txt", "--steps", 1, "--seed", 1, "--model", tiny)
    assert result.code == 1 and result.err.startswith("inkwash: line 2: ")
    assert len(list(Path("p").glob("*.png"))) == 2


def test_prompts_have_one_source(run, tiny: Path) -> None:
    Path("p.txt").write_text("a fox")
    for argv in (("generate",), ("generate", "a fox", "--from-file", "p.txt")):
        assert run(*argv).err == "inkwash: give PROMPT, or --from-file FILE in its place\n"
    assert run("generate", "a fox", "--ray", 2).code == 2


@pytest.mark.full  # a cluster starts in some 10 seconds
@pytest.mark.skipif(not find_spec("ray"), reason="needs the extra cluster")
def test_workers_of_a_cluster_draw_the_same_though_one_is_killed(tmp_path: Path, tiny: Path) -> None:
    prompts = [f"thing {k}" for k in range(100)]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    command = f"generate --from-file p.txt --steps 20 --seed 1 --ray 2 --model {tiny} --output drawn".split()
    process = subprocess.Popen([sys.executable, "-m", "inkwash", *command], cwd=tmp_path)
    folder, end = tmp_path / "drawn", time.monotonic() + 400
    while len(list(folder.glob("*.png"))) < 20:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    workers = [pid for pid in descendants(process.pid) if b"ray::Drawer" in command_of(pid)]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(400) == 0
    model, made = inkwash.load(tiny), sorted(folder.glob("*.png"))
    assert len(made) == len(prompts)
    for k in range(0, len(prompts), 7):
        assert same(made[k], model, prompts[k], 1 + k, steps=20)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
