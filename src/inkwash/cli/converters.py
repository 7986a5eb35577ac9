"""Converters of option values from the text that users type."""

import re
from collections.abc import Sequence
from typing import Any

from cyclopts import Group, Token

from inkwash.pipeline.option import CANVAS, CONTROL, GUIDANCE, MEMORY, PRIOR, PROMPTS

GROUPS = {
    name: Group(name, sort_key=k)
    for k, name in enumerate((PROMPTS, CONTROL, GUIDANCE, PRIOR, CANVAS, MEMORY), 1)
}


def whole(type_: Any, tokens: Sequence[Token]) -> int:
    """An int as it is written; 2.5 is no 2."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)
