"""Prompts that leave a choice: __name__ is a line of a file, {a|b|c} one of its variants."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from inkwash.files import ModelFileError
from inkwash.prompts.tags import protect, restore
from inkwash.weights.bytes.paths import find_named

NAME = re.compile(r"__([\w./ -]{1,200}?)__")
MARK = re.compile(r"[{}\[\]|]|[^{}\[\]|]++")
COUNT = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?\$\$(?:([^|{}$]{0,40})\$\$)?")
WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")
MAX_DEPTH = 16  # of lines that name other files
MAX_LENGTH = 100_000  # characters


def expand(text: str, seed: int | str, files: Mapping[str, Sequence[Path]] | None) -> str:
    """The text with every choice made, by the seed alone.

    files: of wildcards, by their names; a line may name another one and hold variants; blank lines and those that
    begin with # don't count. None: names stay as they are. {2$$a|b|c} takes two, {1-2$$ and $$a|b} one or two with a
    word of its own between, {3::a|b} an a three times as often. Raises ValueError for a name that is no file's, for
    files that go in circles, and for a text that grows beyond 100,000 characters.
    """
    random = Random(f"inkwash {seed}")
    for _ in range(MAX_DEPTH):
        text, tags = protect(text)  # a LoRA's name is no wildcard
        text = variants(text, random)
        parts = NAME.split(text) if files is not None else [text]
        parts[1::2] = [
            random.choice(lines(find_named("wildcard", name, files or {}))) for name in parts[1::2]
        ]
        if sum(map(len, parts)) > MAX_LENGTH:
            raise ValueError(f"the prompt grows beyond {MAX_LENGTH:,} characters by its wildcards")
        text = restore("".join(parts), tags)
        if len(parts) == 1:
            return text
    raise ValueError(f"wildcards name each other more than {MAX_DEPTH} deep: {text[:80]!r}")


def lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"the wildcard {path} can't be read: {error}") from error
    found = [line.strip() for line in text.splitlines()]
    if not (kept := [line for line in found if line and not line.startswith("#")]):
        raise ModelFileError(f"the wildcard {path} has no lines")
    return kept


def variants(text: str, random: Random) -> str:
    """One of the variants in each pair of braces; braces without a | or a partner are letters."""
    done: list[list[str]] = [[]]  # parts of the text, then of each variant that is being read
    begins: list[int] = []  # of the braces that are open, where in `done` their first variant is
    square: list[int] = [0]  # brackets that are open within each, whose | is A1111's
    for mark in MARK.findall(text):
        if mark == "{":
            begins.append(len(done))
            done.append([])
            square.append(0)
        elif mark == "}" and begins:
            first = begins.pop()
            square.pop()
            options = ["".join(parts) for parts in done[first:]]
            del done[first:]
            done[-1].append(chosen(options, random))
        elif mark == "|" and begins and not square[-1]:
            done.append([])
        else:
            square[-1] = max(0, square[-1] + (mark == "[") - (mark == "]"))
            done[-1].append(mark)
    while begins:  # never closed
        first = begins.pop()
        options = ["".join(parts) for parts in done[first:]]
        del done[first:]
        done[-1].append("{" + "|".join(options))
    return "".join(done[0])


def chosen(options: Sequence[str], random: Random) -> str:
    count = COUNT.match(options[0])
    if len(options) == 1 and not count:
        return "{" + options[0] + "}"
    few, many, between = (int(count[1]), int(count[2] or count[1]), count[3]) if count else (1, 1, None)
    left = [options[0][count.end() :] if count else options[0], *options[1:]]
    taken = []
    for _ in range(min(random.randint(few, max(few, many)), len(left)) if count else 1):
        weights = [float(match[1]) if (match := WEIGHT.match(option)) else 1.0 for option in left]
        if not any(weights):
            break
        i = random.choices(range(len(left)), weights)[0]
        taken.append(WEIGHT.sub("", left.pop(i), count=1))
    return (", " if between is None else between).join(taken)
