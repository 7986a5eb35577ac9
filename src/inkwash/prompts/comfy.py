"""ComfyUI's prompt language: weights in round brackets, words kept whole, embeddings by `embedding:name`."""

import re

MORE = 1.1
# possessive quantifiers keep this linear, whatever the text
TOKEN = re.compile(r"\\[()]|[()]|:\s*+([+-]?+(?:\d{1,9}+(?:\.\d{0,20}+)?|\.\d{1,20}+))\s*+\)|[^\\():]++|\\|:")
EMBEDDING = re.compile(r"embedding:([^\s,]+)")


def parse_comfy(text: str) -> list[tuple[str, float]]:
    """The parts of a text with their weights.

    (x) weighs 1.1 times what is around it and (x:1.3) weighs 1.3, whatever is around it. Square brackets are letters,
    as are brackets without a partner and, behind a backslash, all of them.
    """
    tokens = [(match[0], match[1]) for match in TOKEN.finditer(text)]
    partner: dict[int, int] = {}
    opened: list[int] = []
    for i, (token, weight) in enumerate(tokens):
        if token == "(":
            opened.append(i)
        elif (token == ")" or weight is not None) and opened:
            partner[opened.pop()] = i
    closes = set(partner.values())

    parts: list[tuple[str, float]] = []
    weights = [1.0]
    for i, (token, _) in enumerate(tokens):
        if i in partner:
            weight = tokens[partner[i]][1]
            weights.append(weights[-1] * MORE if weight is None else float(weight))
        elif i in closes:
            weights.pop()
        else:
            written = token[1:] if len(token) == 2 and token[0] == "\\" else token
            if parts and parts[-1][1] == weights[-1]:
                written = parts.pop()[0] + written
            parts.append((written, weights[-1]))
    return parts or [("", 1.0)]
