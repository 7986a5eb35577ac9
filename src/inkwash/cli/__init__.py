"""The command line: one file per group of verbs.

Exit codes: 0 done, 1 a file or a model is at fault, 2 the command is at fault, 130 stopped by Ctrl-C. Results
go to stdout; progress, random seeds and the one line that says what is wrong go to stderr. Nothing here
imports torch before a verb needs it, so that help answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from inkwash.cli.usage import CommandError, usage
from inkwash.process import importing, keep_memory


def version() -> str:
    """Print the version."""
    try:
        return f"inkwash {installed_version('inkwash')}"
    except PackageNotFoundError:  # run from the sources
        return "inkwash (not installed)"


# verbs that are imported when they are asked for, so that others start soon; each with its docstring's first line
LATER = {
    "generate": ("verbs:generate", "Draw pictures from a prompt."),
    "edit": ("verbs:edit", "Change a picture by a prompt."),
    "inpaint": ("verbs:inpaint", "Draw the white part of a mask anew; unmasked pixels are unchanged."),
    "outpaint": ("verbs:outpaint", "Extend a picture beyond its sides; its own pixels are unchanged."),
    "depth": ("verbs:depth", "Change a picture by a prompt while its depth stays."),
    "instruct": ("verbs:instruct", "Change a picture by an instruction."),
    "layout": ("verbs:layout", "Draw what boxes name, where they lie."),
    "semantic": ("verbs:semantic", "Draw what a label map shows."),
    "upscale": ("verbs:upscale", "Enlarge a picture, by diffusion or by a pixel upscaler."),
    "vary": ("verbs:vary", "Draw a picture's meaning again, or what lies between two pictures."),
    "replay": ("recipes:replay", "Draw PICTURE again by the recipe inside it, and print the path."),
    "info": (
        "recipes:info",
        "Print how PICTURE was made, as inkwash, AUTOMATIC1111, ComfyUI or InvokeAI wrote it down.",
    ),
    "annotate": ("annotate:annotate", "Make of IMAGE the hint that a ControlNet sees, and print the path."),
    "inspect": ("models:inspect", "Print what MODEL is: its family and parts, and what says so."),
    "convert": ("models:convert", "Write MODEL in the other layout, tensor by tensor, and print the path."),
    "merge": ("merge:app", "Make models of models."),
    "merge-loras": (
        "loras:merge_loras",
        "Add up LoRAs into one file; of a single one, cut its rank or change its names.",
    ),
    "extract-lora": (
        "loras:extract_lora",
        "Make a LoRA of what leads from a base to a model that was tuned from it, and print the path.",
    ),
    "merge-embeddings": ("loras:merge_embeddings", "Make one embedding of several, and print the path."),
    "evaluate": (
        "evaluate:evaluate",
        "Draw what a protocol asks for, compare it with real pictures, and write a report.",
    ),
    "evaluate-pictures": (
        "evaluate:evaluate_pictures",
        "Compare pictures with others: as sets, and with --paired one by one.",
    ),
    "fetch-metrics": (
        "evaluate:fetch_metrics",
        "Download the openly licensed feature networks of `evaluate`, 81 MB, once, and print their files.",
    ),
    "train": ("train:app", "Train a LoRA, a word, a model: METHOD CONFIG.toml, whose keys are the options."),
    "dataset": ("dataset:app", "Pictures to train on."),
    "explain": ("explain:app", "Draw what happens inside."),
    "bench": ("bench:app", "Measure the speed of this machine, with random weights of a family's full size."),
    "serve": (
        "serve:serve",
        "Serve the page and the APIs: inkwash's own, AUTOMATIC1111's, OpenAI's and ComfyUI's.",
    ),
}
app = App(
    name="inkwash",
    help="Pictures from words, and how they come about.",
    version=version,
    suppress_keyboard_interrupt=False,  # `main` answers it
    help_format="plaintext",  # <lora:name> and __name__ are no markup
)
for name, (place, line) in LATER.items():
    app.command(f"inkwash.cli.{place}", name=name, help=line)


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
        if argv and argv[0] in LATER:
            show_whole_help(argv[0])
        verb, given, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
        given.apply_defaults()
        if draws(verb, given.arguments.get("loading")):
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


def draws(verb: Callable[..., object], loading: object) -> bool:
    """Return True for a verb whose own process opens models to draw with them."""
    if loading is None or verb.__module__ == "inkwash.cli.serve":  # whose processes draw
        return False
    from inkwash.cli.options import LoadOptions  # by now the verb has imported it

    return isinstance(loading, LoadOptions)


def show_whole_help(verb: str) -> None:
    """Have the help of one of LATER show its whole docstring, in place of its line."""
    del app[verb]
    app.command(f"inkwash.cli.{LATER[verb][0]}", name=verb)


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
