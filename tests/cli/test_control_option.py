"""Controls on the command line: drawn, drawn again, and refused in one line."""

from pathlib import Path

import pytest
from PIL import Image

import inkwash
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from tests.support.small_controls import picture, write_controlnet
from tests.support.tiny_models import drawn_at_random


@pytest.fixture(scope="module")
def net(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = drawn_at_random(ControlNet(ControlNetConfig(inkwash.load(tiny).unet.config)))
    return write_controlnet(network, tmp_path_factory.mktemp("nets") / "net.safetensors")


DRAWN = ("--steps", 2, "--seed", 1)


def test_drawn_and_drawn_again(run, tiny: Path, net: Path) -> None:
    picture().save("hint.png")
    picture(1).convert("L").save("mask.png")
    for i, control in enumerate((f"{net}=hint.png:0.8:0-0.5", f"{net}=hint.png:mode=control:mask=mask.png")):
        done = run("generate", "a", "--model", tiny, *DRAWN, "--control", control, "--output", f"{i}.png")
        assert (done.code, done.err) == (0, "")
        again = ("replay", f"{i}.png", "--model", tiny, "--output", "again.png")
        assert (
            f"{i}.png was made with the control net.safetensors; give its path by --control"
            in run(*again).err
        )
        done = run(*again, "--control", net)
        assert (done.code, done.err) == (0, "")
        assert Path("again.png").read_bytes() == Path(f"{i}.png").read_bytes()
    assert Path("0.png").read_bytes() != Path("1.png").read_bytes()
    Path("hint.png").rename("moved.png")
    assert "made from the control-0 hint.png" in run(*again, "--control", net).err
    assert run(*again, "--control", f"{net}=moved.png").code == 0
    picture(2).save("moved.png")
    assert "this control-0 is not the one" in run(*again, "--control", f"{net}=moved.png").err


def test_a_picture_to_edit_is_its_own_hint(run, tiny: Path, net: Path) -> None:
    picture().save("in.png")
    assert (
        run("edit", "in.png", "a", "--model", tiny, *DRAWN, "--control", net, "--output", "a.png").code == 0
    )
    full = ("--control", f"{net}=in.png", "--output", "b.png")
    assert run("edit", "in.png", "a", "--model", tiny, *DRAWN, *full).code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


@pytest.mark.parametrize(
    ("control", "code", "message"),
    [
        ("{net}=hint.png:nan", 2, "--control weight 'nan' is not a finite number"),
        ("{net}=hint.png:3", 2, "--control weight '3' is too large; the most is 2"),
        ("{net}=hint.png:0.5-0.2", 2, "--control: end 0.2 of net.safetensors is not after start 0.5"),
        (
            "{net}=hint.png:mode=most",
            2,
            "--control mode 'most' is not one of 'balanced', 'prompt', 'control' or",
        ),
        ("{net}=none.png", 1, "none.png is not a readable picture"),
        ("{net}", 1, "the control net.safetensors has no picture; write"),
        (
            "{net}=hint.png:type=depth",
            1,
            "net.safetensors is not a ControlNet union, so it takes no type=depth",
        ),
        ("none.pth=hint.png", 1, "there is no model 'none.pth'"),
        (
            "=hint.png",
            2,
            "--control: '=hint.png' is not a control; it is written FILE=IMAGE[:WEIGHT[:START-END]]",
        ),
    ],
)
def test_refused_in_one_line(run, tiny: Path, net: Path, control: str, code: int, message: str) -> None:
    picture().save("hint.png")
    done = run("generate", "a", "--model", tiny, *DRAWN, "--control", control.format(net=net))
    assert done.code == code and message in done.err and done.err.count("\n") == 1
