"""Time and memory of merging two checkpoints of full size, beside `cp`.

`python benchmarks/merge.py [--family sdxl] [--runs 3] [--folder DIR] [--out FILE.md]`

Writes two files of the family's size in float16 to a temporary folder, which it removes. Each run copies one of them by
`cp`, the copy flushed to the disk as a merge's result is, and then merges both by a weighted sum twice, each time in a
new process: first with an empty cache of hashes, so that both files are hashed, and then with their hashes known. Both
files are read once before each. Memory is read from /proc while a merge runs: what it holds besides pages of mapped
files; traffic is what the whole disk reads and writes meanwhile. Runs on Linux.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from cyclopts import App
from open_file import write

from inkwash.kernels.cpu import processor
from inkwash.weights.families import FAMILIES
from inkwash.weights.hashes import SETTLED

app = App(help=__doc__)


class Run(NamedTuple):
    """The cost of one merge or copy."""

    seconds: float
    memory: float  # bytes, at most
    traffic: float  # bytes that the disk read and wrote


def watched(files: Sequence[Path], command: list[str], **environment: str) -> Run:
    """Run a command to its end, with files in the page cache. environment: variables besides the usual ones."""
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    begin, before, most = time.perf_counter(), disk_traffic(files[0]), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment) as process:
        while process.poll() is None:
            most = max(most, own_memory(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return Run(time.perf_counter() - begin, most, disk_traffic(files[0]) - before)


def disk_traffic(path: Path) -> int:
    """Bytes that the disk of a file has read and written since the system started; 0 where the system does not say."""
    device = path.stat().st_dev
    found = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    numbers = found.read_text().split() if found.exists() else ["0"] * 7
    return 512 * (int(numbers[2]) + int(numbers[6]))


def own_memory(pid: int) -> float:
    """Bytes that a process has in memory besides mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def row(name: str, copied: list[Run], runs: list[Run]) -> str:
    ratios = [one.seconds / other.seconds for one, other in zip(copied, runs, strict=True)]
    between = f" ({min(ratios):.2f} to {max(ratios):.2f})" if runs is not copied else ""
    seconds, traffic = (
        statistics.median(values) for values in ([r.seconds for r in runs], [r.traffic for r in runs])
    )
    ratio = f"{statistics.median(ratios):.2f}{between}"
    return f"| {name} | {seconds:.1f} | {ratio} | {traffic / 1e9:.1f} | {traffic / 1e9 / seconds:.2f} |"


@app.default
def main(*, family: str = "sdxl", runs: int = 3, folder: Path | None = None, out: Path | None = None) -> None:
    """Print a table of medians. folder: where the temporary one is made. out: a file for the table."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        a, b, c = (Path(temporary) / f"{name}.safetensors" for name in "abc")
        write(FAMILIES[family], a)
        shutil.copyfile(a, b)
        size = a.stat().st_size
        copied, hashing, knowing = [], [], []
        command = [sys.executable, "-m", "inkwash", "merge", str(a), str(b), "-o", str(c)]
        time.sleep(SETTLED)
        for run in range(runs):
            copied.append(watched((a, b), ["sh", "-c", f"cp {a} {c} && sync {c}"]))
            c.unlink()
            for merged in (hashing, knowing):
                merged.append(watched((a, b), command, XDG_CACHE_HOME=f"{temporary}/{run}"))
                c.unlink()
    machine = f"{processor().get('model name', 'unknown processor')}, {os.cpu_count()} cores"
    lines = [
        f"Two {family} checkpoints of {size / 1e9:.2f} GB in float16, `weighted_sum`, {date.today()}, {machine}, "
        f"torch {torch.__version__}; medians of {runs} runs.",
        "",
        "| | seconds | time of `cp` / time | disk traffic, GB | GB/s |",
        "|---|---|---|---|---|",
        row("`cp` and flush", copied, copied),
        row("`inkwash merge`, both files hashed", copied, hashing),
        row("`inkwash merge`, their hashes known", copied, knowing),
        "",
        f"Memory beside mapped files: at most {max(run.memory for run in hashing + knowing) / 1e9:.2f} GB.",
    ]
    print("\n".join(lines))
    if out:
        out.write_text("\n".join(["# Merging beside copying", "", *lines, ""]))


if __name__ == "__main__":
    app()
