"""Help answers at once, and whole."""

import importlib
import inspect
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest
from cyclopts import App

from inkwash.cli import LATER, main
from inkwash.cli.train import about
from inkwash.cli.verbs import VERBS
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import SCHEDULES
from inkwash.training.methods import METHODS


def test_help_and_version_need_no_torch():
    script = (
        "import sys; from inkwash.cli import main\n"
        "codes = [main(argv) for argv in (['--help'], ['generate', '--help'], ['--version'], ['version'])]\n"
        "needless = {'torch', 'PIL', 'numpy', 'inkwash.training.methods'}\n"
        "print(codes, sorted(needless & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == "[0, 0, 0, 0] []"
    assert lines[-2] == lines[-3] and lines[-2].startswith("inkwash ")
    for name in (*SAMPLERS, *SCHEDULES, "--negative-prompt", "--batch-size", "--json"):
        assert name in done.stdout


def test_every_verb_that_draws_is_in_the_list() -> None:
    assert set(VERBS) <= set(LATER)


@pytest.mark.parametrize("verb", LATER)
def test_a_verb_that_is_read_later_has_its_own_line_in_the_list(verb: str) -> None:
    place, line = LATER[verb]
    module, _, name = place.partition(":")
    found = getattr(importlib.import_module(f"inkwash.cli.{module}"), name)
    whole = found.help if isinstance(found, App) else inspect.cleandoc(found.__doc__ or "")
    first = " ".join(whole.partition("\n\n")[0].split())
    assert first.removesuffix(" Prints the path.") == line


def test_a_verb_that_is_read_later_has_its_whole_help(run) -> None:
    assert "what was accepted is drawn, also after a crash" in run("serve", "--help").out


def test_choices_of_training_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for method in METHODS.values():
        for field in method.config.model_fields.values():
            if get_origin(field.annotation) is Literal and isinstance(field.default, str):
                assert all(one in about(field) for one in get_args(field.annotation))
    assert main(["train", "lora", "--help"]) == 0
    help = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--save-dtype STR Of the file; one of fp16, bf16, fp32; default: fp16." in help
