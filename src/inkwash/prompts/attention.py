"""Weights of the parts of a prompt: (more) [less] (as much:1.3), in A1111's notation."""

import re

MORE, LESS = 1.1, 1 / 1.1
BREAK = ("BREAK", -1.0)  # the part that ends a chunk
# possessive quantifiers keep this linear, whatever the text
NUMBER = r"[+-]?(?:\d{1,9}+(?:\.\d{0,20}+)?|\.\d{1,20}+)"
TOKEN = re.compile(rf"\\[()\[\]\\]|\\|[(\[)\]]|:\s*+({NUMBER})\s*+\)|[^\\()\[\]:]++|:")


def parse_attention(text: str) -> list[tuple[str, float]]:
    """The parts of a text with their weights, neighbours of equal weight as one.

    (x) weighs 1.1, [x] 1 / 1.1, (x:1.3) 1.3, and nested ones multiply; a backslash makes a bracket a letter, an
    opening one that is never closed acts to the end, and [x:1.3] is no weight. The word BREAK is the part
    ("BREAK", -1.0). Of a text without letters the one part is ("", 1.0). Takes time linear in the text.
    """
    tokens = [(match[0], match[1]) for match in TOKEN.finditer(text)]
    factors: dict[int, float] = {}  # of the opening brackets
    opened: dict[str, list[int]] = {"(": [], "[": []}
    closes: set[int] = set()
    for i, (token, weight) in enumerate(tokens):
        if token in opened:
            opened[token].append(i)
            factors[i] = MORE if token == "(" else LESS
        elif weight is not None and opened["("]:
            factors[opened["("].pop()] = float(weight)
            closes.add(i)
        elif token in (")", "]") and opened["(" if token == ")" else "["]:
            opened["(" if token == ")" else "["].pop()
            closes.add(i)

    parts: list[tuple[str, float]] = []
    weights: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}  # of what is open, each kind nested in itself
    for i, (token, _) in enumerate(tokens):
        if token in weights:
            weights[token].append(weights[token][-1] * factors[i])
        elif i in closes:
            weights["[" if token == "]" else "("].pop()
        else:
            weight = weights["("][-1] * weights["["][-1]
            escaped = len(token) == 2 and token[0] == "\\"
            pieces = [token[1:]] if escaped else re.split(r"\bBREAK\b", token)
            for k, piece in enumerate(pieces):
                if k:
                    parts.append(BREAK)
                piece = piece.lstrip() if k else piece
                append(parts, piece.rstrip() if k < len(pieces) - 1 else piece, weight)
    return parts or [("", 1.0)]


def append(parts: list[tuple[str, float]], text: str, weight: float) -> None:
    if not text:
        return
    if parts and parts[-1][1] == weight and parts[-1] != BREAK:
        text = parts.pop()[0] + text
    parts.append((text, weight))


def escape(text: str) -> str:
    """The text with a backslash before what the language would take for its own."""
    return re.sub(r"[()\[\]\\]", r"\\\g<0>", text)
