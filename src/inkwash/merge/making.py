"""What a recipe makes, as a file or a folder."""

from pathlib import Path

from inkwash.merge.adapters import AdapterValue
from inkwash.merge.recipe import AnyValue, Recipe
from inkwash.merge.writing import OnTensor, write, write_adapter, write_as_folder
from inkwash.weights.checkpoint import DTYPES


def make(
    recipe: Recipe, output: Path, folder: Path = Path(), on_tensor: OnTensor = lambda done, total: None
) -> AnyValue:
    """Write the result to a safetensors file, or a model to a folder in the diffusers layout, and return its expression.

    folder: what relative paths are of. Raises ModelFileError, and writes nothing, as `Recipe.value` and `write`.
    """
    sources = recipe.sources(folder)
    value = recipe.value(sources, folder)
    dtype = DTYPES[recipe.dtype] if recipe.dtype else None
    metadata = recipe.metadata(sources, value)
    if isinstance(value, AdapterValue):
        write_adapter(value, output, dtype, metadata, on_tensor, recipe.names)
    else:
        save = write if output.suffix == ".safetensors" else write_as_folder
        save(value, output, dtype, metadata, on_tensor)
    return value
