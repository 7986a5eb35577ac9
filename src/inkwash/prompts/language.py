"""The languages that prompts are written in: what a text's parts weigh, and what a weight does to vectors.

T tokens, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inkwash.adapters.embeddings import Learned
from inkwash.models.tokenizer import Tokenizer
from inkwash.prompts.attention import parse_attention
from inkwash.prompts.comfy import EMBEDDING, parse_comfy

Parts = list[tuple[str, float]]
Weigh = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]
LONG = 8  # tokens of a word that may be split over two chunks


def literal(text: str) -> Parts:
    return [(text, 1.0)]


def tokens(tokenizer: Tokenizer, text: str, learned: Learned) -> Iterator[list[int]]:
    """Each token, and each embedding whose name is met, the longest where several are."""
    ids = tokenizer.encode(text)
    i = 0
    while i < len(ids):
        name, length = learned.at(ids, i)
        yield learned.ids(name) if name else [ids[i]]
        i += length


def words(tokenizer: Tokenizer, text: str, learned: Learned) -> Iterator[list[int]]:
    """Each word of fewer than eight tokens, and each `embedding:name`."""
    for word in text.split():
        if named := EMBEDDING.match(word):
            yield learned.ids(named[1])
            word = word[named.end() :]
        ids = tokenizer.encode(word)
        yield from [ids] if len(ids) < LONG else ([token] for token in ids)


def keeping_the_mean(z: Tensor, weights: Tensor, empty: object = None) -> Tensor:
    """Weighed vectors, scaled so that the mean of all their values is what it was."""
    weighed = z * weights
    return weighed * (z.mean() / weighed.mean())


@dataclass(frozen=True)
class Language:
    """parse: a text's parts and their weights. units: the token ids of a part, in runs that stay in one chunk.

    weigh: the vectors (T, D) of a chunk with its tokens' weights (T, 1); the third argument gives those of a chunk
    without text. changing: whether it has schedules, alternation and AND. names: whether files are named in it.
    backtrack: tokens, see `chunks`. emphasis: A1111's name for what weights do, where it is not the usual one.
    """

    parse: Callable[[str], Parts] = parse_attention
    units: Callable[[Tokenizer, str, Learned], Iterator[list[int]]] = tokens
    weigh: Weigh = keeping_the_mean
    changing: bool = True
    names: bool = True
    backtrack: int = 20
    emphasis: str | None = None
    comments: bool = True  # whether # begins one


def plainly(z: Tensor, weights: Tensor, empty: object = None) -> Tensor:
    return z * weights


def not_at_all(z: Tensor, weights: Tensor, empty: object = None) -> Tensor:
    return z


def from_empty(z: Tensor, weights: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """Away from the vectors of no text, or towards them."""
    return torch.lerp(empty(), z, weights)


LANGUAGES = {
    "a1111": Language(),
    "a1111_no_norm": Language(weigh=plainly, emphasis="No norm"),
    "a1111_ignore": Language(weigh=not_at_all, emphasis="Ignore"),
    "a1111_none": Language(literal, emphasis="None"),
    "comfy": Language(parse_comfy, words, from_empty, changing=False, backtrack=0, comments=False),
    "plain": Language(literal, changing=False, names=False, comments=False),
}
