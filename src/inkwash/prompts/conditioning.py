"""From prompts to a guided denoiser. B batch, T tokens, D width."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser, Denoiser
from inkwash.diffusion.guidance import compose
from inkwash.models.clip import CLIPText
from inkwash.models.tokenizer import Tokenizer
from inkwash.prompts.chunks import chunks
from inkwash.prompts.schedule import schedule

WEIGHT = re.compile(r":\s*+([-+]?(?:\d++\.?\d*+|\.\d++))\s*$")


def guided(
    denoise: ConditionedDenoiser,
    text_encoder: CLIPText,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    sigmas: Tensor,
    scale: float,
) -> Denoiser:
    """The denoiser that follows each picture's prompt and keeps away from its negative one, over sigmas (n+1,).

    Prompts are in A1111's language. A step's prompt holds for sigmas from its own down to, not at, the next.
    Raises ValueError for a scale that is not finite, and for a prompt that is too long.
    """
    steps = len(sigmas) - 1
    wanted = [[(schedule(text, steps), weight) for text, weight in conjunction(prompt)] for prompt in prompts]
    unwanted = [schedule(text, steps) for text in negative_prompts]
    plans = [plan for parts in wanted for plan, _ in parts] + unwanted
    contexts = encode(text_encoder, tokenizer, (text for plan in plans for _, text in plan))
    ends = sorted({end for plan in plans for end, _ in plan})

    @lru_cache(maxsize=4)
    def until(end: int) -> Denoiser:
        def cond(plan: list[list]) -> dict[str, Tensor]:
            return {"context": contexts[next(text for last, text in plan if last >= end)]}

        conds = [[(cond(plan), weight) for plan, weight in parts] for parts in wanted]
        return compose(denoise, conds, [cond(plan) for plan in unwanted], scale)

    starts = [-sigma for sigma in sigmas[:-1].tolist()]  # rising, for bisect

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        step = max(1, bisect_right(starts, -float(sigma.max())))
        return until(ends[bisect_left(ends, step)])(x, sigma)

    return D


def conjunction(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt between the words AND, each with its weight: "a cat AND a dog :0.5"."""
    parts = []
    for text in re.split(r"\bAND\b", prompt):
        weight = WEIGHT.search(text)
        parts.append((text[: weight.start()].rstrip(), float(weight[1])) if weight else (text, 1.0))
    return parts


@torch.no_grad()
def encode(text_encoder: CLIPText, tokenizer: Tokenizer, texts: Iterable[str]) -> Mapping[str, Tensor]:
    """The context (T, D) of each text, T a multiple of the encoder's length.

    A token's weight multiplies its vector; then the chunk is scaled back to the mean that it had.
    """
    split = {text: chunks(tokenizer, text) for text in dict.fromkeys(texts)}
    different = list({tuple(chunk.tokens) for parts in split.values() for chunk in parts})
    device = next(text_encoder.parameters()).device
    encoded: dict[tuple[int, ...], Tensor] = {}
    for first in range(0, len(different), 32):
        some = different[first : first + 32]
        encoded |= zip(some, text_encoder(torch.tensor(some, device=device))[0], strict=True)
    return {
        text: torch.cat([emphasized(encoded[tuple(c.tokens)], c.weights) for c in parts])
        for text, parts in split.items()
    }


def emphasized(context: Tensor, weights: Sequence[float]) -> Tensor:
    if all(weight == 1 for weight in weights):
        return context
    made = context * torch.tensor(weights, device=context.device, dtype=context.dtype)[:, None]
    return made * (context.mean() / made.mean())
