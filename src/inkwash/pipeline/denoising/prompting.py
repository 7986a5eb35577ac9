"""Resolving requests: styles, choices and the files that prompts name are looked up once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from PIL.Image import Image

from inkwash.adapters.embeddings import Learned, sources, vectors_of
from inkwash.adapters.hypernetwork import prepare_hypernetwork, read_hypernetwork
from inkwash.adapters.low_rank import Attachment, prepare, read_adapter
from inkwash.pipeline.denoising.control import hashes_of, with_pictures
from inkwash.pipeline.denoising.few_steps import note_misfit
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.upscaler import upscaler_hash
from inkwash.prompts.chunks import chunks
from inkwash.prompts.comments import without_comments
from inkwash.prompts.conditioning import Encoded, Reading, encode
from inkwash.prompts.language import LANGUAGES
from inkwash.prompts.schedule import unread
from inkwash.prompts.styles import apply_styles, read_styles
from inkwash.prompts.tags import Tag, extract_tags
from inkwash.prompts.wildcards import expand
from inkwash.weights.checkpoint import TextEncoder
from inkwash.weights.hashes import hash_of, payload_hash

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Request)
R_co = TypeVar("R_co", bound=Request, covariant=True)
Files = Mapping[str, Mapping[str, str]]  # short hashes by kind and name


@dataclass(frozen=True)
class Prompts:
    """Each picture's prompt without its tags, and how a model reads it; pictures of the same adapters share a reading."""

    text_encoders: Sequence[TextEncoder]
    texts: Sequence[str]
    readings: Sequence[Reading]
    encoded: dict[object, Encoded] = field(default_factory=dict)

    def encode(self, texts: tuple[str, ...], reading: Reading) -> Encoded:
        """Encode texts once, also where several passes draw by them."""
        key = (id(reading), texts)
        if key not in self.encoded:
            self.encoded[key] = encode(self.text_encoders, texts, reading)
        return self.encoded[key]


@dataclass(frozen=True)
class Resolved(Generic[R_co]):
    """A request with all that it names, looked up once: what tasks draw, and what recipes record."""

    request: R_co  # its styles applied, its choices made, its controls' pictures opened
    prompts: Prompts
    refiner_prompts: Prompts | None  # the same prompts as the refiner reads them
    files: Sequence[Files]  # of each picture

    def sized(self, default: tuple[int, int]) -> Self:
        """Set the size: the request's own, else the default (width, height)."""
        return replace(self, request=self.request.sized(default))

    def changed(self, **fields: Any) -> Self:
        """Change fields of the request, except those of prompts and files."""
        return replace(self, request=self.request.model_copy(update=fields))


def resolve(model: Model, request: R, image: Image | None = None) -> Resolved[R]:
    """Look up all that a request names: styles, choices, adapters, embeddings, the pictures of its controls.

    image: the picture that the task changes, for controls without one. Raises ValueError for a name that there is none of,
    and ModelFileError for a file that can't be read.
    """
    for used in filter(None, (model, model.refiner)):
        used.folders.look_again()
    request = final(model, with_pictures(request, image, model.prior is not None))
    note_misfit(model, request)  # a style may name a LoRA
    with torch.inference_mode():
        prompts = read_prompts(model, request)
        refiner_prompts = read_prompts(model.refiner, request) if model.refiner else None
    return Resolved(request, prompts, refiner_prompts, files_of(model, request))


def final(model: Model, request: R) -> R:
    """The request with its styles applied and its choices made, each picture's by its own seed.

    Raises ValueError for a style or wildcard that there is none of.
    """
    known = read_styles(model.folders.styles) if request.styles else {}
    files = model.folders.wildcard_files() if model.folders.wildcards else None
    made = []
    for k, texts in enumerate(zip(request.prompts, request.negative_prompts, strict=True)):
        seed = f"{request.seeds[k]} {request.variation_seeds[k] if request.variation_strength else ''}"
        texts = apply_styles(request.styles, known, *texts)
        if LANGUAGES[request.prompt_language].comments:
            texts = [without_comments(text) for text in texts]
        if LANGUAGES[request.prompt_language].names:
            texts = [expand(text, f"{seed} {i}", files) for i, text in enumerate(texts)]
        made.append(texts)
    prompts, negative_prompts = ({texts[i] for texts in made} for i in (0, 1))
    changed = {
        "prompt": prompts.pop() if len(prompts) == 1 else tuple(texts[0] for texts in made),
        "negative_prompt": negative_prompts.pop()
        if len(negative_prompts) == 1
        else tuple(texts[1] for texts in made),
    }
    for prompt in dict.fromkeys(text for texts in made for text in texts):
        if LANGUAGES[request.prompt_language].changing and (problem := unread(prompt)):
            log.warning("the prompt is taken as it is written: %s", problem)
    for kind, others in (
        ("negative prompt", [text for _, text in made]),
        ("region", [r.what for r in request.regions]),
    ):
        if any(extract_tags(text)[1] for text in others):
            log.warning("LoRAs in a %s are taken as words; name them in the prompt", kind)
    return request.model_copy(update=changed | {"styles": ()})


