"""Configurations of other trainers, kohya's and diffusers', as our options. Options that have no equal are named.

Imports no torch.
"""

import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inkwash.training.methods import Method
from inkwash.training.translations import DIFFUSERS, KOHYA, KOHYA_TARGETS, LCM, Convert, Values


class ImportedError(ValueError):
    """A file or text that is not another trainer's configuration."""


@dataclass(frozen=True)
class Imported:
    """Options that were understood, and a line for each that was not."""

    values: Values
    left: list[str]


def arguments(name: str, value: Any) -> Values:
    """The parts of ["conv_dim=4", "algo=loha"], or of a text, as options "network_args conv_dim" of their own."""
    texts = value if isinstance(value, list) else shlex.split(str(value))
    pairs = (str(text).partition("=") for text in texts)
    return {f"{name} {key.strip()}": own.strip() for key, _, own in pairs}


def taken(given: Mapping[str, Any], known: Mapping[str, Convert], method: Method, base: Values) -> Imported:
    """Split another trainer's options into those that the method has, over `base`, and those that it lacks."""
    values, left, fields = (
        {k: v for k, v in base.items() if k in method.config.model_fields},
        [],
        method.config.model_fields,
    )
    for name, value in given.items():
        said = name if value == "" else f"{name} {value!r}"
        if name not in known:
            left.append(f"{said}: not known here")
            continue
        try:
            made = known[name](value)
        except (KeyError, ValueError, OSError) as error:
            left.append(
                f"{said}: {error.args[0] if isinstance(error, ValueError) else 'there is no such choice here'}"
            )
            continue
        values |= {key: own for key, own in made.items() if key in fields}
        left += [f"{said}: {method.name} has no {key}" for key in made if key not in fields]
    return Imported(values, left)


def read_kohya_config(path: Path, method: Method) -> Imported:
    """Options from kohya's `--config_file`, whose sections are for the eye, or from its description of a dataset.

    Raises ImportedError for a file that is no TOML.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImportedError(f"{path} can't be read: {error}") from error
    if content.keys() & {"general", "datasets"}:
        return Imported({"data": str(path)}, [])
    given: Values = {}
    for key, value in content.items():
        given |= value if isinstance(value, dict) else {key: value}
    for name in ("network_args", "optimizer_args"):
        given |= arguments(name, given.pop(name, []))
    warmup, steps = given.get("lr_warmup_steps"), given.get("max_train_steps")
    if isinstance(warmup, float) and 0 < warmup < 1 and steps:
        given["lr_warmup_steps"] = int(warmup * steps)
    lora = "network_module" in given
    base: Values = {"rank": 4, "alpha": 1.0, "targets": KOHYA_TARGETS} if lora else {}
    if lora and "learning_rate" in given:
        base["text_lr"] = given["learning_rate"]
    # what others say more exactly comes later
    order = sorted(given, key=lambda name: name in ("unet_lr", "text_encoder_lr", "network_train_unet_only"))
    made = taken({name: given[name] for name in order}, KOHYA, method, base)
    if given.get("output_name"):
        made.values["output"] = str(Path(str(given.get("output_dir", "."))) / str(given["output_name"]))
    return made


def read_diffusers_options(text: str, method: Method) -> Imported:
    """Options of a command line of diffusers' training scripts, or of a file that holds one.

    Raises ImportedError for a text that is none.
    """
    path = Path(text)
    if "--" not in text:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ImportedError(f"{text!r} is not a file, and has no options, such as --rank 4") from error
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ImportedError(f"{text!r} is not a command line: {error}") from error
    scripts = [k for k, word in enumerate(words) if word.endswith(".py")]
    given = options(words[scripts[-1] + 1 :] if scripts else words)
    base: Values = {"buckets": False, "names": "peft", "upscale": True}
    base |= {"rank": 4} if "kind" in method.config.model_fields else {}
    if method.name == "distill":
        base |= LCM | (
            {"whole": True, "guidance_input": True} if scripts and "lora" not in words[scripts[-1]] else {}
        )
    made = taken(given, DIFFUSERS, method, base)
    if "train_text_encoder" in given and "learning_rate" in given and "text_encoder_lr" not in given:
        made.values["text_lr"] = given["learning_rate"]
    if {"adam_beta1", "adam_beta2"} & given.keys():
        made.values["betas"] = (float(given.get("adam_beta1", 0.9)), float(given.get("adam_beta2", 0.999)))
    if {"w_min", "w_max"} & given.keys() and method.name == "distill":  # of cond + w (cond - uncond)
        made.values["guidance"] = tuple(
            1 + float(given.get(name, w)) for name, w in (("w_min", 5), ("w_max", 15))
        )
    if "class_prompt" in made.values and "with_prior_preservation" not in given:
        del made.values["class_prompt"]  # theirs does without prior preservation then
    return made


def options(words: Iterable[str]) -> Values:
    """The values of --name value, --name=value and --name; of several values, all. Raises ImportedError for other words."""
    given: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = [value] if equals else []
        elif name is None:
            raise ImportedError(f"{word!r} stands before any option")
        else:
            given[name].append(word)
    return {name: " ".join(values) for name, values in given.items()}
