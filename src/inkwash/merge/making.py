"""Make a recipe's model, as a file or a folder: `expression` computes its tensors, `writing` writes them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inkwash.merge.adapters import AdapterValue
from inkwash.merge.recipe import AnyValue, Recipe
from inkwash.merge.writing import Late, OnTensor, write, write_adapter, write_as_folder
from inkwash.weights.checkpoint import DTYPES

HASHING = 2  # threads


def make(
    recipe: Recipe, output: Path, folder: Path = Path(), on_tensor: OnTensor = lambda done, total: None
) -> AnyValue:
    """Write the result to a safetensors file, or a model to a folder in the diffusers layout, and return its expression.

    folder: what relative paths are of. Raises ModelFileError, and writes nothing, as `Recipe.value` and `write`.
    """
    sources = recipe.sources(folder)
    value = recipe.value(sources, folder)
    dtype = DTYPES[recipe.dtype] if recipe.dtype else None

    def metadata(digests: Mapping[str, str]) -> Mapping[str, str]:
        return recipe.metadata(sources, value, digests)

    with ThreadPoolExecutor(HASHING) as pool:
        # while tensors are computed; what is found is as long as the numbers that stand for it till then
        digests = {name: pool.submit(lambda source=source: source.sha256) for name, source in sources.items()}
        draft = metadata({name: f"{number:064x}" for number, name in enumerate(sources)})
        late = Late(draft, lambda: metadata({name: digest.result() for name, digest in digests.items()}))
        if isinstance(value, AdapterValue):
            write_adapter(value, output, dtype, late, on_tensor, recipe.names)
        else:
            save = write if output.suffix == ".safetensors" else write_as_folder
            save(value, output, dtype, late, on_tensor)
    return value
