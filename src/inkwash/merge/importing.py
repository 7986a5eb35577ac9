"""Recipes of other tools as fields of ours, as far as what they compute is the same: sd-mecha's and mergekit's."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inkwash.files import ModelFileError

Fields = dict[str, Any]

# sd-mecha's methods -> ours and their parameters; `add_difference`, whose second value is a difference, is two of ours
MECHA = {
    "weighted_sum": ("weighted_sum", ("alpha",)),
    "slerp": ("slerp", ("alpha",)),
    "subtract": ("subtract", ()),
    "n_average": ("average", ()),
    "geometric_median": ("geometric_median", ()),
    "add_difference": ("add", ("alpha",)),
}
TOKEN = re.compile(r'(?:[^\s"]|"(?:\\.|[^"\\])*")+')
BLOCK = re.compile(r"(?:.*_)?block_(in|mid|out)(\d*)$")


def from_mecha(text: str) -> Fields:
    """The fields of a recipe of an sd-mecha file (.mecha): lines of models, numbers by block, and merges.

    Raises ModelFileError for other methods, for weights of other parts than blocks of the U-Net, and for a broken file.
    """
    models: dict[str, str] = {}
    steps: list[Fields] = []
    found: list[Any] = []  # what each line is: the name of a model or step, or weights of blocks

    def value(word: str) -> Any:
        if word.startswith("&"):
            number = int(word[1:]) if word[1:].isdecimal() else len(found)
            if number >= len(found):
                raise ModelFileError(f"{word} is not the number of a line before it")
            return found[number]
        return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else number_of(word)

    for line in text.splitlines():
        words = TOKEN.findall(line)
        if not words or words[0].startswith("#") or words[0] == "version":
            continue
        command, *rest = words
        given = [value(word) for word in rest if "=" not in word or word.startswith('"')]
        named = {
            key: value(word)
            for key, _, word in (w.partition("=") for w in rest if "=" in w and not w.startswith('"'))
        }
        if command == "model" and given:
            models[f"m{len(found)}"] = str(given[0])
            found.append(f"m{len(found)}")
        elif command == "dict":
            found.append(blocks(named))
        elif command in ("merge", "call") and given:
            name = f"s{len(found)}"
            steps += mecha_steps(name, str(given[0]), given[1:], named)
            found.append(name)
        else:
            raise ModelFileError(
                f"sd-mecha's {line.strip()[:80]!r} is not covered: model, dict and merge are"
            )
    return {"models": models, "steps": steps}


def mecha_steps(name: str, method: str, given: Sequence[Any], named: Mapping[str, Any]) -> list[Fields]:
    if method not in MECHA:
        raise ModelFileError(f"sd-mecha's method {method!r} is not covered; these are: {', '.join(MECHA)}")
    ours, parameters = MECHA[method]
    if unknown := named.keys() - {*parameters}:
        raise ModelFileError(f"sd-mecha's {method} has {min(unknown)}, which is not covered")
    inputs = [each for each in given if isinstance(each, str)]
    rest = [each for each in given if not isinstance(each, str)]
    numbers = dict(zip(parameters, rest, strict=False)) | dict(named)
    for key, number in numbers.items():
        if isinstance(number, dict):
            numbers[key] = number | {"block_map": "sd-mecha"}
    if method != "add_difference":
        return [{"name": name, "method": ours, "models": inputs, **numbers}]
    if len(inputs) != 2:
        raise ModelFileError(
            f"sd-mecha's add_difference takes a model and a difference, not {len(inputs)} values"
        )
    scaled = {
        "name": f"{name}-scaled",
        "method": "self",
        "models": inputs[1:],
        "alpha": numbers.get("alpha", 1.0),
    }
    return [scaled, {"name": name, "method": "add", "models": [inputs[0], f"{name}-scaled"]}]


def blocks(named: Mapping[str, Any]) -> Fields:
    """Weights of the U-Net's blocks; those that are not named are 0."""
    numbers: dict[tuple[str, int], float] = {}
    base = 0.0
    for key, number in named.items():
        if match := BLOCK.match(key):
            numbers[match[1], int(match[2] or 0)] = float(number)
        elif key.endswith("default"):
            base = float(number)
        elif float(number):
            raise ModelFileError(
                f"sd-mecha's weight of {key} is not covered: those of blocks of the U-Net are"
            )
    last = max((place for side, place in numbers if side != "mid"), default=-1)
    inputs = 9 if last < 9 else 12
    order = [*(("in", i) for i in range(inputs)), ("mid", 0), *(("out", i) for i in range(inputs))]
    return {"base": base, "blocks": [numbers.get(place, base) for place in order]}


