"""Time to a picture: inkwash and diffusers on one folder, in one run.

`python benchmarks/mini_startup.py [--model FOLDER] [--steps 20] [--runs 3] [--json]`

Four times, each a median: `inkwash --help`; a whole process from its start to the picture's file; a picture of a
model that is loaded; loading. Both draw with DPM-Solver++(2M) and classifier-free guidance in float32, on the CPU.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import transformers
from cyclopts import App, Parameter
from diffusers import (
    DPMSolverMultistepScheduler,  # pyright: ignore[reportPrivateImportUsage]
    StableDiffusionPipeline,  # pyright: ignore[reportPrivateImportUsage]
)

import inkwash
from inkwash.weights.bytes.paths import model_path

PROMPT, CFG_SCALE, SEED = "a red taxi, noto style", 5.0, 7
# as their documentation says, so that it could be a user's script
THEIRS = """
import sys, torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
folder, prompt, steps, cfg_scale, seed, size, path = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
generator = torch.Generator().manual_seed(int(seed))
image = pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(cfg_scale), generator=generator,
             width=int(size), height=int(size)).images[0]
image.save(path)
"""
Seconds = dict[str, list[float]]
app = App(help=__doc__)


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def process(*command: object) -> Callable[[], Any]:
    return lambda: subprocess.run([str(part) for part in command], check=True, capture_output=True)


def load_theirs(folder: Path) -> Any:
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(folder: Path, steps: int, size: int, runs: int, scratch: Path) -> dict[str, Seconds]:
    """Seconds of each run; the two take turns, so that a slower minute hits both. One run before them warms up."""
    script = scratch / "theirs.py"
    script.write_text(THEIRS)
    inkwash_command = Path(sys.executable).parent / "inkwash"
    ours, theirs = inkwash.load(folder), load_theirs(folder)
    options = f"--steps {steps} --cfg-scale {CFG_SCALE} --seed {SEED} --width {size} --height {size}".split()
    generate = [inkwash_command, "generate", PROMPT, *options, "--model", folder]
    calls: dict[str, dict[str, Callable[[], Any]]] = {
        "help": {"inkwash": process(inkwash_command, "--help")},
        "process start to picture": {
            "inkwash": process(*generate, "--output", scratch / "ours.png"),
            "diffusers": process(
                sys.executable, script, folder, PROMPT, steps, CFG_SCALE, SEED, size, scratch / "theirs.png"
            ),
        },
        "load": {"inkwash": lambda: inkwash.load(folder), "diffusers": lambda: load_theirs(folder)},
        "picture, once loaded": {
            "inkwash": lambda: ours.text_to_image(
                PROMPT, steps=steps, cfg_scale=CFG_SCALE, seed=SEED, width=size, height=size
            ),
            "diffusers": lambda: theirs(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=CFG_SCALE,
                generator=torch.Generator().manual_seed(SEED),
                width=size,
                height=size,
            ),
        },
    }
    taken: dict[str, Seconds] = {}
    for what, each in calls.items():
        rounds = [{who: seconds(call) for who, call in each.items()} for _ in range(runs + 1)][1:]
        taken[what] = {who: [one[who] for one in rounds] for who in each}
    return taken


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "system": platform.system(),
    }


@app.default
def main(
    *,
    model: str = "mini",
    steps: int = 20,
    size: int = 128,
    runs: int = 3,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure, and print the medians, their ratio, the machine and the versions.

    model: `mini`, or a folder in the diffusers layout. size: pixels a side. runs: of each, after one that warms
    up. as_json: one JSON object instead of the table.
    """
    if runs < 1:
        raise ValueError(f"runs {runs} is less than 1")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    where = machine()
    with tempfile.TemporaryDirectory() as scratch:
        taken = measure(model_path(model), steps, size, runs, Path(scratch))
    medians = {
        what: {who: round(statistics.median(some), 3) for who, some in sides.items()}
        for what, sides in taken.items()
    }
    for sides in medians.values():
        if "diffusers" in sides:
            sides["ratio"] = round(sides["diffusers"] / sides["inkwash"], 2)
    packages = ("inkwash", "torch", "diffusers", "transformers")
    report = {
        "benchmark": "mini_startup",
        "settings": {"model": model, "steps": steps, "size": size, "runs": runs},
        "seconds": medians,
        "machine": where,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(f"{'seconds, medians':26} {'inkwash':>9} {'diffusers':>10} {'ratio':>6}")
    for what, sides in medians.items():
        print(
            f"{what:26} {sides['inkwash']:9.3f} {sides.get('diffusers', ''):>10} {sides.get('ratio', ''):>6}"
        )
    for title in ("settings", "machine", "versions"):
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in report[title].items()))


if __name__ == "__main__":
    app()
