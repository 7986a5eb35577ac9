"""`inkwash merge-loras`, `extract-lora` and `merge-embeddings`: new adapters from adapters, or from models."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.merge import failing, shared, write_recipe

Output = Annotated[Path, Parameter(name=["--output", "-o"], help="A .safetensors file.")]
Rank = Annotated[int | None, Parameter(converter=options.whole, help="The largest rank.")]
ConvRank = Annotated[
    int | None, Parameter(converter=options.whole, help="The same of convolutions wider than a pixel.")
]
Energy = Annotated[
    float | None, Parameter(help="The smallest rank whose squared singular values have this share.")
]
Ratio = Annotated[float | None, Parameter(help="Singular values above this share of the largest.")]
Quantile = Annotated[
    float | None, Parameter(help="The first singular values, up to this share of their sum, as LyCORIS does.")
]
Names = Annotated[
    Literal["kohya", "peft", "lycoris"],
    Parameter(help="Whose names the file has; peft's are diffusers', too."),
]
Dtype = Annotated[
    Literal["fp32", "fp16", "bf16"] | None, Parameter(help="Of the result; default: as the first file.")
]


def merge_loras(
    *files: Annotated[str, Parameter(help="LoRAs and their kin, each FILE or FILE:SHARE.")],
    output: Output,
    base: Annotated[str, Parameter(help="A model that they are for.")],
    method: Annotated[
        str | None,
        Parameter(
            help="cat, svd, or one of peft's; default: svd where a size is given, else cat, which is exact."
        ),
    ] = None,
    rank: Rank = None,
    conv_rank: ConvRank = None,
    energy: Energy = None,
    ratio: Ratio = None,
    quantile: Quantile = None,
    density: Annotated[
        float | None, Parameter(help="Share of values that stay: ties, dare, pruning.")
    ] = None,
    seed: Annotated[int, Parameter(converter=options.whole, help="Of what the method draws.")] = 0,
    names: Names = "kohya",
    dtype: Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Add up LoRAs into one file; of a single one, cut its rank or change its names. Prints the path.

    `inkwash merge MODEL --lora FILE` bakes them into a model instead.
    """
    if not files:
        raise options.usage_error("merge-loras needs at least one file")
    size = sized(rank, conv_rank, energy, ratio, quantile)
    pairs = [shared(file) for file in files]
    adapters = {f"lora{i}": path for i, (path, _) in enumerate(pairs, 1)}
    step: dict[str, Any] = size | {
        "method": method or ("svd" if size else "cat"),
        "models": list(adapters),
        "shares": [share for _, share in pairs],
        "seed": seed,
    }
    step |= {"density": density} if density is not None else {}
    write(base, adapters, step, names, dtype, output, as_json)


def extract_lora(
    tuned: Annotated[str, Parameter(help="A model.")],
    base: Annotated[str, Parameter(help="The model that it was tuned from.")],
    /,
    *,
    output: Output,
    rank: Rank = None,
    conv_rank: Annotated[
        int | None,
        Parameter(converter=options.whole, help="Takes convolutions too (LoCon), with at most this rank."),
    ] = None,
    energy: Energy = None,
    ratio: Ratio = None,
    quantile: Quantile = None,
    whole: Annotated[
        bool, Parameter(negative="", help="Take all layers, with norms and biases as they are.")
    ] = False,
    names: Names = "kohya",
    dtype: Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a LoRA of what leads from a base to a model that was tuned from it, and print the path."""
    size = sized(rank, conv_rank, energy, ratio, quantile)
    if not size and not whole:
        size = {"rank": 32}
    step = {"method": "extract_lora", "models": ["tuned", "base"], "whole": whole} | size
    write(base, {}, step, names, dtype, output, as_json, tuned)


def merge_embeddings(
    *files: Annotated[str, Parameter(help="Embeddings of textual inversion, each FILE or FILE:SHARE.")],
    output: Output,
    method: Annotated[
        Literal["sum", "concat"], Parameter(help="Vectors added up, or one after the other.")
    ] = "sum",
) -> None:
    """Make one embedding of several, and print the path."""
    from inkwash.merge import embeddings

    if not files:
        raise options.usage_error("merge-embeddings needs at least one file")
    pairs = [shared(file) for file in files]
    with failing():
        embeddings.merge_embeddings(
            [Path(file) for file, _ in pairs], [by for _, by in pairs], output, method
        )
    print(output)


def write(
    base: str,
    adapters: dict[str, str],
    step: dict[str, Any],
    names: str,
    dtype: str | None,
    output: Path,
    as_json: bool,
    tuned: str | None = None,
) -> None:
    from inkwash.merge.recipe import checked

    models = {"base": base} | ({"tuned": tuned} if tuned else {})
    fields = {"models": models, "adapters": adapters, "steps": [step], "names": names, "dtype": dtype}
    with failing():
        write_recipe(checked(fields, step["method"]), Path(), output, as_json)


def sized(
    rank: int | None, conv_rank: int | None, energy: float | None, ratio: float | None, quantile: float | None
) -> dict[str, Any]:
    given = {"rank": rank, "conv_rank": conv_rank, "energy": energy, "ratio": ratio, "quantile": quantile}
    return {name: value for name, value in given.items() if value is not None}
