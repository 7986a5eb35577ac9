"""From prompts to a guided denoiser. B batch, T tokens, D width."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from inkwash.adapters.embeddings import NONE, Learned, Sources, extended
from inkwash.adapters.low_rank import Attachment
from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.diffusion.guidance import Guided, Predicted, compose
from inkwash.prompts.chunks import chunks
from inkwash.prompts.comments import without_escapes
from inkwash.prompts.language import LANGUAGES, Language
from inkwash.prompts.schedule import schedule
from inkwash.weights.checkpoint import TextEncoder

WEIGHT = re.compile(r":\s*+([-+]?(?:\d++\.?\d*+|\.\d++))\s*$")


@dataclass(frozen=True)
class Reading:
    """How the prompts of a picture are read.

    clip_skip: the layer from the end whose output is the context; one that the model leaves out anyway changes
    nothing. embeddings: what may be named. adapters: what is attached for this picture alone.
    """

    language: Language = LANGUAGES["a1111"]
    clip_skip: int | None = None
    embeddings: Sources = field(default_factory=dict)
    adapters: Attachment = field(default_factory=Attachment)

    def plan(self, prompt: str, steps: int) -> list[list]:
        """The texts of a run, each with the last step at which it holds."""
        prompt = without_escapes(prompt) if self.language.comments else prompt
        return schedule(prompt, steps) if self.language.changing else [[steps, prompt]]

    def parts(self, prompt: str) -> list[tuple[str, float]]:
        """What is wanted at once, with weights."""
        return conjunction(prompt) if self.language.changing else [(prompt, 1.0)]


def guided(
    denoise: ConditionedDenoiser,
    text_encoders: Sequence[TextEncoder],
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    sigmas: Tensor,
    scale: float,
    sizes: tuple[Tensor, Tensor] | None = None,
    zero_empty: bool = False,
    batched: bool = True,
    perp_neg: float = 0.0,
    readings: Sequence[Reading] = (),
    given: Conditioning = {},  # noqa: B006  never changed
    without: Conditioning | None = None,
    image_scale: float | None = None,
) -> Guided:
    """The denoiser that follows each picture's prompt and keeps away from its negative one, over sigmas (n+1,).

    A step's prompt holds for sigmas from its own down to, not at, the next. readings: how each picture's prompts are
    read, by default in A1111's language; pictures that are read alike should have the same object.
    sizes: embedded sizes (S,) of the pictures and of their negatives, which SDXL sees after the pooled text.
    zero_empty: an empty negative prompt is zeros, as SDXL was trained, and not the empty text's vectors.
    batched: conditions that have equal shapes go through the network in one call. perp_neg: above 0, a negative
    prompt has this weight against the prompt, of which only what is perpendicular to it counts (see `compose`), and
    the empty text is what guidance starts from.
    given: what else the network is given of each picture, prompt or not; without: in its place with the negative
    prompt, from which guidance then goes to both. image_scale: guidance by given["concat"],
    which is then zeros where there is neither text nor picture: uncond + image_scale * (pictured - uncond) +
    scale * (cond - pictured) (Brooks et al. 2023, equation 3).
    Raises ValueError for a scale that is not finite, and for a prompt that is too long.
    """
    if perp_neg and image_scale is not None:
        raise ValueError(
            f"perp_neg {perp_neg}: guidance by a picture knows no perpendicular negative; give 0"
        )
    steps = len(sigmas) - 1
    without = given if without is None else without
    readings = readings or [Reading()] * len(prompts)
    wanted = [
        [(one.plan(text, steps), weight, False) for text, weight in one.parts(prompt)]
        for one, prompt in zip(readings, prompts, strict=True)
    ]
    unwanted = [
        one.plan("" if perp_neg else text, steps)
        for one, text in zip(readings, negative_prompts, strict=True)
    ]
    for one, parts, text in zip(readings, wanted, negative_prompts, strict=True):
        if perp_neg and text:
            parts.append((one.plan(text, steps), -perp_neg, True))
    plans = [[plan for plan, _, _ in parts] + [other] for parts, other in zip(wanted, unwanted, strict=True)]
    ends = sorted({end for some in plans for plan in some for end, _ in plan})
    distinct = list({id(one): one for one in readings}.values())
    which = [next(i for i, other in enumerate(distinct) if other is one) for one in readings]
    encoded = []
    for i, one in enumerate(distinct):
        alike = [plan for k, some in enumerate(plans) if which[k] == i for plan in some]
        encoded.append(encode(text_encoders, (text for plan in alike for _, text in plan), one))
    denoise = adapted(denoise, [one.adapters for one in distinct])

    @lru_cache(maxsize=4)
    def until(end: int) -> Guided:
        def cond(k: int, plan: list[list], negative: bool = False) -> dict[str, Tensor]:
            text = next(text for last, text in plan if last >= end)
            context, pooled = encoded[which[k]][text]
            if negative and zero_empty and not text:
                context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
            vector = {} if sizes is None else {"vector": torch.cat([pooled, sizes[negative].to(pooled)])}
            adapters = {ADAPTERS: torch.tensor(which[k])} if len(distinct) > 1 else {}
            others = {key: rows[k] for key, rows in (without if negative else given).items()}
            return {"context": context} | vector | adapters | others

        conds = [
            [(cond(k, plan, negative), weight) for plan, weight, negative in parts]
            for k, parts in enumerate(wanted)
        ]
        unconds = [cond(k, plan, negative=True) for k, plan in enumerate(unwanted)]
        if image_scale is None:
            return compose(denoise, conds, unconds, scale, batched, perpendicular=perp_neg > 0)
        for parts, uncond in zip(conds, unconds, strict=True):
            rest = image_scale - scale * sum(weight for _, weight in parts)
            parts[:] = [*((made, scale * weight) for made, weight in parts), (uncond, rest)]
        blank = [uncond | {"concat": torch.zeros_like(uncond["concat"])} for uncond in unconds]
        return compose(denoise, conds, blank, 1.0, batched)

    starts = [-sigma for sigma in sigmas[:-1].tolist()]  # rising, for bisect

    def end(sigma: float) -> int:
        return ends[bisect_left(ends, max(1, bisect_right(starts, -sigma)))]

    def each(x: Tensor, sigma: Tensor, predict: Callable[[Guided], Callable[..., Any]]) -> Any:
        """What `predict` of each picture's own step makes of it; pictures may be at different ones."""
        steps = [end(level) for level in sigma.expand(len(x)).tolist()]
        made = {last: predict(until(last))(x, sigma) for last in set(steps)}
        if len(made) == 1:
            return made[steps[0]]

        def rows(of: Mapping[int, Tensor]) -> Tensor:
            return torch.stack([of[last][k] for k, last in enumerate(steps)])

        if isinstance(made[steps[0]], Tensor):
            return rows(made)
        return Predicted(*(rows({last: parts[i] for last, parts in made.items()}) for i in range(3)))

    return Guided(
        parts=lambda x, sigma: each(x, sigma, lambda D: D.parts),
        needed=lambda x, sigma: each(x, sigma, lambda D: D.needed),
        cond=lambda x, sigma: each(x, sigma, lambda D: D.cond),
        uncond=lambda x, sigma: each(x, sigma, lambda D: D.uncond),
    )


