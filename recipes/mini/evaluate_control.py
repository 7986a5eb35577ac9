"""Evaluation of `mini`'s ControlNet: agreement of drawn edges with the given ones, measured on held-out captions.

N pictures, S their side, H W latent size.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkwash.adapters.control import open_control
from inkwash.files import write_text
from inkwash.models.controlnet import ControlNet
from recipes.mini.control import HINT, OUT, as_hint, card, edges_of
from recipes.mini.drawing import (
    NUM_PICTURES,
    drawn,
    heldout,
    mean,
    objects,
    overlap,
    places,
    save_sheet,
)
from recipes.mini.evaluate import report
from recipes.mini.labels import Labels
from recipes.mini.parts import open_base
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.scenes import PLAIN
from recipes.mini.tasks import Beside

REACH = 2  # pixels that an edge may be off
SHEET = Path(f"docs/pictures/{HINT}.png")


@contextmanager
def steered(control: ControlNet, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Iterator[dict]:
    """A call of the U-Net with the control's residuals, where there is a hint."""
    hint = cond.pop("hint", None)
    yield cond if hint is None else cond | {"control": control(x, t, hint, cond["context"])}


def edge_overlap(made: Tensor, wanted: Tensor) -> Tensor:
    """F1 (N,) of edges, bool (N, 1, S, S): an edge is right where one of the others is at most REACH pixels away, across
    and down."""

    def found(some: Tensor, among: Tensor) -> Tensor:
        near = F.max_pool2d(among.float(), 2 * REACH + 1, stride=1, padding=REACH) > 0
        return (some & near).sum((1, 2, 3)) / some.sum((1, 2, 3)).clamp_min(1)

    precision, recall = found(made, wanted), found(wanted, made)
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


@torch.inference_mode()
def evaluate(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    out: Path = OUT,
    sheet: Path = SHEET,
    device: str = "cpu",
) -> None:
    """Measure whether pictures of held-out captions have the edges that they are given, beside `start` without control.

    Edge overlap is the F1 of edges within 2 pixels, place overlap the intersection over union of where objects are. Rows of
    the sheet: hints, pictures without control, with it, the real ones, of scenes; then the same of single drawings.
    """
    model = open_base(start, device)
    control = open_control(out, model)
    assert isinstance(control, ControlNet)
    labels = Labels(build / "data", "heldout", model)
    plain = [i for i, r in enumerate(labels.records) if r["kind"] == "scene" and PLAIN in r["caption"]]
    groups = {"scenes": torch.tensor(plain[:NUM_PICTURES]), "drawings": heldout(labels, kind="single")}
    figures, rows_shown = {}, []
    for group, rows in groups.items():
        pixels, captions = labels.pixels(rows), [labels.records[i]["caption"] for i in rows.tolist()]
        edges, true = edges_of(pixels), places(labels, rows).to(device)
        hint = Beside(hint=as_hint(edges))
        made = {
            "without": drawn(model, captions, Beside()),
            "with": drawn(model, captions, hint, around=partial(steered, control)),
            "real": pixels,
        }
        figures[group] = {"pictures": len(rows)} | {
            who: {
                "edge_overlap": mean(edge_overlap(edges_of(x), edges)),
                "place_overlap": mean(overlap(objects(x), true)),
            }
            for who, x in made.items()
        }
        rows_shown += [as_hint(edges) * 2 - 1, *made.values()]
    save_sheet(rows_shown, sheet)
    report(build / HINT / "figures.json", figures)
    done = json.loads((build / HINT / "training.json").read_text())
    write_text(out / "README.md", card(out, start.name, done, figures))
