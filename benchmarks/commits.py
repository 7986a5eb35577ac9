"""Start and U-Net steps of an older commit and of the working tree, in processor time.

`python benchmarks/commits.py COMMIT [--runs 5] [--threads 1] [--only help ...] [--out FILE]`

The two take turns, a process each, so that a slower minute hits both; the older one is checked out into a temporary folder.
Processor time, and not seconds, since it depends less on what else the machine does. Compiled modules are kept, as
where a package is installed.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from inkwash.files import write_text

ROOT = Path(__file__).parents[1]
STEPS = """
import sys, time, torch
from inkwash.models.unet import UNet, UNetConfig
torch.manual_seed(0)
name, num, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mini = UNetConfig(channels=192, channel_mult=(1, 2, 2), transformer_depth=(1, 1, 0), context_dim=256)
torch.set_default_dtype(torch.bfloat16 if name == "sd1" else torch.float32)
unet = UNet(mini if name == "mini" else UNetConfig()).eval()
x, t = torch.randn(2, 4, side, side), torch.full((2,), 500)
context = torch.randn(2, 77, unet.config.context_dim)
with torch.inference_mode():
    unet(x, t, context), unet(x, t, context)  # kernels are built, and their ways measured
    begin = time.process_time()
    for _ in range(num):
        unet(x, t, context)
print((time.process_time() - begin) / num)
"""
GENERATE = "-m inkwash generate taxi --steps 1 --seed 1 --output picture.png --model".split()
OLDER = "mini of the older commit"
MEASURES: dict[str, Sequence[str]] = {
    "help": ["-m", "inkwash", "--help"],
    "import": ["-c", "import inkwash"],
    "first picture": [*GENERATE, "mini"],
    "first picture, one model": [*GENERATE, OLDER],  # both open the older commit's
    "step of mini": ["-c", STEPS, "mini", "20", "16"],
    "step of sd1": ["-c", STEPS, "sd1", "1", "32"],
}
app = App(help=__doc__)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def processor_seconds(tree: Path, arguments: Sequence[str], threads: int, scratch: Path) -> float:
    """Processor time of a whole process, or what it prints of its steps."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": str(threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=scratch,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)[:80]} of {tree} ended with code {process.returncode}")
    return float(said) if STEPS in arguments else used.ru_utime + used.ru_stime


@app.default
def main(
    commit: str,
    *,
    runs: int = 5,
    threads: int = 1,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = tuple(MEASURES),
    out: Path | None = None,
) -> None:
    """Measure, and print medians and their ratio, above 1 where the working tree is slower than COMMIT.

    runs: of each, after one that warms up. only: some of the measures, by their names.
    """
    if unknown := set(only) - set(MEASURES):
        raise SystemExit(f"--only {', '.join(unknown)}: not one of {', '.join(MEASURES)}")
    report: dict[str, Any] = {
        "benchmark": "commits",
        "settings": {"commit": commit, "runs": runs, "threads": threads},
        "processor seconds": {},
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load before": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    with checked_out(commit) as tree, tempfile.TemporaryDirectory() as scratch:
        model = next(str(index.parent) for index in tree.glob("src/inkwash/*/mini/model_index.json"))
        for name in only:
            arguments = [model if word is OLDER else word for word in MEASURES[name]]
            rounds = [
                [processor_seconds(one, arguments, threads, Path(scratch)) for one in (tree, ROOT)]
                for _ in range(runs + 1)
            ][1:]
            before, now = (statistics.median(side) for side in zip(*rounds, strict=True))
            ratios = sorted(b / a for a, b in rounds)
            report["processor seconds"][name] = {
                "before": round(before, 4),
                "now": round(now, 4),
                "ratio": round(statistics.median(ratios), 3),
                "ratios from": round(ratios[0], 3),
                "ratios to": round(ratios[-1], 3),
            }
            print(name, report["processor seconds"][name], flush=True)
    if out:
        write_text(out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app()
