"""Prompt-following of pictures of scenes: names, counts, colours, relations, by a judge of single objects.

H W picture size, S side of a crop, W windows, K names. Boxes are x0, y0, x1, y1 in shares of the picture, 0 to 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.metrics.colours import colour_of
from inkwash.metrics.estimates import Estimate, require, share_estimate
from inkwash.metrics.figures import Figures, Watch
from inkwash.metrics.objects import count_objects

AXES = {
    "left of": (0, 1),
    "right of": (0, -1),
    "above": (1, 1),
    "below": (1, -1),
}  # axis, sign; depth is not told
SIDES = (1.0, 0.75, 0.55, 0.4)  # of windows, in shares of the picture
STEP = 0.3  # of a window's side, from one window to the next
MARGIN = 1 / 14  # around a box, as drawings have in pictures of their own
FEWEST = 10  # cases of a share

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Wanted:
    """An object that a scene asks for. box: where it lies, if that is known."""

    name: str
    colour: str | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Scene:
    """The content that a picture is asked to show. relations: (i, relation, j) over positions in `objects`.

    apart: whether the objects lie apart, before one colour, so that they can be counted.
    """

    objects: tuple[Wanted, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    apart: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Scene":
        """A scene, from a record with `objects` (name, optionally colour and box in pixels), `relations`, `width`, `height`.

        They lie apart where `background` is "plain" and none is in front of another. Raises ValueError in one line for
        anything else.
        """
        try:
            size = [record["width"], record["height"]] * 2 if "width" in record else None
            objects = tuple(
                Wanted(
                    str(one["name"]),
                    one.get("colour"),
                    tuple(end / side for end, side in zip(one["box"], size, strict=True))  # pyright: ignore
                    if size and one.get("box")
                    else None,
                )
                for one in record["objects"]
            )
            relations = tuple((int(i), str(word), int(j)) for i, word, j in record.get("relations", ()))
            if any(not (0 <= i < len(objects) and 0 <= j < len(objects)) for i, _, j in relations):
                raise ValueError("a relation names an object that is not there")
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"no record of a scene: {type(error).__name__} {error}") from error
        flat = all(word in AXES for _, word, _ in relations)
        return cls(objects, relations, flat and record.get("background") == "plain")


@dataclass(frozen=True)
class CropJudge:
    """A classifier of crops that show one object. about: what figures over it depend on.

    classify: crops (W, 3, side, side) in [-1, 1] to logits (W, K) on any device, in the order of `names`.
    """

    names: Sequence[str]
    side: int
    classify: Callable[[Tensor], Tensor]
    about: str


@dataclass(frozen=True)
class Seen:
    """The judge's verdict on each window of a picture: its first name (W,), how sure it is (W,), and the windows (W, 4)."""

    names: Tensor
    sure: Tensor
    boxes: Tensor

    def window(self, name: int) -> int | None:
        """The window where the judge says this name first, and is surest of it; None where it never does."""
        where = (self.names == name).nonzero()[:, 0]
        return int(where[self.sure[where].argmax()]) if len(where) else None


def grown(box: Box) -> list[float]:
    """A box with the margin that drawings have in pictures of their own."""
    margin = MARGIN * max(box[2] - box[0], box[3] - box[1])
    return [box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin]


def windows() -> Tensor:
    """Squares (W, 4) of all SIDES, densely over the picture."""
    found = []
    for side in SIDES:
        places = torch.linspace(0, 1 - side, 1 + round((1 - side) / (side * STEP))).tolist()
        found += [(x, y, x + side, y + side) for y in places for x in places]
    return torch.tensor(found)