def number_of(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ModelFileError(f"{word[:80]!r} is not a number") from None


def read_plain(path: Path) -> Any:
    """A JSON or YAML file. Raises ModelFileError for YAML where there is no reader of it."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    try:
        import yaml  # pyright: ignore[reportMissingModuleSource]
    except ImportError as error:
        raise ModelFileError("reading YAML takes PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ModelFileError(f"it is not YAML: {' '.join(str(error).split())[:200]}") from error


# mergekit's methods -> ours, and whether the weights must be alike, since they are used in another way there
MERGEKIT = {
    "linear": ("average", False),
    "slerp": ("slerp", False),
    "task_arithmetic": ("task_arithmetic", False),
    "model_stock": ("model_stock", False),
    "dare_linear": ("dare", False),
    "ties": ("ties", True),
    "dare_ties": ("dare_ties", True),
}
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def from_mergekit(fields: Mapping[str, Any]) -> Fields:
    """The fields of a recipe of a mergekit list: one method over whole models.

    Raises ModelFileError for slices, for weights by layer or by tensor, and for methods that compute something else here.
    """
    surplus = fields.keys() - {"models", "merge_method", "base_model", "parameters", "dtype", "out_dtype"}
    if surplus:
        raise ModelFileError(f"mergekit's {min(surplus)} is not covered: one method over whole models is")
    method, base = str(fields["merge_method"]), fields.get("base_model")
    if method not in MERGEKIT:
        raise ModelFileError(f"mergekit's method {method!r} is not covered; these are: {', '.join(MERGEKIT)}")
    ours, alike = MERGEKIT[method]
    listed = [
        entry for entry in fields.get("models") or () if isinstance(entry, Mapping) and "model" in entry
    ]
    tuned = [entry for entry in listed if entry["model"] != base]
    paths = ([str(base)] if base else []) + [str(entry["model"]) for entry in tuned]
    shared = dict(fields.get("parameters") or {})
    own = [shared | dict(entry.get("parameters") or {}) for entry in tuned]
    step: Fields = {"method": ours, "models": [f"m{i}" for i in range(len(paths))]}
    if method == "slerp":
        step["alpha"] = plain(shared, "t", 0.5)
    elif method != "model_stock":
        weights = [plain(each, "weight", 1.0) for each in own]
        if alike and len(set(weights)) > 1:
            raise ModelFileError(f"mergekit's {method} with different weights is not covered: alike ones are")
        step["shares"] = [1.0] * len(weights) if alike else weights
        scale = plain(shared, "lambda", 1.0) * (
            weights[0] if alike and shared.get("normalize") is False else 1
        )
        step |= {"alpha": scale} if ours != "average" else {}
    densities = {plain(each, "density", 1.0) for each in own}
    if ours in ("ties", "dare", "dare_ties"):
        if len(densities) > 1:
            raise ModelFileError(
                f"mergekit's {method} with a density for each model is not covered: one for all is"
            )
        step["density"] = densities.pop()
    known = {"t", "weight", "density", "lambda", "normalize", "rescale", "int8_mask"}
    for each in (shared, *own):
        if unknown := each.keys() - known:
            raise ModelFileError(f"mergekit's parameter {min(unknown)} is not covered")
    dtype = fields.get("out_dtype") or fields.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ModelFileError(f"mergekit's dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    models = dict(zip(step["models"], paths, strict=True))
    return {"models": models, "steps": [step]} | ({"dtype": DTYPES[dtype]} if dtype else {})


def plain(parameters: Mapping[str, Any], name: str, default: float) -> float:
    """A parameter that is one number for all tensors."""
    value = parameters.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelFileError(
            f"mergekit's {name} {str(value)[:80]!r} is not covered: one number for all tensors is"
        )
    return float(value)
