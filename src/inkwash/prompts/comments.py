r"""Comments in prompts, as A1111 has them: from # to the end of the line. A hash sign itself is written \#."""

import re

from inkwash.prompts.tags import protect, restore

WHOLE_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
REST_OF_LINE = re.compile(r"(?<!\\)#[^\n]*(\n|$)")


def without_comments(text: str) -> str:
    """The prompt without its comments, as A1111 leaves it; escaped hash signs stay escaped."""
    text, tags = protect(text)
    return restore(REST_OF_LINE.sub("\n", WHOLE_LINE.sub("\n", text)), tags)


def without_escapes(text: str) -> str:
    """The prompt with its escaped hash signs as they are meant."""
    return text.replace("\\#", "#")
