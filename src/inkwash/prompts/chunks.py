"""Prompts of any length as chunks that the text encoder takes. 75 tokens each, between start and end."""

from collections.abc import Iterator
from typing import NamedTuple

from inkwash.models.tokenizer import Tokenizer
from inkwash.prompts.attention import BREAK, parse_attention

MAX_CHUNKS = 20
BACKTRACK = 20  # tokens: so far back a comma may lie for a full chunk to end there


class Chunk(NamedTuple):
    """Token ids with start, end and padding, and the weight of each: `max_length` of them."""

    tokens: list[int]
    weights: list[float]


def chunks(tokenizer: Tokenizer, text: str, backtrack: int = BACKTRACK) -> list[Chunk]:
    """The chunks of a text in A1111's language, at least one.

    The word BREAK ends a chunk, and so does a full one: after its last comma if that is at most `backtrack`
    tokens back, since what stands between commas belongs together. Raises ValueError for more than 20 chunks.
    """
    room = tokenizer.max_length - 2
    comma = tokenizer.vocab.get(",</w>")
    done: list[list[tuple[int, float]]] = [[]]  # the last one is being filled
    for token, weight in weighted(tokenizer, text):
        if token is None:
            done.append([])
            continue
        if len(done[-1]) == room:
            last = max((i for i, (t, _) in enumerate(done[-1]) if t == comma), default=-room)
            keep = last + 1 if token != comma and room - last <= backtrack else room
            done.append(done[-1][keep:])
            del done[-2][keep:]
        done[-1].append((token, weight))
    if not done[-1] and len(done) > 1:
        done.pop()
    if len(done) > MAX_CHUNKS:
        raise ValueError(
            f"the prompt has {len(done)} chunks of {room} tokens; at most {MAX_CHUNKS} are taken"
        )
    return [filled(tokenizer, chunk) for chunk in done]


def weighted(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int | None, float]]:
    """Each token with its weight, and None for each BREAK."""
    for part in parse_attention(text):
        if part == BREAK:
            yield None, 1.0
        else:
            yield from ((token, part[1]) for token in tokenizer.encode(part[0]))


def filled(tokenizer: Tokenizer, chunk: list[tuple[int, float]]) -> Chunk:
    padding = tokenizer.max_length - len(chunk) - 2
    tokens = [tokenizer.start, *(token for token, _ in chunk), tokenizer.end, *[tokenizer.pad] * padding]
    return Chunk(tokens, [1.0, *(weight for _, weight in chunk), *[1.0] * (padding + 1)])
