"""The calls of a process that draw nothing: what a model is, what a picture says, how long a prompt is, hints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def describe(source: str) -> dict[str, Any]:
    """A model's family, hash and size, and what it must see beside the latent, without building it."""
    from inkwash.weights.bytes.paths import model_path
    from inkwash.weights.hashes import hash_of
    from inkwash.weights.inspect import inspect
    from inkwash.weights.models.convert import few_steps_of_checkpoint, read_checkpoint
    from inkwash.weights.models.prior import has_prior

    path = model_path(source)
    checkpoint = read_checkpoint(path)
    few, found = few_steps_of_checkpoint(checkpoint, [path]), inspect(path)
    digest = hash_of(checkpoint.files)
    return {
        "sha256": digest,
        "family": found["family"],
        "prediction": (few.prediction if few else None) or found["prediction_type"],
        "zero_terminal_snr": bool(checkpoint.scheduler.get("rescale_betas_zero_snr")),
        "sees": checkpoint.inputs.needed,
        "prior": has_prior(path),
        "size": sum(file.stat().st_size for file in checkpoint.files),
    }


def misfits(source: str, controls: dict[str, str]) -> dict[str, str | None]:
    """Reasons why controls do not fit a model, None for those that do, by shapes alone. controls: name -> path."""
    from inkwash.files import ModelFileError
    from inkwash.pipeline.denoising.control import open_network
    from inkwash.weights.bytes.paths import control_path, model_path
    from inkwash.weights.checkpoint import undrawn
    from inkwash.weights.models.convert import read_checkpoint

    checkpoint = read_checkpoint(model_path(source))
    unet, first_stage = undrawn(checkpoint.unet.config), SimpleNamespace(config=checkpoint.autoencoder.config)
    model: Any = SimpleNamespace(unet=unet, autoencoder=first_stage)  # what openers look at
    found: dict[str, str | None] = {}
    for name, path in controls.items():
        try:
            open_network(control_path(path), model)
            found[name] = None
        except ModelFileError as error:
            found[name] = str(error)
    return found


def recipe(path: str) -> dict[str, Any]:
    """The task and the request of a picture, by any tool's metadata, and its texts."""
    from inkwash.pipeline.record.metadata import read_recipes
    from inkwash.pipeline.replay import recorded

    try:
        found = read_recipes(Path(path))
    except (OSError, SyntaxError) as error:  # of Pillow, for damaged files
        raise ValueError("it is not a readable picture") from error
    if not found:
        raise ValueError("it carries no recipe")
    of = recorded(found)
    request = of.request.model_dump(mode="json")
    return {
        "task": of.request.task,
        "request": request,
        "images": list(of.given),
        "notes": list(of.not_applied),
        "model": of.model,
    }


def tokens(text: str, source: str) -> dict[str, Any]:
    """Number of a prompt's tokens in a model's vocabulary, and of the chunks that hold them."""
    from inkwash.models.tokenizer import Tokenizer
    from inkwash.prompts.chunks import chunks
    from inkwash.weights.bytes.paths import model_path
    from inkwash.weights.models.convert import read_checkpoint

    texts = read_checkpoint(model_path(source)).text
    tokenizer = texts[0].tokenizer if texts else Tokenizer.clip()
    made = chunks(tokenizer, text)
    ends = {tokenizer.start, tokenizer.end, tokenizer.pad}
    names = {number: token for token, number in tokenizer.vocab.items()}
    words = [
        names[token].replace("</w>", " ") for chunk in made for token in chunk.tokens if token not in ends
    ]
    return {"count": len(words), "chunks": len(made), "limit": tokenizer.max_length - 2, "tokens": words}


def annotate(kind: str, path: str, output: str, numbers: dict[str, float]) -> dict[str, Any]:
    """Write the hint that an annotator makes of a picture, as a PNG."""
    from inkwash.annotators import ANNOTATORS
    from inkwash.pipeline.annotate import annotate
    from inkwash.pipeline.images import open_picture

    made = annotate(kind, open_picture(Path(path), ANNOTATORS[kind].sees), **numbers)
    made.save(output, "PNG")
    return {}


def enlarge(upscaler: str, device: str, path: str, output: str, size: list[int] | None) -> dict[str, Any]:
    """Write a picture in another (width, height), or enlarged by what the file is for, by a pixel upscaler's file."""
    from inkwash.pipeline.images import open_picture
    from inkwash.pipeline.upscaler import open_upscaler
    from inkwash.serve.checks import check_enlarged

    image, network = open_picture(Path(path), "RGBA"), open_upscaler(upscaler, device)
    width, height = size or network.size(image)
    check_enlarged((width, height))
    network.enlarged(image, (width, height)).save(output)
    return {}
