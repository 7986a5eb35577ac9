"""`inkwash bench`: how fast the networks are here, beside diffusers where it is wanted."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from inkwash.cli import options

app = App(
    name="bench", help="Measure the speed of this machine, with random weights of a family's full size."
)
WORKER = Path(__file__).parents[1] / "bench" / "worker.py"
LONG = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@Parameter(name="*")
@dataclass(frozen=True)
class Settings:
    """Options that every measurement takes."""

    family: Annotated[Literal["sd1", "sd2", "sdxl", "mini"], Parameter(help="Whose networks.")] = "sd1"
    size: Annotated[int, Parameter(converter=options.whole, help="Pixels a side, a multiple of 64.")] = 512
    batch: Annotated[int, Parameter(converter=options.whole, help="Pictures at once.")] = 1
    steps: Annotated[int, Parameter(converter=options.whole, help="Of a picture.")] = 20
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Parameter(help="Of all networks.")] = "bf16"
    device: Annotated[str, Parameter(help="Such as cpu or cuda.")] = "cpu"
    compile: Annotated[bool, Parameter(negative="", help="Both sides by torch.compile.")] = False
    threads: Annotated[int | None, Parameter(converter=options.whole, help="Default: one for each core.")] = (
        None
    )
    runs: Annotated[int, Parameter(converter=options.whole, help="Of each, after one that warms up.")] = 3
    peer: Annotated[
        Literal["diffusers", "diffusers-compiled", "openvino"] | None,
        Parameter(help="Measured in turn with ours; the last two for unet and vae."),
    ] = None
    error: Annotated[bool, Parameter(negative="", help="Also how far results are from float32.")] = False
    as_json: options.AsJson = False


DEFAULTS = Settings()


@app.command
def unet(*, settings: Settings = DEFAULTS) -> None:
    """One guided call of the U-Net: twice the batch."""
    report("unet", settings)


@app.command
def control(*, settings: Settings = DEFAULTS) -> None:
    """One guided call of the U-Net with a ControlNet, after the first."""
    report("control", settings)


@app.command
def vae(what: Literal["decode", "encode"] = "decode", /, *, settings: Settings = DEFAULTS) -> None:
    """The first stage, one way."""
    report(what, settings)


@app.command
def text(*, settings: Settings = DEFAULTS) -> None:
    """The text encoders: a prompt and its negative."""
    report("text", settings)


@app.command
def lora(*, settings: Settings = DEFAULTS) -> None:
    """A training step of a LoRA of rank 8 on the U-Net's attention; the peer is diffusers with peft."""
    report("lora", settings)


@app.command
def picture(*, settings: Settings = DEFAULTS) -> None:
    """A whole picture by DPM-Solver++(2M) with guidance, the model open."""
    report("picture", settings)


@app.command
def startup(*, settings: Settings = DEFAULTS) -> None:
    """Measure the time from the start of a process to the end of its picture's first step."""
    report("startup", settings)


@app.command
def kernels(*, runs: Annotated[int, Parameter(converter=options.whole)] = 5) -> None:
    """Each kernel beside its twin in plain torch, on SD1's shapes at 512x512."""
    from inkwash.bench.kernels import table

    print("\n".join(table(runs)))


def report(task: str, settings: Settings) -> None:
    """Measure, and print one line or one JSON object."""
    if settings.size % 64 or min(settings.size, settings.batch, settings.steps, settings.runs) < 1:
        raise options.usage_error(
            "--size is a multiple of 64, and --batch, --steps and --runs are at least 1"
        )
    if settings.error and task not in ("unet", "decode", "encode"):
        raise options.usage_error(f"--error is of one network's call; {task} has none")
    if settings.peer not in (None, "diffusers") and task not in ("unet", "decode", "encode"):
        raise options.usage_error(
            f"--peer {settings.peer} runs one network, and {task} is more; give diffusers"
        )
    if settings.peer and find_spec(package := settings.peer.split("-")[0]) is None:
        raise options.usage_error(
            f"--peer {settings.peer} needs the package {package}: pip install {package}"
        )
    if settings.device != "cpu":
        check_device(settings.device)
    with tempfile.TemporaryDirectory() as scratch:
        made = measured(task, settings, Path(scratch))
    if settings.as_json:
        print(json.dumps(made, indent=1))
        return
    print(
        f"{task} {settings.family} {settings.size}x{settings.size} {settings.dtype}: {made['ours_s']:.3f} s",
        end="",
    )
    if settings.peer:
        print(f", {settings.peer} {made['peer_s']:.3f} s, ratio {made['ratio']:.2f}", end="")
    print(f", peak {made['peak_bytes'] / 2**30:.2f} GiB")


