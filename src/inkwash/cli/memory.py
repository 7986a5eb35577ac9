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

    device: Annotated[str, Parameter(group=MEMORY, help="Where they run: cpu, cuda, cuda:1, mps.")] = "cpu"
    vae_tile: Annotated[
        int | None,
        Parameter(converter=whole, group=MEMORY, help="Pixels a side that the first stage works on at once."),
    ] = None
    vae_slicing: Annotated[
        bool, Parameter(group=MEMORY, negative="", help="Let the first stage take a batch one by one.")
    ] = False
    offload: Annotated[
        bool, Parameter(group=MEMORY, negative="", help="Keep on --device only the network that works.")
    ] = False