def read_prompts(model: Model, request: Request) -> Prompts:
    """A final request's prompts as a model reads them."""
    if not model.text_encoders:
        return Prompts((), request.prompts, ())
    names = LANGUAGES[request.prompt_language].names
    split = [extract_tags(prompt) if names else (prompt, ()) for prompt in request.prompts]
    tags = [() if model.folders.loras is None else tags for _, tags in split]
    readings = {each: reading(model, request, each) for each in set(tags)}
    return Prompts(model.text_encoders, [text for text, _ in split], [readings[each] for each in tags])


def reading(model: Model, request: Request, tags: tuple[Tag, ...] = ()) -> Reading:
    """The reading of prompts with these tags."""
    embeddings, adapters = dict(sources(model.folders.embedding_files())), Attachment()
    for tag in tags:
        if tag.kind == "hypernet":
            found = read_hypernetwork(model.folders.hypernetwork(tag.name), model)
            adapters += prepare_hypernetwork(model, found, tag.unet)
            continue
        adapter = read_adapter(model.folders.lora(tag.name), model)
        adapters += prepare(model, adapter, tag.unet, tag.te)
        for name, tensors in adapter.embeddings.items():
            embeddings[name] = lambda widths, tensors=tensors: vectors_of(tensors, widths)
    return Reading(LANGUAGES[request.prompt_language], request.clip_skip, embeddings, adapters)


def files_of(model: Model, request: Request) -> list[Files]:
    """Short hashes of the files that each picture's final prompts name, by kind and name."""
    beside: dict[str, Mapping[str, str]] = {"controls": hashes_of(request)} if request.controls else {}
    if isinstance(request, TextToImageRequest) and (path := request.upscaler_file):
        beside["upscalers"] = {path.name: upscaler_hash(path)}
    if not (LANGUAGES[request.prompt_language].names and model.text_encoders):
        return [beside] * request.batch_size
    embeddings = model.folders.embedding_files()
    return [
        adapter_files(model, prompt) | embedding_files(model, request, prompt, negative, embeddings) | beside
        for prompt, negative in zip(request.prompts, request.negative_prompts, strict=True)
    ]


def adapter_files(model: Model, prompt: str) -> dict[str, Mapping[str, str]]:
    """The LoRAs and hypernetworks of a prompt, as of `files_of`."""
    _, tags = extract_tags(prompt)
    find = {"loras": ("lora", model.folders.lora), "hypernetworks": ("hypernet", model.folders.hypernetwork)}
    named = {
        key: {tag.name: payload_hash(path(tag.name))[:12] for tag in tags if tag.kind == kind}
        for key, (kind, path) in find.items()
    }
    return {key: files for key, files in named.items() if files}


def embedding_files(
    model: Model, request: Request, prompt: str, negative: str, files: Mapping[str, Sequence[Path]]
) -> dict[str, Mapping[str, str]]:
    """The embeddings of a picture's prompts, as of `files_of`. files: all that there are, by name."""
    if not files:
        return {}
    language = LANGUAGES[request.prompt_language]
    how, learned = Reading(language), Learned(sources(files), model.text_encoders)
    texts = [extract_tags(prompt)[0], *(region.what for region in request.regions)]
    for part, _ in [*chain.from_iterable(map(how.parts, texts)), (negative, 1.0)]:
        for _, text in how.plan(part, request.steps):
            chunks(model.text_encoders[0].tokenizer, text, language, learned)
    named = {name: hash_of(files[name])[:12] for name in learned.vectors}
    return {"embeddings": named} if named else {}
