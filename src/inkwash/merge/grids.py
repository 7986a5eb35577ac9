"""Sheets of merges along a parameter, and distances that they move a model, without writing a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import isfinite

import torch
from PIL import Image

from inkwash.explain.drawing import Drawing
from inkwash.explain.plots import bars
from inkwash.explain.sheets import Axis, sheet
from inkwash.files import ModelFileError
from inkwash.merge.blocks import Strength, Weights, block_names, block_of, component_of, num_inputs
from inkwash.merge.expression import Merge, Model, Value
from inkwash.merge.recipe import PARAMETERS, Recipe
from inkwash.merge.sources import Source
from inkwash.merge.writing import filled
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import TASKS
from inkwash.weights.bytes.tensor_file import TensorFile
from inkwash.weights.checkpoint import assemble, chosen_dtype
from inkwash.weights.models.single import sort, sorted_checkpoint

SHORT = {"vae": "VAE", "text_encoder": "TE", "text_encoder_2": "TE2"}  # as a plot has room for
STRENGTH = "strength"  # of all adapters that are baked


def axis(text: str) -> Axis:
    """The axis that a text such as alpha=0,0.5,1 means. Raises ValueError for what is none."""
    name, _, values = text.partition("=")
    names, numbers = (*PARAMETERS, STRENGTH), tuple(value.strip() for value in values.split(","))
    try:
        finite = all(isfinite(float(number)) for number in numbers)
    except ValueError:
        finite = False
    if name not in names or not finite:
        raise ValueError(
            f"{text!r} is not an axis such as alpha=0,0.5,1; its name is one of {', '.join(names)}"
        )
    return Axis(name, numbers)


def merge_sheet(
    recipe: Recipe, sources: Mapping[str, Source], axes: Sequence[Axis], request: TextToImageRequest
) -> Image.Image:
    """One picture for each value of one axis or two, of the same prompt and noise.

    Raises ModelFileError where the recipe has no such parameter or makes no model, and ValueError for other axes.
    """
    if not 1 <= len(axes) <= 2 or len({axis.name for axis in axes}) < len(axes):
        raise ValueError(f"a grid has one axis or two different ones, not {', '.join(a.name for a in axes)}")
    images = []
    for values in product(*(axis.values for axis in reversed(axes))):
        made = recipe
        for axis, value in zip(reversed(axes), values, strict=True):
            made = varied(made, axis.name, float(value))
        images += drawn(made, sources, request)
    return sheet(request, axes, images)


def drawn(recipe: Recipe, sources: Mapping[str, Source], request: TextToImageRequest) -> list[Image.Image]:
    """Pictures by a recipe's model, which is never written to a file."""
    value = recipe.value(sources)
    if not isinstance(value, Value):
        raise ModelFileError("the recipe makes an adapter; a grid is of models")
    model = opened(value, sources[recipe.leading].metadata)
    images = TASKS["text_to_image"].draw(model, request, {})
    for image in images:  # of no file
        said = str(image.info.get("parameters", ""))
        image.info["parameters"] = said.replace(f"Model hash: {model.hash}, ", "")
    return images


def opened(value: Value, metadata: Mapping[str, str], dtype: str = "auto") -> Pipeline:
    """The model that a merge would be, in memory. metadata: the leading model's. dtype: see `chosen_dtype`."""
    with torch.inference_mode(False), torch.no_grad():
        tensors = {
            name: filled(name, value.blocks(name, info.dtype), info) for name, info in value.infos.items()
        }
    file = TensorFile(next(value.sources()).path, "safetensors", tensors, dict(metadata))
    checkpoint = sorted_checkpoint(file, sort(tensors))
    built = assemble(checkpoint, dtype=chosen_dtype(dtype, "cpu", checkpoint))
    names = dict.fromkeys(source.path.stem for source in value.sources())
    return Pipeline(**vars(replace(built, files=())), name=" + ".join(names))


def varied(recipe: Recipe, name: str, number: float) -> Recipe:
    """The recipe with another number: of its last step that has such a parameter."""
    steps = list(recipe.steps)
    bakes = [i for i, step in enumerate(steps) if step.method == "bake"]
    if name == STRENGTH:
        if not bakes:
            raise ModelFileError("strength is of adapters that are baked, and the recipe has none")
        step = steps[bakes[-1]]
        shares = step.shares or (Strength(),) * (len(step.models) - 1)
        changed = {"shares": tuple(share.model_copy(update={"base": number}) for share in shares)}
        steps[bakes[-1]] = step.model_copy(update=changed)
    else:
        at = max((i for i in range(len(steps)) if i not in bakes), default=None)
        if at is None:
            raise ModelFileError(f"the recipe has no step with a parameter {name}")
        weights = getattr(steps[at], name) or Weights()
        steps[at] = steps[at].model_copy(update={name: weights.model_copy(update={"base": number})})
    return recipe.model_copy(update={"steps": tuple(steps)})


def plots(value: Value) -> list[Drawing]:
    """The weights of the last merge's blocks, and how far each block moved from the leading model."""
    far = moved(value)
    parameters = [
        (name, {key: weights[key] for key in far if key in weights}) for name, weights in chosen(value)
    ]
    return [
        bars({SHORT.get(key, key): number for key, number in numbers.items()}, name)
        for name, numbers in (*parameters, ("moved, of its own norm", far))
    ]


def chosen(value: Value) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Parameters of the last merge, by block and network."""
    while not isinstance(value, Merge):
        if (inner := getattr(value, "inner", None)) is None:
            return
        value = inner
    for name, placed in value.placed.items():
        yield name, {**placed.blocks, **{part: placed.at(key) for part, key in first_of(value).items()}}


def first_of(value: Value) -> dict[str, str]:
    """A tensor's name of each network beside the U-Net."""
    found: dict[str, str] = {}
    for name in value.infos:
        if (part := component_of(name)) not in (None, "unet"):
            found.setdefault(str(part), name)
    return found


def moved(value: Value) -> dict[str, float]:
    """Distance of each block of the U-Net and of each other network from the leading model: the norm of the difference, over
    the norm of what was there."""
    first, inputs = Model(next(value.sources())), num_inputs(value.infos)
    order = [*block_names(inputs)[1:], *first_of(value)]
    squares = {key: torch.zeros(2, dtype=torch.float64) for key in order}
    for name, info in value.infos.items():
        part = component_of(name)
        key = block_of(name, inputs) if part == "unet" else part
        if key not in squares or not info.dtype.is_floating_point:
            continue
        pieces = zip(first.blocks(name, torch.float32), value.blocks(name, torch.float32), strict=True)
        for old, new in pieces:
            old, new = old.float(), new.float()
            squares[key] += torch.stack([(new - old).square().sum(), old.square().sum()])
    return {key: float((far / own).sqrt()) if own else 0.0 for key, (far, own) in squares.items()}
