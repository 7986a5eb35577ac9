"""The table of speeds beside peers: each row is one `inkwash bench` command, run after the other.

`python benchmarks/speed.py [--rows unet decode] [--threads 2] [--out benchmarks/results/speed-MACHINE.json]`

The peer is diffusers, or its networks compiled by torch, or OpenVINO's, which is to be installed for that.
Random weights of full size, bfloat16, channels_last on both sides, which take turns in processes of their own. The file
is written after each row, and rows that it has are left out, so a stopped run goes on.
"""

import json
import subprocess
import sys
from pathlib import Path

from cyclopts import App

from inkwash.weights.files import atomic

ROWS = {
    "unet": "unet --error",
    "decode": "vae decode --error",
    "encode": "vae encode --error",
    "text": "text",
    "startup": "startup",
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
app = App(help=__doc__)


@app.default
def main(
    *, rows: tuple[str, ...] = tuple(ROWS), threads: int | None = None, out: Path = Path("speed.json")
) -> None:
    """Print and write each row. rows: which, of those above. threads: default one for each core."""
    if unknown := set(rows) - set(ROWS):
        raise ValueError(f"rows {sorted(unknown)} are not among {', '.join(ROWS)}")
    made = json.loads(out.read_text()) if out.exists() else {}
    print(f"{'row':14} {'ours s':>9} {'theirs s':>9} {'ratio':>6} {'of cpu':>6} {'of memory':>9}")
    for name in rows:
        if name not in made:
            row = ROWS[name] if "--peer" in ROWS[name] else ROWS[name] + " --peer diffusers"
            command = [sys.executable, "-m", "inkwash", "bench", *row.split(), "--json"]
            command += ["--threads", str(threads)] if threads else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            made[name] = json.loads(done.stdout)
            with atomic(out) as path:
                path.write_text(json.dumps(made, indent=1) + "\n")
        row = made[name]
        numbers = f"{row['ours_s']:9.3f} {row['peer_s']:9.3f} {row['ratio']:6.2f} {row['cpu_ratio']:6.2f}"
        print(f"{name:14} {numbers} {row['peak_ratio']:9.2f}", flush=True)


if __name__ == "__main__":
    app()
