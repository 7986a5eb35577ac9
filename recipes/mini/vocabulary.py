"""The smaller vocabulary of `mini`: CLIP's own merges, of which only those are kept that its captions need.

Words of the captions split as CLIP splits them; any other text still has an encoding, of more tokens.
"""

from collections.abc import Iterable

from inkwash.models.tokenizer import WORDS, Tokenizer


def needed_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """The merges, in CLIP's order, that encoding these texts uses."""
    clip = Tokenizer.clip()
    whole = {first + second: (first, second) for first, second in clip.merges}
    words = {word for text in texts for word in WORDS.findall(text.lower())}
    wanted = [clip.words[i] for word in words for i in clip.pieces(word)]
    kept: set[tuple[str, str]] = set()
    while wanted:
        pair = whole.get(wanted.pop())
        if pair and pair not in kept:
            kept.add(pair)
            wanted.extend(pair)
    return [pair for pair in clip.merges if pair in kept]
