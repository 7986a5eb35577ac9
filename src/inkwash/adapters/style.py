"""T2I-Adapter's style adapter, opened for a model."""

from functools import partial
from pathlib import Path

from inkwash.adapters.control import as_placed, placed
from inkwash.files import ModelFileError
from inkwash.models.style_adapter import StyleAdapter, StyleAdapterConfig
from inkwash.weights import shapes
from inkwash.weights.checkpoint import Parts, check_finite, fill
from inkwash.weights.names.wrappers import read_model_file


def open_style_adapter(path: Path, model: Parts) -> StyleAdapter:
    """The network of a file, on the model's device and in its dtype. Raises ModelFileError where it does not fit."""
    read = as_placed(read_model_file(path).tensors, model)
    tensors = {name.removeprefix("adapter."): value for name, value in read.items()}
    check_finite(tensors, path.name)
    sizes = shapes.of(tensors)
    try:
        width, context_dim = shapes.at(sizes, "proj", 2)
        num_tokens = shapes.at(sizes, "style_embedding", 3)[1]
    except ModelFileError as error:
        raise ModelFileError(f"{path.name}: {error}") from None
    wanted = model.unet.config.context_dim
    if context_dim != wanted:
        raise ModelFileError(f"{path.name} is for a context of {context_dim}, and the model's is {wanted}")
    config = StyleAdapterConfig(width, context_dim, num_tokens, shapes.count(sizes, "transformer_layes."))
    return fill(partial(StyleAdapter, config), tensors, path.name).to(*placed(model))
