"""Laws of all methods of training: a run that is killed ends as one that was not, bit for bit; a damaged state falls back to
the one before; a GPU's losses are the CPU's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from inkwash.models.autoencoder import AutoencoderVQ
from inkwash.models.tokenizer import Tokenizer
from inkwash.training.clip_run import new_clip
from inkwash.training.methods import METHODS as ALL
from inkwash.training.run import trained
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.clip_folder import write_clip
from inkwash.weights.models.component import write_component
from tests.models.test_unet import randomise
from tests.weights.test_zoo import VQ

ROOT = Path(__file__).parents[2]
# Forks, so that a run begins without seconds of imports; the first process computes nothing itself.
HARNESS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from inkwash.training.run import trained
from inkwash.weights.families import FAMILIES

method, options, folder, kills, seed = json.loads(sys.argv[1])
folder, rng = Path(folder), random.Random(seed)
if "design" in options and options["design"].split("-")[0] in ("ddpm", "ldm"):  # at a small size
    from tests.training.test_network_methods import DESIGNS
    FAMILIES |= DESIGNS

def begin():
    if pid := os.fork():
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    code = 1
    try:
        trained(method, **options, output=str(folder / "run"))
        code = 0
    finally:
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

start = time.monotonic()
assert end(begin()) == 0
took = time.monotonic() - start
(folder / "run").rename(folder / "whole")
k = 0
while k < kills:
    died = 0
    while True:
        pid = begin()
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
    if died:
        (folder / "run").rename(folder / f"killed-{k}")
        k += 1
        print(died)
    else:  # the first one took longer, on a machine that was busy
        took *= 0.8
        shutil.rmtree(folder / "run")
"""
SMALL_CLIP = {"width": 16, "layers": 1, "vision_width": 16, "vision_layers": 1, "head_width": 8, "patch": 8,
              "resolution": 16, "tokenizer": "mini"}  # fmt: skip
