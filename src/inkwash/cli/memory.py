"""How the networks run: options that are no part of a picture's recipe."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from inkwash.cli.converters import GROUPS, whole

MEMORY = GROUPS["Device and memory"]


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryOptions:
    """How the networks run; no part of a picture's recipe."""

    device: Annotated[
        str, Parameter(group=MEMORY, help="Device that the networks run on: cpu, cuda, cuda:1, mps.")
    ] = "cpu"
    vae_tile: Annotated[
        int | None,
        Parameter(
            converter=whole,
            group=MEMORY,
            help="Side in pixels of the tiles that the autoencoder works on; default: the whole picture.",
        ),
    ] = None
    vae_slicing: Annotated[
        bool,
        Parameter(group=MEMORY, negative="", help="Let the autoencoder take a batch one picture at a time."),
    ] = False
    offload: Annotated[
        bool, Parameter(group=MEMORY, negative="", help="Keep only the network in use on --device.")
    ] = False
