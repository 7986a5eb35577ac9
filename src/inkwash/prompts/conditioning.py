"""Conditions from prompts: plans over steps, then tensors, weighted by `language.weigh`.

B batch, T tokens, D width, S embedded sizes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from inkwash.adapters.embeddings import NONE, Learned, Sources, extended
from inkwash.adapters.low_rank import Attachment
from inkwash.diffusion.denoiser import Conditioning
from inkwash.prompts.chunks import chunks
from inkwash.prompts.comments import without_escapes
from inkwash.prompts.language import LANGUAGES, Language
from inkwash.prompts.schedule import schedule
from inkwash.weights.checkpoint import TextEncoder

Encoded = Mapping[str, tuple[Tensor, Tensor]]  # by text: a context (T, D) and a pooled vector

WEIGHT = re.compile(r":\s*+([-+]?(?:\d++\.?\d*+|\.\d++))\s*$")


@dataclass(frozen=True)
class Reading:
    """Settings of the reading of a picture's prompts.

    clip_skip: the layer from the end whose output is the context; one that the model leaves out anyway changes
    nothing. embeddings: what may be named. adapters: what is attached for this picture alone.
    """

    language: Language = LANGUAGES["a1111"]
    clip_skip: int | None = None
    embeddings: Sources = field(default_factory=dict)
    adapters: Attachment = field(default_factory=Attachment)

    def plan(self, prompt: str, steps: int) -> list[tuple[int, str]]:
        """The texts of a run, each with the last step at which it holds."""
        prompt = without_escapes(prompt) if self.language.comments else prompt
        return (
            [(end, text) for end, text in schedule(prompt, steps)]
            if self.language.changing
            else [(steps, prompt)]
        )

    def parts(self, prompt: str) -> list[tuple[str, float]]:
        """The parts of a prompt that hold at once, with their weights."""
        return conjunction(prompt) if self.language.changing else [(prompt, 1.0)]


@dataclass(frozen=True)
class Condition:
    """The texts of one condition over the steps of a run, each with the last step at which it holds."""

    texts: Sequence[tuple[int, str]]
    weight: float = 1.0
    negative: bool = False

    def text(self, step: int) -> str:
        return next(text for last, text in self.texts if last >= step)


@dataclass(frozen=True)
class Plan:
    """The conditions that one picture follows, and the one that guidance starts from."""

    wanted: Sequence[Condition]
    unwanted: Condition
    reading: Reading


class Stage(NamedTuple):
    """A batch's conditions, as tensors without a batch axis, while no prompt changes.

    conds: for each picture its conditions with their weights; unconds: the one that its guidance starts from.
    """

    conds: Sequence[Sequence[tuple[Conditioning, float]]]
    unconds: Sequence[Conditioning]


def plan(prompt: str, negative: str, reading: Reading, steps: int, perp_neg: float = 0.0) -> Plan:
    """Plan one picture's conditions over the steps of a run.

    perp_neg: above 0, the negative prompt has this weight against the prompt, and guidance starts from the empty text.
    """
    wanted = [Condition(reading.plan(text, steps), weight) for text, weight in reading.parts(prompt)]
    if perp_neg and negative:
        wanted.append(Condition(reading.plan(negative, steps), -perp_neg, True))
    start = Condition(reading.plan("" if perp_neg else negative, steps), negative=True)
    return Plan(wanted, start, reading)


def encode_plans(
    encode: Callable[[tuple[str, ...], Reading], Encoded],
    plans: Sequence[Plan],
    sizes: tuple[Tensor, Tensor] | None = None,
    zero_empty: bool = False,
    extra_cond: Conditioning = {},  # noqa: B006  never changed
    extra_uncond: Conditioning | None = None,
) -> list[tuple[int, Stage]]:
    """The conditions of a batch over a run: stages, each with its last step.

    encode: of texts and a reading, such as `encode` below with its encoders.
    sizes: embedded sizes (S,) of the pictures and of their negatives, which SDXL sees after the pooled text.
    zero_empty: an empty negative prompt is zeros, as SDXL was trained, and not the empty text's vectors.
    extra_cond: other inputs of the network (B, ...), with any prompt; extra_uncond: in their place with the negative
    prompt. Pictures that are read alike should share one Reading. Raises ValueError for a prompt that is too long.
    """
    extra_uncond = extra_cond if extra_uncond is None else extra_uncond
    readings = list({id(each.reading): each.reading for each in plans}.values())
    which = [next(i for i, other in enumerate(readings) if other is each.reading) for each in plans]
    conditions = [[*each.wanted, each.unwanted] for each in plans]
    texts: list[dict[str, None]] = [{} for _ in readings]  # in order, each once
    for i, conditions_of_one in zip(which, conditions, strict=True):
        texts[i] |= {text: None for condition in conditions_of_one for _, text in condition.texts}
    encoded = [encode(tuple(each), reading) for each, reading in zip(texts, readings, strict=True)]

    @cache
    def text_states_of(i: int, text: str, negative: bool) -> dict[str, Tensor]:
        context, pooled = encoded[i][text]
        if negative and zero_empty and not text:
            context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
        vector = {} if sizes is None else {"vector": torch.cat([pooled, sizes[negative].to(pooled)])}
        return {"context": context} | vector | ({ADAPTERS: torch.tensor(i)} if len(readings) > 1 else {})

    def tensors(k: int, condition: Condition, step: int) -> Conditioning:
        extra = extra_uncond if condition.negative else extra_cond
        states = text_states_of(which[k], condition.text(step), condition.negative)
        return states | {name: rows[k] for name, rows in extra.items()}

    ends = sorted({end for each in conditions for condition in each for end, _ in condition.texts})
    return [
        (
            end,
            Stage(
                [[(tensors(k, c, end), c.weight) for c in each.wanted] for k, each in enumerate(plans)],
                [tensors(k, each.unwanted, end) for k, each in enumerate(plans)],
            ),
        )
        for end in ends
    ]


ADAPTERS = "adapters"  # of a condition: (B,), which of the batch's readings each picture has


def conjunction(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt between the words AND, each with its weight: "a cat AND a dog :0.5"."""
    parts = []
    for text in re.split(r"\bAND\b", prompt):
        weight = WEIGHT.search(text)
        parts.append((text[: weight.start()].rstrip(), float(weight[1])) if weight else (text, 1.0))
    return parts