def check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch was not built for fails an assertion
        raise options.usage_error(f"--device {device} can't be used: {str(error).splitlines()[0]}") from error


def measured(task: str, settings: Settings, scratch: Path) -> dict[str, Any]:
    """Medians of the sides, which take turns, so that a slower minute hits both."""
    sides = ["inkwash"] + ([settings.peer] if settings.peer else [])
    folder = model_folder(settings, scratch)
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    if task == "startup":
        for _ in range(settings.runs + 1):  # the first one brings the files into memory
            for side in sides:
                begin = time.perf_counter()
                with Worker(side, task, folder, settings) as worker:
                    said = worker.call()
                    taken[side].append(said | {"seconds": time.perf_counter() - begin})
    else:
        workers = {side: Worker(side, task, folder, settings) for side in sides}
        try:
            for k in range(settings.runs + 1):
                for side, worker in workers.items():
                    where = scratch / f"{side}.safetensors" if settings.error and not k else None
                    taken[side].append(worker.call(where))
        finally:
            for worker in workers.values():
                worker.close()
    for rounds in taken.values():
        del rounds[0]
    median = lambda side, key: statistics.median(one[key] for one in taken[side])  # noqa: E731
    made: dict[str, Any] = {"task": task, "settings": asdict(settings)}
    for who, side in zip(("ours", "peer"), sides, strict=False):
        made |= {
            f"{who}_s": round(median(side, "seconds"), 4),
            f"{who}_cpu_s": round(median(side, "busy"), 4),
        }
        made["peak_bytes" if who == "ours" else "peer_peak_bytes"] = int(
            max(one["peak"] for one in taken[side])
        )
    if settings.peer:
        made["ratio"] = round(made["ours_s"] / made["peer_s"], 3)
        made["cpu_ratio"] = round(made["ours_cpu_s"] / made["peer_cpu_s"], 3)
        made["peak_ratio"] = round(made["peak_bytes"] / made["peer_peak_bytes"], 3)
    if settings.error:
        made |= errors(task, settings, folder, scratch, sides)
    return made | {"machine": machine(settings), "versions": versions(task, settings)}


class Worker:
    """One side in its own process, see worker.py."""

    def __init__(self, side: str, task: str, folder: Path, settings: Settings):
        given = asdict(settings) | {
            "dtype": LONG[settings.dtype],
            "threads": settings.threads or os.cpu_count(),
        }
        command = [sys.executable, WORKER, side, task, folder, json.dumps(given)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True
        )  # its complaints are ours
        self.answer()

    def call(self, result: Path | None = None) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(f"{result or ''}\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def answer(self) -> str:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return line
        raise options.file_error(f"the measured process ended with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def model_folder(settings: Settings, scratch: Path) -> Path:
    """`mini`, or a folder of random weights of the family's size, in the layout that both sides read."""
    from inkwash.bench.random_model import write_random
    from inkwash.weights.bytes.paths import model_path

    if settings.family == "mini":
        return model_path("mini")
    write_random(settings.family, LONG[settings.dtype], scratch / settings.family)
    return scratch / settings.family


def errors(task: str, settings: Settings, folder: Path, scratch: Path, sides: list[str]) -> dict[str, float]:
    """The relative distance of each side's result from ours in float32 without kernels."""
    from safetensors.torch import load_file

    before = os.environ.get("INKWASH_KERNELS")
    os.environ["INKWASH_KERNELS"] = "0"
    try:
        with Worker("inkwash", task, folder, replace(settings, dtype="fp32", compile=False)) as worker:
            worker.call(scratch / "exact.safetensors")
    finally:
        del os.environ["INKWASH_KERNELS"]
        if before is not None:
            os.environ["INKWASH_KERNELS"] = before
    exact, *made = (load_file(scratch / f"{name}.safetensors")["made"].float() for name in ("exact", *sides))
    names = ("ours_error", "peer_error")
    return {
        name: round(((one - exact).norm() / exact.norm()).item(), 6)
        for name, one in zip(names, made, strict=False)
    }


def machine(settings: Settings) -> dict[str, Any]:
    from inkwash.kernels.cpu import processor
    from inkwash.kernels.library import load

    gpu = {}
    if settings.device.startswith("cuda"):
        import torch

        gpu = {"gpu": torch.cuda.get_device_name(settings.device)}
    return gpu | {
        "cpu": processor().get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": settings.threads or os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "kernels": load() is not None,
        "system": platform.system(),
    }


def versions(task: str, settings: Settings) -> dict[str, str]:
    packages = ["inkwash", "torch"] + (["diffusers", "transformers"] if settings.peer else [])
    packages += ["peft"] if settings.peer and task == "lora" else []
    packages += ["openvino"] if settings.peer == "openvino" else []
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
