"""Model files: `inkwash inspect` and `inkwash convert`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.files import ModelFileError
from inkwash.weights.bytes.paths import model_path, shipped_part

Source = Annotated[
    str, Parameter(help="A shipped model's name, a single file, or a folder in the diffusers layout.")
]


def inspect(model: Source, /, *, as_json: options.AsJson = False) -> None:
    """Print what MODEL is: its family and parts, and what says so.

    Any file of the field is taken, also a LoRA, ControlNet, embedding or autoencoder.
    """
    from inkwash.weights.inspect import inspect

    report = read(inspect, shipped_part(model) or model)
    print(json.dumps(finite(report), ensure_ascii=False, default=str) if as_json else "\n".join(told(report)))


def convert(
    model: Source,
    output: Annotated[Path, Parameter(help="Where to write: a file, or a folder.")],
    /,
    *,
    layout: Annotated[Literal["single", "diffusers"], Parameter(help="What to write.")],
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, Parameter(help="Of what is written; default: as it is.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write MODEL in the other layout, tensor by tensor, and print the path.

    What the layout has no place for is kept beside; converting back brings it home.
    """
    from inkwash.weights.checkpoint import DTYPES
    from inkwash.weights.models.convert import convert

    if layout == "single" and output.is_dir():
        raise options.usage_error(f"{output} is a folder; a single file is asked for")
    if layout == "diffusers" and output.exists() and not output.is_dir():
        raise options.usage_error(f"{output} is a file; a folder is asked for")
    report = read(lambda path: convert(path, output, layout, DTYPES[dtype] if dtype else None), model)
    if as_json:
        print(json.dumps({"output": str(output), "tensors": report.tensors, "kept": report.kept}))
    else:
        print(output)


def read(what: Any, model: str | Path) -> Any:
    try:
        return what(model_path(model))
    except ModelFileError as error:
        raise options.file_error(error) from error


def finite(value: Any) -> Any:
    """The value with numbers that JSON has no form for, NaN and infinities, as text."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def told(report: dict[str, Any]) -> list[str]:
    """A report in lines."""
    what = [report["family"], report["variant"] if report["variant"] != "base" else None, report["kind"]]
    lines = [" ".join(filter(None, what))]
    if report["prediction_type"]:
        lines[0] += f", predicts {report['prediction_type']}"
    lines += [f"  {said}" for said in report["evidence"]]
    if suggested := report.get("suggested"):
        options = (f"--{name.replace('_', '-')} {value}" for name, value in suggested.items())
        lines.append(f"draw with: {' '.join(options)}")
    for name, part in report["components"].items():
        lines.append(f"{name:<16} {part['parameters']:>13,} parameters, {part['dtype']}")
    lines += [f"missing: {name}" for name in report.get("missing", [])[:8]]
    keys = report["keys"]
    lines.append(f"tensors: {keys['used']} used, {keys['dropped']} dropped, {len(keys['unknown'])} unknown")
    lines += [f"  unknown: {name}" for name in keys["unknown"][:8]]
    lines += [f"{name}: {digest}" for name, digest in report["hashes"].items()]
    if tree := report.get("ancestors"):
        from inkwash.weights.ancestors import ancestor_lines

        lines += [f"merged by {tree['method']} of", *ancestor_lines(tree)]
    for name, value in report["metadata"].items():
        text = " ".join(str(value).split())
        lines.append(f"{name}: {text[:200]}{'...' if len(text) > 200 else ''}")
    return lines