@torch.no_grad()
def encode(
    text_encoders: Sequence[TextEncoder],
    texts: Iterable[str],
    reading: Reading = Reading(),
) -> Encoded:
    """The context (T, D) of each text, T a multiple of the encoders' length, and its pooled vector.

    The towers' contexts are side by side; the vector is the last tower's, of the first chunk. What a token's weight
    does is the language's own.
    """
    return text_states(text_encoders, texts, reading)


def text_states(text_encoders: Sequence[TextEncoder], texts: Iterable[str], reading: Reading) -> Encoded:
    """The result of `encode`, with gradients, for training."""
    texts = list(dict.fromkeys(texts))
    with reading.adapters:
        towers = [contexts(text_encoders, i, texts, reading) for i in range(len(text_encoders))]
    return {
        text: (torch.cat([made[text][0] for made in towers], dim=-1), towers[-1][text][1]) for text in texts
    }


def contexts(text_encoders: Sequence[TextEncoder], i: int, texts: Iterable[str], reading: Reading) -> Encoded:
    """The contexts and pooled vectors of tower i alone, by text."""
    tower, language = text_encoders[i], reading.language
    learned = Learned(reading.embeddings, text_encoders, i) if language.names else NONE
    split = {text: chunks(tower.tokenizer, text, language, learned) for text in texts}
    different = list({tuple(chunk.tokens) for parts in split.values() for chunk in parts})
    weight = next(tower.model.parameters())
    skip = max(tower.skip, reading.clip_skip or 1)

    def vectors(some: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        with extended(tower.model, learned):
            return tower.model(torch.tensor(some, device=weight.device), skip, tower.final_norm)

    encoded: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for first in range(0, len(different), 32):
        some = different[first : first + 32]
        encoded |= zip(some, zip(*vectors(some), strict=True), strict=True)
    empty = cache(lambda: vectors(tower.tokenizer([""]))[0][0])

    def weighed(tokens: Sequence[int], weights: Sequence[float]) -> Tensor:
        context = encoded[tuple(tokens)][0]
        if all(weight == 1 for weight in weights):
            return context
        factors = torch.tensor(weights, device=context.device, dtype=context.dtype)[:, None]
        return language.weigh(context, factors, empty)

    return {
        text: (torch.cat([weighed(*chunk) for chunk in parts]), encoded[tuple(parts[0].tokens)][1])
        for text, parts in split.items()
    }
