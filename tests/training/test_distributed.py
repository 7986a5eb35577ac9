"""Two processes of a half batch each are one of a whole batch, within rounding."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

OPTIONS = "--steps 3 --lr 1e-1 --no-buckets --log-every 1 --cache none --optimizer sgd"


@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_equal_one(tiny: Path, tmp_path: Path, processes: int) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(8):
        Image.new("RGB", (32, 32), (30 * k, 255 - 30 * k, 90)).save(pictures / f"{k}.png")
    own = ["train", "lora", "--model", str(tiny), "--data", str(pictures), *OPTIONS.split()]
    code = "import sys; from inkwash.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "run.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    for name, before, batch in (("one", [sys.executable], 4), ("many", launch, 4 // processes)):
        output = ["--output", str(tmp_path / name), "--batch-size", str(batch)]
        done = subprocess.run(
            [*before, str(tmp_path / "run.py"), *own, *output], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, many = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "many"))
    for key, value in one.items():
        if key.startswith("modules/"):
            torch.testing.assert_close(many[key], value, rtol=1e-4, atol=1e-6)
