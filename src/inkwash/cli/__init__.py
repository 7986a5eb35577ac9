"""The command line: one file per group of verbs.

Exit codes: 0 done, 1 a file or a model is at fault, 2 the command is at fault, 130 stopped by Ctrl-C. Results
go to stdout; progress, random seeds and the one line that says what is wrong go to stderr. Nothing here
imports torch before a verb needs it, so that help answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from inkwash.cli import (
    annotate,
    bench,
    dataset,
    evaluate,
    explain,
    loras,
    merge,
    models,
    options,
    recipes,
    serve,
    verbs,
)
from inkwash.cli.options import CommandError
from inkwash.cli.usage import usage
from inkwash.process import importing, keep_memory


def version() -> str:
    """Print the version."""
    try:
        return f"inkwash {installed_version('inkwash')}"
    except PackageNotFoundError:  # run from the sources
        return "inkwash (not installed)"


TRAIN = "Train a LoRA, a word, a model: METHOD CONFIG.toml, whose keys are the options."
app = App(
    name="inkwash",
    help="Pictures from words, and how they come about.",
    version=version,
    suppress_keyboard_interrupt=False,  # `main` answers it
    help_format="plaintext",  # <lora:name> and __name__ are no markup
)
for command in verbs.VERBS.values():
    app.command(command)
app.command(recipes.replay)
app.command(recipes.info)
app.command(annotate.annotate)
app.command(models.inspect)
app.command(models.convert)
app.command(merge.app)
app.command(loras.merge_loras)
app.command(loras.extract_lora)
app.command(loras.merge_embeddings)
app.command(evaluate.evaluate)
app.command(evaluate.evaluate_pictures)
app.command(evaluate.fetch_metrics)
# read when it is asked for: describing all methods takes half of the time of `inkwash --help`
app.command("inkwash.cli.train:app", name="train", help=TRAIN)
app.command(dataset.app)
app.command(explain.app)
app.command(bench.app)
app.command(serve.serve)


@app.command(name="version")
def print_version() -> None:
    """Print the version."""
    print(version())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    log, told = logging.getLogger("inkwash"), Told()
    log.addHandler(told)
    keep_memory()
    speak_any_encoding()
    argv = sys.argv[1:] if argv is None else argv
    try:
        verb, given, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
        given.apply_defaults()
        draws = isinstance(given.arguments.get("loading"), options.LoadOptions)
        if draws and verb is not serve.serve:  # whose processes draw
            with importing():
                import inkwash.pipeline.api  # noqa: F401
        verb(*given.args, **given.kwargs)
        if sys.stdout is not None:  # it is where a process was started without one
            sys.stdout.flush()
    except CycloptsError as error:
        return fail(usage(error, argv, app), 2)
    except CommandError as error:
        return fail(str(error), error.code)
    except BrokenPipeError:  # who reads has read enough
        discard_stdout()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    finally:
        log.removeHandler(told)
    return 0


def speak_any_encoding() -> None:
    """Have letters that the terminal or pipe can't encode written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Point stdout nowhere, so that Python doesn't fail when it is flushed at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Told(logging.Handler):
    """Warnings are lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        fail(record.getMessage(), 0)


def fail(message: str, code: int) -> int:
    for line in message.splitlines() if sys.stderr else ():
        print(f"inkwash: {line}", file=sys.stderr)
    return code
