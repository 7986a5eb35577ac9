"""From prompts to a guided denoiser. B batch, T tokens, D width."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import ConditionedDenoiser
from inkwash.diffusion.guidance import Guided, Predicted, compose
from inkwash.prompts.chunks import chunks
from inkwash.prompts.schedule import schedule
from inkwash.weights.checkpoint import TextEncoder

WEIGHT = re.compile(r":\s*+([-+]?(?:\d++\.?\d*+|\.\d++))\s*$")


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
) -> Guided:
    """The denoiser that follows each picture's prompt and keeps away from its negative one, over sigmas (n+1,).

    Prompts are in A1111's language. A step's prompt holds for sigmas from its own down to, not at, the next.
    sizes: embedded sizes (S,) of the pictures and of their negatives, which SDXL sees after the pooled text.
    zero_empty: an empty negative prompt is zeros, as SDXL was trained, and not the empty text's vectors.
    batched: conditions that have equal shapes go through the network in one call. perp_neg: above 0, a negative
    prompt has this weight against the prompt, of which only what is perpendicular to it counts (see `compose`), and
    the empty text is what guidance starts from.
    Raises ValueError for a scale that is not finite, and for a prompt that is too long.
    """
    steps = len(sigmas) - 1
    wanted = [
        [(schedule(text, steps), weight, False) for text, weight in conjunction(prompt)] for prompt in prompts
    ]
    unwanted = [schedule("" if perp_neg else text, steps) for text in negative_prompts]
    for parts, text in zip(wanted, negative_prompts, strict=True):
        if perp_neg and text:
            parts.append((schedule(text, steps), -perp_neg, True))
    plans = [plan for parts in wanted for plan, _, _ in parts] + unwanted
    encoded = encode(text_encoders, (text for plan in plans for _, text in plan))
    ends = sorted({end for plan in plans for end, _ in plan})

    @lru_cache(maxsize=4)
    def until(end: int) -> Guided:
        def cond(plan: list[list], negative: bool = False) -> dict[str, Tensor]:
            text = next(text for last, text in plan if last >= end)
            context, pooled = encoded[text]
            if negative and zero_empty and not text:
                context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
            vector = {} if sizes is None else {"vector": torch.cat([pooled, sizes[negative].to(pooled)])}
            return {"context": context} | vector

        conds = [[(cond(plan, negative), weight) for plan, weight, negative in parts] for parts in wanted]
        unconds = [cond(plan, negative=True) for plan in unwanted]
        return compose(denoise, conds, unconds, scale, batched, perpendicular=perp_neg > 0)

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


def conjunction(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt between the words AND, each with its weight: "a cat AND a dog :0.5"."""
    parts = []
    for text in re.split(r"\bAND\b", prompt):
        weight = WEIGHT.search(text)
        parts.append((text[: weight.start()].rstrip(), float(weight[1])) if weight else (text, 1.0))
    return parts


@torch.no_grad()
def encode(text_encoders: Sequence[TextEncoder], texts: Iterable[str]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The context (T, D) of each text, T a multiple of the encoders' length, and its pooled vector.

    The towers' contexts are side by side; the vector is the last tower's, of the first chunk. A token's weight
    multiplies its vector; then the chunk is scaled back to the mean that it had.
    """
    texts = list(dict.fromkeys(texts))
    towers = [contexts(tower, texts) for tower in text_encoders]
    return {
        text: (torch.cat([made[text][0] for made in towers], dim=-1), towers[-1][text][1]) for text in texts
    }


def contexts(tower: TextEncoder, texts: Iterable[str]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The same of one tower."""
    split = {text: chunks(tower.tokenizer, text) for text in texts}
    different = list({tuple(chunk.tokens) for parts in split.values() for chunk in parts})
    device = next(tower.model.parameters()).device
    encoded: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for first in range(0, len(different), 32):
        some = different[first : first + 32]
        made = tower.model(torch.tensor(some, device=device), tower.skip, tower.final_norm)
        encoded |= zip(some, zip(*made, strict=True), strict=True)
    return {
        text: (
            torch.cat([emphasized(encoded[tuple(c.tokens)][0], c.weights) for c in parts]),
            encoded[tuple(parts[0].tokens)][1],
        )
        for text, parts in split.items()
    }


def emphasized(context: Tensor, weights: Sequence[float]) -> Tensor:
    if all(weight == 1 for weight in weights):
        return context
    made = context * torch.tensor(weights, device=context.device, dtype=context.dtype)[:, None]
    return made * (context.mean() / made.mean())
