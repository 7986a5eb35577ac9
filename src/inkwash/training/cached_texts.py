"""Captions whose states are kept on disk, so that no text encoder stays in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import track

from inkwash.data.captions import vary
from inkwash.data.examples import Example
from inkwash.data.text_cache import CachedTextEncoder
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.prompting import final, read_prompts
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.prompts.conditioning import Reading, encode, plan
from inkwash.training.distributed import World


def with_cached_texts(
    model: Pipeline, folder: Path, changes_text: bool, examples: Iterable[Example]
) -> Pipeline:
    """The model with text encoders that keep in a folder what they compute.

    Raises ValueError where there are none, what learns changes what they say, or captions vary.
    """
    if not model.text_encoders:
        raise ValueError(f"cache_text: {model.name} has no text encoder")
    if changes_text:
        raise ValueError("cache_text: this run changes what the text encoders say, by text_lr or a new word")
    for _ in captions_of(examples):
        pass
    encoders = [
        replace(one, model=CachedTextEncoder(one.model, folder))  # type: ignore[arg-type]  of the same interface
        for one in model.text_encoders
    ]
    return replace(model, text_encoders=tuple(encoders))


def fill_texts(
    model: Pipeline,
    examples: Iterable[Example],
    reading: Reading,
    samples: Sequence[str],
    options: Mapping[str, Any],
    world: World,
) -> None:
    """Compute the states of all captions, and of samples' prompts with their options; then release the text encoders.

    Each process computes its share.
    """
    texts = dict.fromkeys(["", *captions_of(examples)])
    asked = [(text, reading) for text in texts] + list(sample_texts(model, samples, options))
    mine = asked[world.rank :: world.size]
    for text, read in track(mine, "encoding captions", transient=True, disable=not world.is_first):
        encode(model.text_encoders, [text], read)
    world.wait()
    for one in model.text_encoders:
        if isinstance(one.model, CachedTextEncoder):
            one.model.release()


def captions_of(examples: Iterable[Example]) -> Iterator[str]:
    """Every caption of these pictures but the empty one. Raises ValueError where they vary from one time to the next."""
    for example in examples:
        rules = example.rules
        for name in ("shuffle", "tag_dropout", "wildcards"):
            if getattr(rules, name):
                raise ValueError(
                    f"cache_text: the captions of {example.image} vary by {name}; leave one of the two out"
                )
        for caption in example.captions:
            yield vary([caption], replace(rules, dropout=0.0), Random(0))


def sample_texts(
    model: Pipeline, prompts: Sequence[str], options: Mapping[str, Any]
) -> Iterator[tuple[str, Reading]]:
    """The texts that sample pictures are drawn by, with how they are read."""
    for k, prompt in enumerate(prompts):
        request = final(model, TextToImageRequest(prompt=prompt, seed=k, **options))
        read = read_prompts(model, request)
        for each in zip(read.texts, request.negative_prompts, read.readings, strict=True):
            made = plan(*each, request.steps, request.perp_neg)
            for condition in (*made.wanted, made.unwanted):
                yield from ((text, made.reading) for _, text in condition.texts)
