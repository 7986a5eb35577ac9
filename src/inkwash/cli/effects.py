"""Options that every verb that draws takes, and that few pictures need."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

GUIDANCE = Group("Guidance", sort_key=1)
CANVAS = Group("Large and endless pictures", sort_key=2)
MEMORY = Group("Device and memory", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True)
class GuidanceOptions:
    """How the prompt guides; by default --cfg-scale says it alone."""

    cfg_batched: Annotated[
        bool,
        Parameter(group=GUIDANCE, help="Prompt and negative prompt in one call; --no-cfg-batched: in two."),
    ] = True
    cfg_rescale: Annotated[
        float,
        Parameter(group=GUIDANCE, help="0 to 1: how much of the contrast that guidance adds is taken back."),
    ] = 0.0
    guidance_start: Annotated[
        float,
        Parameter(group=GUIDANCE, help="Part of the steps, 0 to 1, before which only the prompt is asked."),
    ] = 0.0
    guidance_end: Annotated[float, Parameter(group=GUIDANCE, help="The same, after which.")] = 1.0
    mimic_scale: Annotated[
        float | None,
        Parameter(
            group=GUIDANCE, help="Dynamic thresholding: no value larger than this --cfg-scale makes it."
        ),
    ] = None
    threshold_percentile: Annotated[
        float, Parameter(group=GUIDANCE, help="Above 0 to 1: what lies above it is clipped by --mimic-scale.")
    ] = 1.0
    perp_neg: Annotated[
        float,
        Parameter(group=GUIDANCE, help="Weight of the negative prompt where it doesn't oppose the prompt."),
    ] = 0.0
    sag_scale: Annotated[
        float, Parameter(group=GUIDANCE, help="Self-attention guidance; 0 is off, 0.75 usual.")
    ] = 0.0
    pag_scale: Annotated[
        float, Parameter(group=GUIDANCE, help="Perturbed-attention guidance; 0 is off, 3 usual.")
    ] = 0.0


@Parameter(name="*")
@dataclass(frozen=True)
class CanvasOptions:
    """How the plane is covered."""

    window: Annotated[
        int | None, Parameter(group=CANVAS, help="Pixels a side that the network sees at once; default: all.")
    ] = None
    window_overlap: Annotated[
        float, Parameter(group=CANVAS, help="0 to 0.95: the part of a window that the next one shares.")
    ] = 0.5
    seamless: Annotated[
        str, Parameter(group=CANVAS, help="none, x, y or both: along which axes opposite edges fit.")
    ] = "none"


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryOptions:
    """How the networks run; no part of a picture's recipe."""

    device: Annotated[str, Parameter(group=MEMORY, help="Where they run: cpu, cuda, cuda:1, mps.")] = "cpu"
    vae_tile: Annotated[
        int | None, Parameter(group=MEMORY, help="Pixels a side that the first stage works on at once.")
    ] = None
    vae_slicing: Annotated[
        bool, Parameter(group=MEMORY, negative="", help="Let the first stage take a batch one by one.")
    ] = False
    offload: Annotated[
        bool, Parameter(group=MEMORY, negative="", help="Keep on --device only the network that works.")
    ] = False
