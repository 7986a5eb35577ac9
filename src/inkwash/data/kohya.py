"""Kohya's description of a dataset: a TOML file with [general], [[datasets]] and [[datasets.subsets]].

A value holds for all below it. Every key is either understood or named in an error.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inkwash.data.buckets import BucketRules
from inkwash.data.captions import CaptionRules
from inkwash.data.folders import DataError, Subset
from inkwash.weights.bytes.paths import nearest

# kohya's names of ours
CAPTIONS = {
    "caption_prefix": "prefix",
    "caption_suffix": "suffix",
    "caption_separator": "separator",
    "shuffle_caption": "shuffle",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_separator",
    "caption_dropout_rate": "dropout",
    "caption_tag_dropout_rate": "tag_dropout",
    "enable_wildcard": "wildcards",
}
SUBSET = {
    "class_tokens": "class_tokens",
    "caption_extension": "caption_extension",
    "num_repeats": "repeats",
    "flip_aug": "flip",
    "random_crop": "random_crop",
}
BUCKETS = {
    "enable_bucket": "enabled",
    "bucket_reso_steps": "step",
    "min_bucket_reso": "low",
    "max_bucket_reso": "high",
}
PLACES = {"image_dir", "metadata_file", "conditioning_data_dir", "mask_dir", "is_reg"}
DATASET = {"resolution", "batch_size", "bucket_no_upscale", *BUCKETS}
SILENT = {"cache_info", "debug_dataset"}  # what changes no picture
TYPES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
KNOWN = {*CAPTIONS, *SUBSET, *PLACES, *DATASET, *SILENT}


def read_kohya(
    path: Path, rules: BucketRules, prior_weight: float
) -> tuple[list[Subset], BucketRules, int | None]:
    """The subsets, the buckets and the batch size of a description; `rules` hold where it says nothing.

    prior_weight: of the loss of regularisation pictures, `is_reg`. Several datasets must share their buckets and batch size.
    Raises DataError for a key that is not known, with the nearest that is, and for values of another type.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if surplus := content.keys() - {"general", "datasets"}:
        raise DataError(f"{path}: {sorted(surplus)[0]!r} is not one of general, datasets")
    subsets, found = [], set()
    for dataset, values in merged(content, path):
        checked(values, path)
        found.add((bucket_rules(values, rules, path), values.get("batch_size")))
        for listed in dataset.get("subsets", []):
            subsets.append(make_subset(checked(values | listed, path), path, prior_weight))
    if not subsets:
        raise DataError(f"{path} has no [[datasets.subsets]]")
    if len(found) > 1:
        raise DataError(
            f"{path}: datasets of different resolution, buckets or batch_size; give them runs of their own"
        )
    return subsets, *found.pop()


def merged(content: Mapping[str, Any], path: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Each dataset, and its values with the general ones."""
    datasets = content.get("datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(one, dict) for one in datasets):
        raise DataError(f"{path}: datasets is not a list of tables, written [[datasets]]")
    for dataset in datasets:
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        yield dataset, dict(content.get("general", {})) | own


def checked(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values. Raises DataError for a key that is not known."""
    for key in values:
        if key not in KNOWN:
            raise DataError(f"{path}: {key!r} is not an option here{nearest(key, KNOWN)}")
    return values


def typed(values: Mapping[str, Any], names: Mapping[str, str], like: Any, path: Path) -> dict[str, Any]:
    """Values under our names. Raises DataError for one of another type than `like`'s."""
    made: dict[str, Any] = {}
    for theirs, ours in names.items():
        if theirs in values:
            value, default = values[theirs], getattr(like, ours)
            wanted = str if default is None else type(default)
            if type(value) is int and wanted is float:
                value = float(value)
            if type(value) is not wanted:
                raise DataError(f"{path}: {theirs} {value!r} is not {TYPES[wanted]}")
            made[ours] = value
    return made


def bucket_rules(values: Mapping[str, Any], rules: BucketRules, path: Path) -> BucketRules:
    """The buckets that the values describe."""
    made = replace(rules, **typed(values, BUCKETS, rules, path))
    made = replace(made, upscale=not values.get("bucket_no_upscale", not rules.upscale))
    if "resolution" in values:
        size = values["resolution"]
        size = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else ()
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise DataError(
                f"{path}: resolution {values['resolution']!r} is not a number, nor [width, height]"
            )
        made = replace(made, resolution=size)
    return made


def make_subset(values: Mapping[str, Any], path: Path, prior_weight: float) -> Subset:
    """The subset that these values describe; paths are relative to the file's folder."""
    place = values.get("metadata_file") or values.get("image_dir")
    if not isinstance(place, str):
        raise DataError(f"{path}: a subset needs image_dir or metadata_file")
    base = Subset(path.parent / place)
    folders = {"hint": values.get("conditioning_data_dir"), "mask": values.get("mask_dir")}
    return replace(
        base,
        **typed(values, SUBSET, base, path),
        rules=replace(base.rules, **typed(values, CAPTIONS, CaptionRules(), path)),
        weight=prior_weight if values.get("is_reg") else 1.0,
        roles={role: path.parent / folder for role, folder in folders.items() if folder},
    )
