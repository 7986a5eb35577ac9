"""Boxes of objects, and how they are written. Imports no torch."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator

from inkwash.pipeline.option import number
from inkwash.weights.bytes.paths import nearest


class Box(NamedTuple):
    """Left, top, right and bottom of an object, as fractions of the picture, and its description."""

    x0: float
    y0: float
    x1: float
    y1: float
    what: Annotated[str, BeforeValidator(str)]  # words, or the number of a category

    def __str__(self) -> str:
        return f"{','.join(map(number, self[:4]))}={self.what}"


def read_box(text: Any) -> Any:
    """The box of a text such as 0,0.5,1,1=a red book. Raises ValueError for another one."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"([^,=]+),([^,=]+),([^,=]+),([^,=]+)=(.+)", text, re.DOTALL)
    try:
        return inside(Box(*map(float, match.groups()[:4]), match[5].strip()))  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        wanted = "x0,y0,x1,y1=what, with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        raise ValueError(f"{text!r} is not a box; it is written {wanted}") from None


def inside(box: Box) -> Box:
    """The box, where it is valid."""
    if not (0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 and box.what):
        raise ValueError(f"box {box}: coordinates must be in 0..1 and in order, and the label non-empty")
    return box


def read_boxes(text: Any) -> Any:
    """The boxes of a text, with semicolons between them; anything else as it is."""
    if not isinstance(text, str):
        return text
    return re.split(r";\s*(?=(?:[\d.e+-]+,){3}[\d.e+-]+=)", text) if text.strip() else ()


OneBox = Annotated[Box, BeforeValidator(read_box), AfterValidator(inside)]
Boxes = Annotated[tuple[OneBox, ...], BeforeValidator(read_boxes)]


def number_by_name(names: Sequence[str], boxes: Sequence[Box]) -> tuple[Box, ...]:
    """The boxes with category names replaced by their indices in `names`; numbers stay.

    Raises ValueError for an unknown name.
    """
    numbers = {name.strip(): str(i) for i, name in reversed(list(enumerate(names)))}
    for box in boxes:
        if not box.what.isdecimal() and box.what not in numbers:
            raise ValueError(f"box {box}: there is no category {box.what!r}{nearest(box.what, numbers)}")
    return tuple(box._replace(what=numbers.get(box.what, box.what)) for box in boxes)