SMALL_DISC = {"disc_start": 3, "disc_width": 8, "disc_layers": 1}
WORDS = {"model": "TINY"}
METHODS = {  # by the method's name, and after a comma another form of it; words in capitals are files that the test makes
    "lora": WORDS | {"text_lr": 1e-3, "ema": 0.9},
    "text-to-image": WORDS | {"optimizer": "muon", "accumulation": 2, "layout": "diffusers"},
    "text-to-image, spread": WORDS | {"parallel": "fsdp", "ema": 0.9},
    "dreambooth": WORDS | {"instance_prompt": "a sks disc", "class_prompt": "a disc", "class_pictures": 2,
                           "sample_steps": 1},
    "distill": WORDS | {"objective": "consistency"},
    "distill, critic": WORDS | {"objective": "dmd", "critic_steps": 2},
    "textual-inversion": WORDS | {"token": "sks", "template": "object"},
    "hypernetwork": WORDS,
    "inpainting": WORDS | {"layout": "diffusers"},
    "controlnet": WORDS,
    "t2i-adapter": WORDS | {"hint": "canny"},
    "lllite": WORDS | {"hint": "canny"},
    "ip-adapter": WORDS | {"encoder": "EYE", "picture_dropout": 0.5},
    "depth": WORDS | {"layout": "diffusers"},
    "instruct": WORDS | {"layout": "diffusers"},
    "upscaler": WORDS | {"layout": "diffusers"},
    "unconditional": {"design": "ddpm-cifar10", "resolution": 16, "noise_schedule": "cosine", "ema": 0.5},
    "class": WORDS | {"layout": "diffusers"},
    "layout": WORDS | {"layout": "single"},
    "semantic": {"design": "ldm-semantic", "first_stage": "STAGE"},
    "autoencoder": {"design": "vq-f4", "width": 8, "res_blocks": 1, "codebook_size": 16, "resolution": 16} | SMALL_DISC,
    "tiny-autoencoder": {"model": "mini", "resolution": 64, "width": 8} | SMALL_DISC,
    "clip": SMALL_CLIP | {"projection": 8},
    "prior": {"clip": "CLIP", "layers": 1, "heads": 2, "head_width": 8},
}  # fmt: skip
IN_GATE = ("lora", "autoencoder", "controlnet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders of two classes, with captions, boxes, maps of labels, depths, hints and earlier pictures."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for k, colour in enumerate(("red", "green", "blue", "black")):
        kind = ("disc", "square")[k % 2]
        image, labels = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 1)
        for one, fill in ((image, colour), (labels, 3)):
            draw = ImageDraw.Draw(one)
            (draw.ellipse if kind == "disc" else draw.rectangle)((4 + k, 4, 24, 24 + k), fill)
        turned = image.convert("L").convert("RGB").rotate(90)
        roles = {"labels": labels, "depth": turned, "before": turned, "hint": turned}
        for place, one in {kind: image, **roles}.items():
            (folder / place).mkdir(exist_ok=True)
            one.save(folder / place / f"{k}.png")
        rows.append({"file_name": f"{kind}/{k}.png", "text": f"a {colour} {kind}", "boxes": ["0.1,0.1,0.8,0.8=1"]}
                    | {role: f"{role}/{k}.png" for role in roles})  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def files(pictures: Path, tiny: Path, eye: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks that methods need, by the words of METHODS."""
    folder = tmp_path_factory.mktemp("networks")
    stage = AutoencoderVQ(VQ)
    randomise(stage)
    write_component(Component(VQ, stage.state_dict()), folder / "stage", "diffusers")
    config = ALL["clip"].config.model_validate(SMALL_CLIP | {"projection": 16, "data": "x", "output": "x"})
    tokenizer = Tokenizer([])
    towers = new_clip(config, tokenizer)  # type: ignore[arg-type]
    write_clip(folder / "clip", towers.config, towers.state_dict(), tokenizer)
    return {"TINY": tiny, "EYE": eye, "STAGE": folder / "stage", "CLIP": folder / "clip"}


def options(method: str, pictures: Path, files: dict[str, Path]) -> dict[str, object]:
    own = {
        key: str(files[value]) if value in ("TINY", "EYE", "STAGE", "CLIP") else value
        for key, value in METHODS[method].items()
    }
    return {"data": str(pictures), "buckets": False, "steps": 6, "save_every": 1, "log_every": 1, "lr": 1e-3,
            "batch_size": 2, "threads": 1} | own  # fmt: skip


def test_every_method_is_killed() -> None:
    assert {name.partition(",")[0] for name in METHODS} == ALL.keys()


def kill_and_compare(method: str, kills: int, pictures: Path, files: dict[str, Path], folder: Path) -> None:
    given = json.dumps(
        [method.partition(",")[0], options(method, pictures, files), str(folder), kills, method]
    )
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, given], capture_output=True, text=True, timeout=3000, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole = folder / "whole"
    wanted = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    for k in range(kills):
        killed = folder / f"killed-{k}"
        found = {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
        assert found == wanted, f"kill {k}: {found ^ wanted}"
        for name in wanted:
            if len(name.parts) > 1 and name.parts[0].startswith(
                "state"
            ):  # shards, whose headers have no order
                same_tensors(killed / name, whole / name)
            elif (
                name.suffix != ".pt"
            ):  # whose archive holds the name that it was written by; the state has its tensors
                assert (killed / name).read_bytes() == (whole / name).read_bytes(), f"kill {k}: {name}"
    assert len(done.stdout.split()) == kills


def same_tensors(one: Path, other: Path) -> None:
    """Equal bits in two shards of a state; what is said about them holds their checksums."""
    if one.suffix == ".safetensors":
        a, b = load_file(one), load_file(other)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), one


@pytest.mark.parametrize("method", IN_GATE)
def test_a_killed_run_ends_as_one_that_was_not(
    method: str, pictures: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    kill_and_compare(method, 1, pictures, files, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_fifty_killed_runs_do(method: str, pictures: Path, files: dict[str, Path], tmp_path: Path) -> None:
    kill_and_compare(method, 50, pictures, files, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [name for name in METHODS if "spread" not in name])
def test_a_gpus_losses_are_the_cpus(
    method: str, precision: str, pictures: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    logs = []
    for device, computed in (("cpu", "fp32"), ("cuda", precision)):
        own = options(method, pictures, files) | {"device": device, "precision": computed}
        trained(method.partition(",")[0], **own, output=str(tmp_path / device))
        logs.append([json.loads(line) for line in (tmp_path / device / "log.jsonl").read_text().splitlines()])
    # cuDNN's convolutions round float32 to TF32
    near = {"rel": 0.02, "abs": 0.005} if precision == "fp32" else {"rel": 0.2, "abs": 0.05}
    assert len(logs[0]) == len(logs[1])
    for cpu, gpu in zip(*logs, strict=True):
        assert gpu == pytest.approx(cpu, **near)


@pytest.mark.parametrize("num", [4, pytest.param(40, marks=pytest.mark.full)])
def test_a_damaged_state_falls_back(
    num: int, pictures: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A LoRA's newest state cut, with a flipped bit, empty or missing: it ends as the run without damage, and says so."""
    own, random = options("lora", pictures, {"TINY": tiny}), Random(3)
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
        assert "trying the state before it" in caplog.text
        for name in ("state.safetensors", "run.safetensors", "log.jsonl"):
            assert (folder / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes(), (
                f"{k}: {name}"
            )
        shutil.rmtree(folder)
