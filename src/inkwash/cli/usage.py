"""Errors of the command line, with hints on what to type."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)


class CommandError(Exception):
    """An error that ends a command: a line (or one for each problem) for stderr, and the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def usage(error: CycloptsError, argv: Sequence[str], app: App) -> str:
    """One line about an error of the parser. app: with the commands that there are."""
    if isinstance(error, UnknownCommandError):
        return unknown_command(argv, app)
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(map(repr, error.unused_tokens or ()))
        return f"unexpected {words}; put a prompt of several words in quotes"
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        if not word.startswith("--"):
            return f"unknown option {word!r}; if it is a prompt that begins with a dash, put -- before it"
    if isinstance(error, MissingArgumentError) and (given := dashed(error, argv)):
        name, value = given
        return f"{name} requires an argument; for one that begins with a dash, write {name}={value!r}"
    return str(error)


def unknown_command(argv: Sequence[str], app: App) -> str:
    """One line about the first word that is no command of those before it."""
    word = ""
    for word in (each for each in argv if not each.startswith("-")):
        if word not in app:
            break
        app = app[word]
    commands = [name for name in app if not name.startswith("-")]
    near = get_close_matches(word, commands, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(sorted(commands))}"
    return f"there is no command {word!r}; {hint}"


def dashed(error: MissingArgumentError, argv: Sequence[str]) -> tuple[str, str] | None:
    """An option and the word behind it, where that looks like another option but is none."""
    keyword = error.keyword or next((token.keyword for token in getattr(error.argument, "tokens", ())), None)
    for name, value in pairwise(argv):
        if (
            name.startswith("--")
            and value.startswith("-")
            and not value.startswith("--")
            and keyword in (None, name)
        ):
            return name, value
    return None
