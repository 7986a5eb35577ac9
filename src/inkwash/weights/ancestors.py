"""Ancestors of a merged model, from its metadata: a tree of models by their hashes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
# how merge tools name the hashes of the models, in the models' order
FIELDS = (
    *("model_a", "model_b", "model_c"),
    *("primary_model_hash", "secondary_model_hash", "tertiary_model_hash"),
)
METHOD = ("method", "mode", "interp_method")
DEPTH = 12  # of a tree, before it is taken for endless


@dataclass(frozen=True)
class Ancestor:
    """A model, how it was merged if it was, and of which ones."""

    name: str
    sha256: str | None
    method: str | None
    parents: tuple["Ancestor", ...]


def ancestors(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tree of a merged model, nested as `Ancestor`; None of one that is not merged, or whose metadata are broken."""
    recipe, models = parsed(metadata.get(RECIPE)), parsed(metadata.get(MODELS))
    if not recipe:
        return None
    return asdict(tree("", None, recipe, models, 0))


def tree(name: str, sha256: str | None, recipe: Any, models: Mapping[str, Any], depth: int) -> Ancestor:
    recipe = parsed(recipe)
    listed = recipe.get("models") if isinstance(recipe.get("models"), list) else None
    hashes = listed or [recipe[field] for field in FIELDS if recipe.get(field)]
    parents = []
    for digest in map(str, hashes if depth < DEPTH else ()):
        about = parsed(models.get(digest))
        parents.append(
            tree(str(about.get("name") or digest[:10]), digest, about.get(RECIPE), models, depth + 1)
        )
    method = next((str(recipe[field]) for field in METHOD if recipe.get(field)), None)
    return Ancestor(name, sha256, method, tuple(parents))


def parsed(value: Any) -> dict[str, Any]:
    """A JSON object, be it text or read already; an empty one for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def ancestor_lines(node: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """A tree as text, a line a model."""
    lines = []
    for parent in node["parents"]:
        how = f" = {parent['method']} of" if parent["parents"] else ""
        digest = f" ({parent['sha256'][:10]})" if parent["sha256"] else ""
        lines += [f"{indent}{parent['name']}{digest}{how}", *ancestor_lines(parent, indent + "  ")]
    return lines
