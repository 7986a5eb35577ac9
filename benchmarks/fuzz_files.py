"""Broken files of tensors, by the hundred thousand: none may crash, hang or raise anything but ModelFileError.

`python benchmarks/fuzz_files.py [--safetensors 200000] [--torch 50000] [--seed 0]`

Prints, for each kind, how many were opened and refused, the slowest file, and by how much memory grew at its highest.
"""

import resource
import sys
import tempfile
from itertools import islice
from pathlib import Path
from random import Random

from cyclopts import App

sys.path.insert(0, str(Path(__file__).parents[1]))  # the mutators are the tests'

from tests.support.mutators import read_all, safetensors_mutants, torch_mutants

app = App(help=__doc__)


def peak() -> float:
    """The most memory that this process has had, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@app.default
def main(*, safetensors: int = 200_000, torch: int = 50_000, seed: int = 0) -> None:
    kinds = {"safetensors": (safetensors_mutants, safetensors), "torch": (torch_mutants, torch)}
    with tempfile.TemporaryDirectory() as folder:
        for name, (mutants, num) in kinds.items():
            before = peak()
            tally = read_all(islice(mutants(Random(seed)), num), Path(folder) / "model.bin")
            print(
                f"{name}: {tally.opened:,} opened, {tally.refused:,} refused, slowest {1000 * tally.slowest:.1f} ms, "
                f"memory {peak():.0f} MB, {peak() - before:.0f} more than before"
            )


if __name__ == "__main__":
    app()
