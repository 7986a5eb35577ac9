"""From a request's prompts to what is read of them: styles, choices, and the files that they name."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from PIL.Image import Image

from inkwash.adapters.embeddings import Learned, sources, vectors_of
from inkwash.adapters.hypernetwork import prepare_hypernetwork, read_hypernetwork
from inkwash.adapters.low_rank import Attachment, prepare, read_adapter
from inkwash.pipeline.denoising.control import hashes_of, with_pictures
from inkwash.pipeline.denoising.few_steps import note_misfit
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request
from inkwash.prompts.chunks import chunks
from inkwash.prompts.comments import without_comments
from inkwash.prompts.conditioning import Reading
from inkwash.prompts.language import LANGUAGES
from inkwash.prompts.schedule import unread
from inkwash.prompts.styles import apply_styles, read_styles
from inkwash.prompts.tags import Tag, extract_tags
from inkwash.prompts.wildcards import expand
from inkwash.weights.checkpoint import hash_of, payload_hash

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R", bound=Request)
T = TypeVar("T")


def worded(draw: Callable[Concatenate[Model, R, P], T]) -> Callable[Concatenate[Model, R, P], T]:
    """Decorator: resolve styles and choices first, so that recorded prompts are the final ones; list the folders
    once, and open the pictures of controls."""

    @wraps(draw)
    def call(model: Model, request: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for used in filter(None, (model, model.refiner)):
            used.folders.look_again()
        note_misfit(model, request)
        image = kwargs.get("image")
        request = with_pictures(request, image if isinstance(image, Image) else None)
        return draw(model, final(model, request), *args, **kwargs)

    return call


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
    if any(extract_tags(negative)[1] for _, negative in made):
        log.warning("LoRAs in a negative prompt are taken as words; name them in the prompt")
    return request.model_copy(update=changed | {"styles": ()})


def read(model: Model, request: Request) -> tuple[list[str], list[Reading]]:
    """Each picture's prompt without its tags, and how it is read; pictures of the same LoRAs have the same object."""
    names = LANGUAGES[request.prompt_language].names
    found = [extract_tags(prompt) if names else (prompt, ()) for prompt in request.prompts]
    if model.folders.loras is None:
        found = [(text, ()) for text, _ in found]
    readings = {tags: reading(model, request, tags) for tags in {tags for _, tags in found}}
    return [text for text, _ in found], [readings[tags] for _, tags in found]


def reading(model: Model, request: Request, tags: tuple[Tag, ...] = ()) -> Reading:
    """How prompts with these tags are read."""
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


def files_of(model: Model, request: Request, k: int) -> dict[str, dict[str, str]]:
    """The short hashes of the files that picture k's final prompts name, by their kinds and names."""
    language = LANGUAGES[request.prompt_language]
    controls = {"controls": hashes_of(request)} if request.controls else {}
    if not language.names:
        return controls
    text, tags = extract_tags(request.prompts[k])
    loras = {tag.name: payload_hash(model.folders.lora(tag.name))[:12] for tag in tags if tag.kind == "lora"}
    hypernetworks = {
        tag.name: payload_hash(model.folders.hypernetwork(tag.name))[:12]
        for tag in tags
        if tag.kind == "hypernet"
    }
    files = model.folders.embedding_files()
    how, learned = Reading(language), Learned(sources(files), model.text_encoders)
    for piece, _ in [*how.parts(text), (request.negative_prompts[k], 1.0)] if files else []:
        for _, written in how.plan(piece, request.steps):
            chunks(model.text_encoders[0].tokenizer, written, language, learned)
    embeddings = {name: hash_of(files[name])[:12] for name in learned.vectors}
    made = {"loras": loras, "hypernetworks": hypernetworks, "embeddings": embeddings}
    return {key: value for key, value in made.items() if value} | controls
