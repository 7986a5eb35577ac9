"""Conditioning of a network in training on captions and sizes. B batch, T tokens, D width."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inkwash.pipeline.denoising.denoiser import size_embedding
from inkwash.pipeline.model import Model
from inkwash.prompts.conditioning import Reading, encode, text_states

KEPT = 20_000  # texts whose states are kept in memory


@dataclass(frozen=True)
class Framing:
    """Size conditions of a picture: its own size, the crop's corner, and the size that is seen; width before height."""

    original: tuple[int, int]
    corner: tuple[int, int]
    target: tuple[int, int]
    aesthetic: float = 6.0


class Conditioner:
    """Captions to contexts and vectors. live: compute them in every step, with gradients; else each text once.
    kept: of how many texts memory holds the states.

    Raises ValueError for captions where the model sees no text.
    """

    def __init__(self, model: Model, reading: Reading, live: bool, kept: int = KEPT):
        self.model, self.reading, self.live, self.kept = model, reading, live, kept
        self.states: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, captions: Sequence[str], framings: Sequence[Framing]) -> dict[str, Tensor]:
        """context (B, T, D), and for SDXL and its kind vector (B, E)."""
        model = self.model
        if not model.text_encoders:
            if any(captions):
                raise ValueError(f"{model.name} sees no text; its captions must be empty")
            return {}
        states = self.encode(captions)
        contexts, pooled = zip(*(states[caption] for caption in captions), strict=True)
        longest = max(map(len, contexts))
        # a short caption goes on in empty chunks, as prompts do beside longer ones
        empty = states[""][0] if longest > min(map(len, contexts)) else contexts[0]
        cond = {"context": torch.stack([padded(context, empty, longest) for context in contexts])}
        if model.sizes:
            sizes = torch.stack([size_embedding(numbers(one, model.sizes)) for one in framings]).to(pooled[0])
            cond["vector"] = torch.cat([torch.stack(pooled), sizes], dim=1)
        return cond

    def encode(self, captions: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """The states of these texts and of the empty one, zeros for that where the model wants it so."""
        texts = list(dict.fromkeys(["", *captions]))
        if self.live:
            states = dict(text_states(self.model.text_encoders, texts, self.reading))
        else:
            if missing := [text for text in texts if text not in self.states]:
                if len(self.states) > self.kept:
                    self.states.clear()
                    missing = texts
                # alone: rounding depends on what else is in a batch, and after a resume that is something else
                for text in missing:
                    self.states |= encode(self.model.text_encoders, [text], self.reading)
            states = {text: self.states[text] for text in texts}
        if self.model.zero_empty:
            states[""] = tuple(map(torch.zeros_like, states[""]))  # type: ignore[assignment]
        return states


def padded(context: Tensor, empty: Tensor, length: int) -> Tensor:
    """The context (T, D) with as much of the empty one behind it as makes it `length` long."""
    if len(context) == length:
        return context
    times = -(-(length - len(context)) // len(empty))
    return torch.cat([context, *[empty] * times])[:length]


def numbers(framing: Framing, num: int) -> list[float]:
    """The numbers that condition SDXL (num 6) and its refiner (5): height before width (Podell et al. 2023, section 2.2)."""
    (width, height), (left, top) = framing.original, framing.corner
    last = [framing.target[1], framing.target[0]] if num == 6 else [framing.aesthetic]
    return [height, width, top, left, *last]
