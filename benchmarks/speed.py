"""The table of speeds beside peers: each row is one `inkwash bench` command, run after the other.

`python benchmarks/speed.py [--rows unet decode] [--threads 2] [--out benchmarks/results/speed-MACHINE.json]`
`python benchmarks/speed.py --device cuda [--out benchmarks/results/speed-GPU.json]`

The peer is diffusers, or its networks compiled by torch, or OpenVINO's, which is to be installed for that.
Random weights of full size, bfloat16, channels_last on both sides, which take turns in processes of their own. The file
is written after each row, and rows that it has are left out, so a stopped run goes on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from inkwash.files import atomic

ROWS = {
    "unet": "unet --error",
    "decode": "vae decode --error",
    "encode": "vae encode --error",
    "text": "text",
    "startup": "startup",
    "control": "control",
    "picture": "picture --runs 1",
    "unet-256": "unet --size 256",
    "unet-768": "unet --size 768 --runs 1",
    "unet-1024": "unet --size 1024 --runs 1",
    "unet-batch-4": "unet --batch 4 --runs 1",
    "sdxl-unet": "unet --family sdxl --size 1024 --runs 1",
    "sdxl-decode": "vae decode --family sdxl --size 1024 --runs 1",
    "lora-step": "lora --size 256",
    "unet-compiled": "unet --peer diffusers-compiled",
    "unet-openvino": "unet --peer openvino",
    "decode-openvino": "vae decode --peer openvino",
}
ON_A_GPU = {  # where calls are short; graphs: both sides by torch.compile
    "unet": "unet --runs 20 --error",
    "unet-graphs": "unet --runs 20 --compile",
    "decode": "vae decode --runs 20 --error",
    "encode": "vae encode --runs 20 --error",
    "text": "text --runs 20",
    "control": "control --runs 20",
    "picture": "picture",
    "startup": "startup",
    "unet-1024": "unet --size 1024 --runs 10",
    "unet-batch-4": "unet --batch 4 --runs 10",
    "sdxl-unet": "unet --family sdxl --size 1024 --runs 10",
    "sdxl-unet-graphs": "unet --family sdxl --size 1024 --runs 10 --compile",
    "sdxl-decode": "vae decode --family sdxl --size 1024 --runs 10",
    "lora-step": "lora --runs 20",
}
app = App(help=__doc__)


@app.default
def main(
    *,
    rows: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    threads: int | None = None,
    device: str = "cpu",
    out: Path = Path("speed.json"),
) -> None:
    """Print and write each row.

    rows: which, by default all that the device has. threads: of the processor, default one for each core.
    """
    known = ROWS if device == "cpu" else ON_A_GPU
    if unknown := set(rows) - set(known):
        raise ValueError(f"rows {sorted(unknown)} are not among {', '.join(known)}")
    made = json.loads(out.read_text()) if out.exists() else {}
    print(f"{'row':16} {'ours s':>9} {'theirs s':>9} {'ratio':>6} {'of cpu':>6} {'of memory':>9}")
    for name in rows or known:
        if name not in made:
            row = known[name] if "--peer" in known[name] else known[name] + " --peer diffusers"
            command = [sys.executable, "-m", "inkwash", "bench", *row.split(), "--json", "--device", device]
            command += ["--threads", str(threads)] if threads else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)  # it has said why
            made[name] = json.loads(done.stdout)
            with atomic(out) as path:
                path.write_text(json.dumps(made, indent=1) + "\n")
        row = made[name]
        numbers = f"{row['ours_s']:9.3f} {row['peer_s']:9.3f} {row['ratio']:6.2f} {row['cpu_ratio']:6.2f}"
        print(f"{name:16} {numbers} {row['peak_ratio']:9.2f}", flush=True)


if __name__ == "__main__":
    app()
