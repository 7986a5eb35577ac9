"""A run that is killed at any time ends as one that was not, bit for bit; a damaged state falls back to the one before."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from inkwash.training.run import trained

# Forks, so that a run begins without seconds of imports; the first process computes nothing itself.
HARNESS = """
import json, os, random, signal, sys, time
from pathlib import Path
from inkwash.training.run import trained

method, options, folder, kills, seed = json.loads(sys.argv[1])
folder, rng = Path(folder), random.Random(seed)

def begin(name):
    if pid := os.fork():
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    code = 1
    try:
        trained(method, **options, output=str(folder / name))
        code = 0
    finally:
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

start = time.monotonic()
assert end(begin("whole/run")) == 0
took = time.monotonic() - start
for k in range(kills):
    name, died = f"killed-{k}/run", 0
    while True:
        pid = begin(name)
        if died < 3:  # and then let it end
            time.sleep(rng.random() * took)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        code = end(pid)
        died += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), code
        if code == 0:
            break
    print(died)
"""
METHODS = {
    "lora": {"text_lr": 1e-3, "ema": 0.9},
    "text-to-image": {"optimizer": "muon", "accumulation": 2, "layout": "diffusers"},
    "text-to-image, spread": {"parallel": "fsdp", "ema": 0.9},
    "dreambooth": {"instance_prompt": "a sks disc", "class_prompt": "a disc", "class_pictures": 2, "sample_steps": 1},
    "textual-inversion": {"token": "sks", "template": "object"},
    "hypernetwork": {},
    "inpainting": {"layout": "diffusers"},
    "autoencoder": {"design": "vq-f4", "width": 8, "res_blocks": 1, "codebook_size": 16, "disc_start": 3, "disc_width": 8,
                    "disc_layers": 1, "resolution": 16},
    "clip": {"width": 16, "layers": 1, "vision_width": 16, "vision_layers": 1, "head_width": 8, "patch": 8, "projection": 8,
             "resolution": 16, "tokenizer": "mini"},
}  # fmt: skip
IN_GATE = ("lora", "autoencoder")


def options(method: str, pictures: Path, tiny: Path) -> dict[str, object]:
    own: dict[str, object] = {"data": str(pictures), "buckets": False, "steps": 6, "save_every": 1, "log_every": 1,
                              "lr": 1e-3, "batch_size": 2, "threads": 1}  # fmt: skip
    with_model = method not in ("autoencoder", "clip")
    return own | METHODS[method] | ({"model": str(tiny)} if with_model else {})


def kill_and_compare(method: str, kills: int, pictures: Path, tiny: Path, folder: Path) -> None:
    given = json.dumps(
        [method.partition(",")[0], options(method, pictures, tiny), str(folder), kills, method]
    )
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, given], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole = folder / "whole/run"
    wanted = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    for k in range(kills):
        killed = folder / f"killed-{k}/run"
        found = {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
        assert found == wanted, f"kill {k}: {found ^ wanted}"
        for name in wanted:
            if name.suffix not in (".pt",) and name.name != "config.json":  # a .pt holds its own name
                if len(name.parts) > 1 and name.parts[0].startswith(
                    "state"
                ):  # shards, whose headers have no order
                    same_tensors(killed / name, whole / name)
                    continue
                assert (killed / name).read_bytes() == (whole / name).read_bytes(), f"kill {k}: {name}"
    assert sum(map(int, done.stdout.split())) >= kills  # of three tries each


def same_tensors(one: Path, other: Path) -> None:
    """Equal bits in two shards of a state; what is said about them holds their checksums."""
    if one.suffix == ".safetensors":
        a, b = load_file(one), load_file(other)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), one


@pytest.mark.parametrize("method", IN_GATE)
def test_a_killed_run_ends_as_one_that_was_not(
    method: str, pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    kill_and_compare(method, 1, pictures, tiny, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_fifty_killed_runs_do(method: str, pictures: Path, tiny: Path, tmp_path: Path) -> None:
    kill_and_compare(method, 50, pictures, tiny, tmp_path)


@pytest.mark.parametrize("num", [4, pytest.param(40, marks=pytest.mark.full)])
def test_a_damaged_state_falls_back(
    num: int, pictures: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A LoRA's newest state cut, with a flipped bit, empty or missing: it ends as the run without damage, and says so."""
    own, random = options("lora", pictures, tiny), Random(3)
    trained("lora", output=str(tmp_path / "whole/run"), **own)
    trained("lora", output=str(tmp_path / "half/run"), **own | {"steps": 4})
    for k in range(num):
        caplog.clear()
        folder = tmp_path / f"{k}/run"
        shutil.copytree(tmp_path / "half/run", folder)
        state = folder / "state.safetensors"
        content = bytearray(state.read_bytes())
        if k % 4 == 0:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        elif k % 4 == 1:
            del content[random.randrange(len(content)) :]
        elif k % 4 == 2:
            at = random.randrange(len(content) - 64)
            content[at : at + 64] = random.randbytes(64)
        state.write_bytes(content)
        if k % 4 == 3:
            state.unlink()
        trained("lora", output=str(folder), **own)
        assert k % 4 == 3 or "trying the state before it" in caplog.text
        for name in ("state.safetensors", "run.safetensors", "log.jsonl"):
            assert (folder / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes(), (
                f"{k}: {name}"
            )
        shutil.rmtree(folder)
