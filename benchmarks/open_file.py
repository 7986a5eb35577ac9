"""Time and memory of opening a checkpoint of full size.

`python benchmarks/open_file.py [--family sd1] [--runs 3] [--json]`

Writes a file of the family's size in float16 to a temporary folder, and opens it in new processes, each dtype several
times: seconds of `inkwash.load` alone, the file in the page cache, and what the process's peak memory grew by over
the tensors' size, mapped pages of the file included. Runs on Linux.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from torch import nn

from inkwash.models.tokenizer import Tokenizer
from inkwash.weights.checkpoint import NETWORKS, Checkpoint, Component, TextComponent, Undrawn
from inkwash.weights.families import FAMILIES, Family
from inkwash.weights.models.single import write_single
from inkwash.weights.scheduler import scheduler_json

app = App(help=__doc__)
DTYPES = ("float16", "bfloat16", "float32")
OPEN = """
import json, re, sys, time
from pathlib import Path
import torch
import inkwash.pipeline.api
def peak_memory():  # Linux; getrusage would hand on the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak_memory()
begin = time.perf_counter()
model = inkwash.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - begin
networks = [model.unet, model.autoencoder, *(text.model for text in model.text_encoders)]
size = sum(p.nbytes for network in networks for p in network.parameters())
peak = peak_memory() - before
print(json.dumps({"seconds": seconds, "tensors": size, "peak": peak}))
"""


def component(network: nn.Module) -> Component:
    tensors = {
        name: torch.full(p.shape, 0.01, dtype=torch.float16) for name, p in network.state_dict().items()
    }
    return Component(network.config, tensors)  # pyright: ignore[reportArgumentType]


def write(family: Family, path: Path) -> None:
    with torch.device("meta"), Undrawn():
        make = lambda config: NETWORKS[type(config)](config)  # noqa: E731
        unet, autoencoder = make(family.unet), make(family.autoencoder)
        texts = [make(tower.config) for tower in family.text]
    checkpoint = Checkpoint(
        unet=component(unet),
        autoencoder=component(autoencoder),
        text=tuple(TextComponent(t.config, component(t).tensors, Tokenizer.clip()) for t in texts),
        scheduler=scheduler_json("eps"),
        default_size=family.default_size,
        files=(),
        sizes=family.sizes,
    )
    write_single(checkpoint, path)


@app.default
def main(
    *,
    family: str = "sd1",
    runs: int = 3,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Print medians for each dtype.

    as_json: one JSON object in place of the table.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{family}.safetensors"
        write(FAMILIES[family], path)
        size = path.stat().st_size
        made: dict[str, dict[str, float]] = {}
        for dtype in DTYPES:
            results = []
            for _ in range(runs + 1):  # the first brings the file into the page cache
                command = [sys.executable, "-c", OPEN, str(path), dtype]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            seconds = statistics.median(result["seconds"] for result in results[1:])
            peak = statistics.median(result["peak"] / result["tensors"] for result in results[1:])
            made[dtype] = {"seconds": round(seconds, 2), "peak over tensors": round(peak, 2)}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {"benchmark": "open_file", "family": family, "bytes": size, "runs": runs, "dtypes": made}
    if as_json:
        print(json.dumps(report | {"machine": machine, "torch": torch.__version__}, indent=1))
        return
    for dtype, values in made.items():
        print(
            f"{dtype:<10} {values['seconds']:6.2f} s, peak {values['peak over tensors']:.2f} times the tensors"
        )


if __name__ == "__main__":
    app()
