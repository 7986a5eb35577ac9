"""The commands of the docs' page of systems, each run as it stands, with tiny networks and few steps."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from inkwash.cli import main
from inkwash.models.conditions import ClassConfig, PictureConfig, SemanticConfig
from inkwash.models.unet import UNet
from inkwash.weights.checkpoint import Component
from inkwash.weights.families import DDPM_CIFAR10, FAMILIES, LDM_CIN256, LDM_LAYOUT, LDM_SEMANTIC, LDM_SR
from inkwash.weights.models.convert import read_checkpoint
from inkwash.weights.models.folder import write_folder
from tests.models.test_imagen_unet import FIRST, SECOND
from tests.models.test_unet import randomise
from tests.pipeline import test_imagen as imagen
from tests.pipeline.test_vary import EYE, UNCLIP, seeing
from tests.weights import test_single_files as stable
from tests.weights import test_zoo as zoo

PAGE = Path(__file__).parents[1] / "docs/guide/systems.md"
SYSTEMS = dict(re.findall(r"^## (.+?)\n\n```\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE))
ROWS = [line.split("|")[1].strip() for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][
    1:
]
# what makes a command small, by its first words
TRAINING = "--steps 2 --batch-size 2"
SQUARE = ("clip", "prior")  # which know no buckets
SMALL = {
    "train unconditional": "--resolution 16",
    "train autoencoder": "--resolution 32 --width 32 --res-blocks 1 --codebook-size 16 --disc-weight 0",
    "train clip": "--width 64 --layers 1 --vision-width 16 --vision-layers 1 --head-width 8 --patch 8 --projection 64 "
    "--resolution 16",
    "train prior": "--layers 1 --heads 2 --head-width 8",
    "train lora": "--rank 2 --resolution 32",
    "train distill": "--rank 2 --resolution 32",
    "train text-to-image": "--resolution 32",
    "generate": "--seed 1",
}
UNET = {"ldm-cin256": (64, 24), "ldm-layout": (64, 64), "ldm-semantic": (64, None), "ldm-sr": (64, None)}


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The designs at a small size, under their own names, and the models that are opened."""
    conds = {
        "ldm-cin256": ClassConfig(3, 24),
        "ldm-layout": replace(zoo.BERT, vocab_size=90, max_length=11),
        "ldm-semantic": SemanticConfig(7, 3),
    }
    for family in (LDM_CIN256, LDM_LAYOUT, LDM_SEMANTIC, LDM_SR):
        fields = {"cond_stage": conds[family.name]} if family.name in conds else {}
        monkeypatch.setitem(FAMILIES, family.name, zoo.small(family, *UNET[family.name], **fields))
    monkeypatch.setitem(FAMILIES, "ddpm-cifar10", zoo.small(DDPM_CIFAR10, 32))
    for family in (UNCLIP, *stable.SMALL.values()):
        monkeypatch.setitem(FAMILIES, family.name, family)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, which have captions, boxes and maps of labels."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for k, colour in enumerate(("red", "green", "blue", "black")):
        kind = ("disc", "square")[k % 2]
        for folder in (kind, "maps"):
            (tmp_path / "pictures" / folder).mkdir(parents=True, exist_ok=True)
        image, labels = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 1)
        for one, fill in ((image, colour), (labels, 3)):
            ImageDraw.Draw(one).ellipse((4 + k, 4, 24, 24 + k), fill)
        image.save(tmp_path / f"pictures/{kind}/{k}.png")
        labels.save(tmp_path / f"pictures/maps/{k}.png")
        rows.append({"file_name": f"{kind}/{k}.png", "text": f"a {colour} {kind}", "labels": f"maps/{k}.png",
                     "boxes": ["0,0.125,0.75,0.5=1"]})  # fmt: skip
    (tmp_path / "pictures/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(tmp_path / "pictures/maps/0.png", "map.png")
    Image.open("pictures/disc/0.png").resize((16, 16)).save("small.png")
    shutil.copy("pictures/disc/0.png", "cat.png")
    return tmp_path


def write_model(name: str, folder: Path, tiny: Path) -> None:
    """A tiny model of a kind."""
    if name == "sd15":
        shutil.copytree(tiny, folder)
    elif name == "stable-diffusion-x4-upscaler":
        of = read_checkpoint(tiny)
        unet = UNet(replace(of.unet.config, in_channels=7, num_classes=1000))
        randomise(unet)
        write_folder(replace(of, unet=Component(unet.config, unet.state_dict()), texts={}), folder)
    elif name.startswith("IF-"):
        first = name.startswith("IF-I-")
        write_folder(imagen.checkpoint(FIRST if first else SECOND, 16 if first else 64), folder)
    elif name == "sd21-unclip":
        write_folder(seeing(stable.random_checkpoint(UNCLIP), PictureConfig(EYE)), folder)
    else:
        kind = {"sd_xl_base": "small-sdxl", "sd_xl_refiner": "small-sdxl-refiner"}[name]
        write_folder(stable.random_checkpoint(stable.SMALL[kind]), folder)


def test_every_row_has_its_commands() -> None:
    assert len(SYSTEMS) == len(ROWS) == 7
    for commands in SYSTEMS.values():
        assert "inkwash" in commands and "--output" in commands


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_commands_of_a_system(system: str, here: Path, tiny: Path) -> None:
    for line in SYSTEMS[system].splitlines():
        words = shlex.split(line)
        assert words.pop(0) == "inkwash"
        for name in words:
            if re.fullmatch(r"sd[\w-]+|IF-[\w.-]+|stable-diffusion-[\w-]+", name) and not Path(name).exists():
                write_model(name, here / name, tiny)
        own = [small for begin, small in SMALL.items() if " ".join(words).startswith(begin)]
        more = " ".join([*own, TRAINING if words[0] == "train" else "--steps 2"])
        more += " --no-buckets" if words[0] == "train" and words[1] not in SQUARE else ""
        assert main([*words, *more.split()]) == 0, line
        output = Path(words[words.index("--output") + 1])
        if words[0] == "train":
            assert (output / "log.jsonl").exists(), line
        else:
            image = Image.open(output)
            assert "Steps: 2" in image.info["parameters"] and torch.tensor(image.size).min() >= 16