def crops(picture: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Crops of the boxes (W, 4) of a picture (3, H, W), as (W, 3, side, side); beyond its edge its last pixels."""
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1) / 2
    centre = boxes[:, :2] + boxes[:, 2:] - 1
    square = torch.tensor([1 / picture.shape[2], 1 / picture.shape[1]]) * max(picture.shape[1:])
    theta = torch.cat([torch.diag_embed(2 * half[:, None] * square), centre[:, :, None]], dim=2)
    fine = (
        2 if max(picture.shape[1:]) > side else 1
    )  # so that no pixel is passed over where a crop is smaller than its box
    grid = F.affine_grid(theta.to(picture), [len(boxes), 3, fine * side, fine * side], align_corners=False)
    taken = F.grid_sample(
        picture.expand(len(boxes), -1, -1, -1), grid, padding_mode="border", align_corners=False
    )
    return F.avg_pool2d(taken, fine)


@torch.inference_mode()
def look(judge: CropJudge, picture: Tensor, boxes: Tensor) -> Seen:
    """The judge's verdicts on the boxes (W, 4) of a picture (3, H, W) in [-1, 1]."""
    sure, names = judge.classify(crops(picture, boxes, judge.side)).float().softmax(1).max(1)
    return Seen(names.cpu(), sure.cpu(), boxes)


def right_place(word: str, a: Tensor, b: Tensor) -> bool:
    """Return True if the centre of window a is on the side of window b's centre that the word names."""
    axis, sign = AXES[word]
    return sign * float((a[axis] + a[axis + 2]) - (b[axis] + b[axis + 2])) < 0


def answers(
    judge: CropJudge, index: Mapping[str, int], picture: Tensor, scene: Scene, other: Scene, searched: bool
) -> Iterator[tuple[str, bool]]:
    """The names of figures and whether a picture is right by them. other: a scene that it is not asked to show."""
    if searched and scene.apart:
        yield "count", count_objects(picture) == len(scene.objects)
    asked = [k for k, one in enumerate(scene.objects) if one.name in index]
    if not asked:
        return
    if searched:
        seen = look(judge, picture, windows())
        found = {k: seen.window(index[scene.objects[k].name]) for k in asked}
    else:
        known = [one.box for one in scene.objects]
        if None in known:
            raise ValueError("a scene says no boxes of its objects: search for them")
        seen = look(judge, picture, torch.tensor([grown(box) for box in known if box]))
        found = {k: k if seen.names[k] == index[scene.objects[k].name] else None for k in asked}
    places = {k: place for k, place in found.items() if place is not None}
    for k in asked:
        yield "named", k in places
    if len(asked) == len(scene.objects) > 1:
        yield "all_named", len(places) == len(asked)
    if len(asked) == len(scene.objects) == 2:
        yield "both_named", len(places) == 2
    for k, place in places.items():
        if colour := scene.objects[k].colour:
            yield "colours", colour_of(crops(picture, seen.boxes[place][None], judge.side)[0]) == colour
    for i, word, j in scene.relations if searched else ():
        if word in AXES and i in places and j in places:
            yield "relations", right_place(word, seen.boxes[places[i]], seen.boxes[places[j]])
    own = {one.name for one in scene.objects}
    for one in other.objects:
        if one.name in index and one.name not in own:
            yield "named_by_chance", seen.window(index[one.name]) is not None


def scene_figures(
    pictures: Iterable[Tensor],
    scenes: Sequence[Scene],
    judge: CropJudge,
    searched: bool = True,
    watch: Watch = lambda num: None,
) -> Figures:
    """Shares of the things asked for by scenes that are in their pictures, in batches (B, 3, H, W) in [-1, 1].

    named: objects whose name the judge says first of some window; both_named, all_named: scenes of two, and of two or more
    objects, all of which are. Of what is named: colours that are the objects' own, and relations in the plane that hold
    between the windows. count: pictures with as many things standing out as were asked for, of scenes that lie apart.
    named_by_chance: as named, of what the next scene asks for, the judge's false positives. Objects whose names the judge
    does not know are left out, and so is what is in front of what.

    searched: look everywhere, as a text does not say where; otherwise in the scenes' own boxes, for layouts and for real
    pictures, where counts and relations say nothing.
    """
    index = {name: k for k, name in enumerate(judge.names)}
    tallies: dict[str, list[bool]] = {}
    others = [*scenes[1:], *scenes[:1]]
    for picture, scene, other in zip(chain.from_iterable(pictures), scenes, others, strict=True):
        for name, right in answers(judge, index, picture, scene, other, searched):
            tallies.setdefault(name, []).append(right)
        watch(1)
    figures = Figures()
    for name in ("named", "both_named", "all_named", "count", "colours", "relations", "named_by_chance"):
        if name in tallies or name == "named":
            figures.add(name, lambda name=name: share(name, tallies.get(name, [])))
    return figures


def share(name: str, hits: Sequence[bool]) -> Estimate:
    require(len(hits), FEWEST, f"the share of {name}", "its interval would be as wide as all shares")
    return share_estimate(torch.tensor(hits))
