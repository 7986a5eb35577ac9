"""Check that pictures show all that their captions name: the recipe's judge, on crops."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.metrics import scenes
from inkwash.metrics.objects import on_white
from inkwash.metrics.scenes import CropJudge, Scene
from recipes.mini.classifier import Judge
from recipes.mini.pictures import Pictures, common_drawings

SIDE = 128  # pixels that the classifier sees, a drawing alone in them
PLAIN = " background, "  # in the captions of scenes before one colour


def crop_judge(classifier: Judge, data: Path) -> CropJudge:
    """The recipe's classifier as a judge of crops, with the names of the drawings that it learnt."""
    device = next(classifier.parameters()).device
    return CropJudge(
        list(common_drawings(data).values()),
        SIDE,
        lambda crops: classifier(on_white(crops.to(device)))[0],  # as all that it learnt from is
        "the recipe's judge, on crops of 128x128 put on white",
    )


def scene_of(record: Mapping[str, Any]) -> Scene:
    """Convert a record to a scene."""
    return Scene.of(described(record))


def described(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its kind of background, which its caption says."""
    return {**record, "background": "plain" if PLAIN in record["caption"] else "other"}


def scene_figures(
    pictures: Tensor, records: Sequence[Mapping[str, Any]], judge: CropJudge
) -> dict[str, float]:
    """Measure the share of each record's objects, colours and relations that pictures (N, 3, H, W) in [-1, 1] show.

    The figures are those of `inkwash.metrics.scenes.scene_figures`. Measure the real pictures too: the judge learnt from
    single drawings on white and misses much that is there, so that its figure of the real ones, not 1, is what a perfect
    model would get.
    """
    found = scenes.scene_figures(pictures.split(32), [scene_of(record) for record in records], judge)
    return {name: round(estimate.value, 4) for name, estimate in found.estimates.items()}


def heldout_scenes(heldout: Pictures, num: int = 100) -> list[int]:
    """The first held-out scenes of two objects before one colour."""
    pairs = [i for i, record in enumerate(heldout.records) if len(record["objects"]) == 2]
    return [i for i in pairs if PLAIN in heldout.records[i]["caption"]][:num]
