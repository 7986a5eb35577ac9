"""Prompts of any length as chunks that the text encoder takes. 75 tokens each, between start and end."""

from collections.abc import Iterator
from typing import NamedTuple

from inkwash.adapters.embeddings import NONE, Learned
from inkwash.models.tokenizer import Tokenizer
from inkwash.prompts.attention import BREAK
from inkwash.prompts.language import LANGUAGES, Language

MAX_CHUNKS = 20


class Chunk(NamedTuple):
    """Token ids with start, end and padding, and the weight of each: `max_length` of them."""

    tokens: list[int]
    weights: list[float]


def chunks(
    tokenizer: Tokenizer, text: str, language: Language = LANGUAGES["a1111"], learned: Learned = NONE
) -> list[Chunk]:
    """The chunks of a text, at least one.

    The word BREAK ends a chunk, and so does a full one: after its last comma if that is at most `language.backtrack`
    tokens back, since what stands between commas belongs together. Embeddings, and in some languages words, are
    never split. Raises ValueError for more than 20 chunks.
    """
    room = tokenizer.max_length - len(edges(tokenizer))
    comma = tokenizer.comma
    done: list[list[tuple[int, float]]] = [[]]  # the last one is being filled
    for unit, weight in weighted(tokenizer, text, language, learned):
        if unit is None:
            done.append([])
            continue
        if len(done[-1]) == room:
            last = max((i for i, (t, _) in enumerate(done[-1]) if t == comma), default=-room)
            keep = last + 1 if unit != [comma] and room - last <= language.backtrack else room
            done.append(done[-1][keep:])
            del done[-2][keep:]
        if len(done[-1]) + len(unit) > room:
            done.append([])
        done[-1] += [(token, weight) for token in unit]
    if not done[-1] and len(done) > 1:
        done.pop()
    if len(done) > MAX_CHUNKS:
        raise ValueError(
            f"the prompt has {len(done)} chunks of {room} tokens; at most {MAX_CHUNKS} are taken"
        )
    return [filled(tokenizer, chunk) for chunk in done]


def weighted(
    tokenizer: Tokenizer, text: str, language: Language, learned: Learned
) -> Iterator[tuple[list[int] | None, float]]:
    """Token ids that stay together, with their weight, and None for each BREAK."""
    for part in language.parse(text):
        if part == BREAK:
            yield None, 1.0
        else:
            yield from ((unit, part[1]) for unit in language.units(tokenizer, part[0], learned))


def filled(tokenizer: Tokenizer, chunk: list[tuple[int, float]]) -> Chunk:
    *start, end = edges(tokenizer)
    padding = tokenizer.max_length - len(chunk) - len(start) - 1
    tokens = [*start, *(token for token, _ in chunk), end, *[tokenizer.pad] * padding]
    return Chunk(tokens, [*[1.0] * len(start), *(weight for _, weight in chunk), *[1.0] * (padding + 1)])


def edges(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a chunk begins with, if any, and ends with."""
    return [tokenizer.end] if tokenizer.start is None else [tokenizer.start, tokenizer.end]