ADAPTERS = "adapters"  # of a condition: (B,), which attachment each picture has


def adapted(denoise: ConditionedDenoiser, attachments: Sequence[Attachment]) -> ConditionedDenoiser:
    """The denoiser with each picture's adapters attached while it is called, and not between calls."""

    def predict(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        which = cond[ADAPTERS].tolist() if ADAPTERS in cond else [0] * len(x)
        others = {name: value for name, value in cond.items() if name != ADAPTERS}
        made: dict[int, Tensor] = {}
        for one in sorted(set(which)):
            rows = [i for i, other in enumerate(which) if other == one]
            with attachments[one]:
                if len(rows) == len(x):
                    return denoise(x, sigma, others)
                some = {name: value[rows] for name, value in others.items()}
                made |= zip(rows, denoise(x[rows], sigma.expand(len(x))[rows], some), strict=True)
        return torch.stack([made[i] for i in range(len(x))])

    return predict


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
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The context (T, D) of each text, T a multiple of the encoders' length, and its pooled vector.

    The towers' contexts are side by side; the vector is the last tower's, of the first chunk. What a token's weight
    does is the language's own.
    """
    return text_states(text_encoders, texts, reading)


def text_states(
    text_encoders: Sequence[TextEncoder], texts: Iterable[str], reading: Reading
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """What `encode` gives, with gradients, for training."""
    texts = list(dict.fromkeys(texts))
    with reading.adapters:
        towers = [contexts(text_encoders, i, texts, reading) for i in range(len(text_encoders))]
    return {
        text: (torch.cat([made[text][0] for made in towers], dim=-1), towers[-1][text][1]) for text in texts
    }


def contexts(
    text_encoders: Sequence[TextEncoder], i: int, texts: Iterable[str], reading: Reading
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The same of tower i."""
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
