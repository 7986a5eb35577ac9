"""Variation of a picture's caption from one time it is seen to the next."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class CaptionRules:
    """Options under kohya's names: tags are the parts of a caption between separators.

    shuffle: in another order each time, but for the first `keep_tokens` tags, or those before `keep_separator`.
    dropout: how often, 0 to 1, the caption is empty. tag_dropout: how often each tag that may move is left out.
    wildcards: {a|b} is one of the two, and one line of a caption file is taken; else the first line is the caption.
    """

    prefix: str = ""
    suffix: str = ""
    separator: str = ","
    shuffle: bool = False
    keep_tokens: int = 0
    keep_separator: str = ""
    dropout: float = 0.0
    tag_dropout: float = 0.0
    wildcards: bool = False


def vary(captions: Sequence[str], rules: CaptionRules, random: Random) -> str:
    """A caption of one of these texts, all of which describe the picture; empty where it is dropped."""
    dropped, text = random.random() < rules.dropout, captions[random.randrange(len(captions))]
    if dropped:
        return ""
    lines = text.splitlines() or [""]
    text = lines[random.randrange(len(lines))] if rules.wildcards else lines[0]
    while rules.wildcards and (match := CHOICE.search(text)):
        text = text[: match.start()] + random.choice(match[1].split("|")) + text[match.end() :]
    text = " ".join(filter(None, (rules.prefix, text.strip(), rules.suffix)))
    if not (rules.shuffle or rules.tag_dropout):
        return text.replace(rules.keep_separator, rules.separator) if rules.keep_separator else text
    if rules.keep_separator and rules.keep_separator in text:
        first, _, rest = text.partition(rules.keep_separator)
        kept, free = split(first, rules.separator), split(rest, rules.separator)
    else:
        tags = split(text, rules.separator)
        kept, free = tags[: rules.keep_tokens], tags[rules.keep_tokens :]
    free = [tag for tag in free if random.random() >= rules.tag_dropout]
    if rules.shuffle:
        random.shuffle(free)
    return f"{rules.separator} ".join([*kept, *free])


def split(text: str, separator: str) -> list[str]:
    """The tags of a text, without empty ones."""
    return [tag.strip() for tag in text.split(separator) if tag.strip()]
