"""Hints of pictures: `inkwash annotate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.pipeline.names import HintKind


@Parameter(name="*")
@dataclass(frozen=True)
class NumberOptions:
    """The numbers that annotators take; None: the annotator's own default."""

    low: Annotated[float | None, Parameter(help="canny: where an edge ends; default 100.")] = None
    high: Annotated[float | None, Parameter(help="canny: where an edge begins; default 200.")] = None
    sigma: Annotated[
        float | None, Parameter(help="Pixels of the Gaussian; default 9 for blur, 6 for lineart.")
    ] = None
    threshold: Annotated[float | None, Parameter(help="scribble: how dark a stroke is; default 32.")] = None
    factor: Annotated[
        float | None, Parameter(help="How much smaller; default 4 for tile, 64 for palette.")
    ] = None
    gamma: Annotated[float | None, Parameter(help="recolor: power of the lightness; default 1.")] = None
    relief: Annotated[
        float | None, Parameter(help="normal: depth's range, in the shorter side; default 0.5.")
    ] = None


NUMBERS = NumberOptions()


def annotate(
    kind: Annotated[HintKind | Literal["hed"], Parameter(help="What the hint shows.")],
    image: Annotated[
        Path, Parameter(help="A picture; of depth for depth and normal; of labels for segmentation.")
    ],
    /,
    *,
    numbers: NumberOptions = NUMBERS,
    depth_model: Annotated[
        Path | None,
        Parameter(
            help="depth, normal: a folder of a network, such as MiDaS's, that estimates IMAGE's depth."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        Parameter(help="hed, scribble: a file of HED's weights, of ControlNet, Keras or PyTorch."),
    ] = None,
    output: Annotated[
        Path | None,
        Parameter(help="PNG, JPEG or WebP; default: IMAGE's name with the kind, as photo-canny.png."),
    ] = None,
) -> None:
    """Make of IMAGE the hint that a ControlNet sees, and print the path.

    No model is needed but for hed, and for scribble with --weights; depth and normal take a map of depth, larger where
    nearer, or a photo with --depth-model.
    """
    given = {name: value for name, value in vars(numbers).items() if value is not None}
    if depth_model and kind not in ("depth", "normal"):
        raise options.usage_error(f"--depth-model is for depth and normal, and not for {kind}")
    if (kind == "hed" and not weights) or (weights and kind not in ("hed", "scribble")):
        raise options.usage_error(f"--weights is for hed, which needs it, and scribble; {kind} was given")
    path = output or image.with_name(f"{image.stem}-{kind}.png")
    options.check_output(path)

    from inkwash.annotators import ANNOTATORS
    from inkwash.pipeline.annotate import annotate, annotate_by_hed
    from inkwash.pipeline.record.metadata import save_image
    from inkwash.pipeline.tasks.depth import estimate_depth

    seen = options.open_image(image, "RGB" if depth_model or weights else ANNOTATORS[kind].sees)
    if depth_model:
        with options.opening():
            seen = estimate_depth(seen, depth_model)
    with options.opening():
        made = annotate_by_hed(kind, seen, weights, **given) if weights else annotate(kind, seen, **given)
    save_image(made, path)
    print(path)
