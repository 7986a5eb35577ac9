"""`inkwash train`: each method learns by the verb, resumes bit-equal, and writes what the other verbs open."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import inkwash
from inkwash.adapters.hypernetwork import prepare_hypernetwork, read_hypernetwork
from inkwash.adapters.low_rank import attach, read_adapter
from inkwash.cli import main
from inkwash.pipeline.controls import Control
from inkwash.training.run import trained

QUICK = {"steps": 4, "lr": 1e-2, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures with captions, and as many of their depth and from before an edit."""
    folder = tmp_path_factory.mktemp("pictures")
    for k, colour in enumerate(("red", "green", "blue", "black")):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((4 + k, 4, 24, 24 + k), colour)
        image.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a {colour} disc, plain")
        for role in ("depth", "before", "hint"):
            (folder / role).mkdir(exist_ok=True)
            image.convert("L").convert("RGB").rotate(90).save(folder / role / f"{k}.png")
    return folder


def options(pictures: Path, tiny: Path, output: Path, **more: object) -> dict[str, object]:
    roles = [f"depth={pictures / 'depth'}", f"before={pictures / 'before'}"]
    own = {"model": str(tiny), "data": str(pictures), "output": str(output), "roles": roles, "buckets": False}
    return QUICK | own | more


METHODS = {
    "lora": {"text_lr": 1e-3, "conv_rank": 2},
    "text-to-image": {"ema": 0.9, "layout": "diffusers", "save_dtype": "fp32"},
    "dreambooth": {
        "instance_prompt": "a sks disc",
        "class_prompt": "a disc",
        "class_pictures": 2,
        "sample_steps": 2,
    },
    "textual-inversion": {"token": "sks", "template": "object", "num_vectors": 2},
    "hypernetwork": {"activation": "relu", "layer_norm": True},
    "controlnet": {"save_dtype": "fp32"},
    "t2i-adapter": {"hint": "canny", "save_dtype": "fp32"},
    "lllite": {"hint": "canny", "save_dtype": "fp32"},
    "ip-adapter": {"save_dtype": "fp32", "picture_dropout": 0.5},
    "inpainting": {"layout": "diffusers"},
    "depth": {"layout": "diffusers"},
    "instruct": {"layout": "diffusers"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_a_stopped_run_goes_on_bit_equal(
    method: str, pictures: Path, tiny: Path, tmp_path: Path, eye: Path
) -> None:
    more = METHODS[method] | ({"encoder": str(eye)} if method == "ip-adapter" else {})
    whole = trained(method, **options(pictures, tiny, tmp_path / "a/run", **more))
    trained(method, **options(pictures, tiny, tmp_path / "b/run", **more | {"steps": 2}))
    again = trained(method, **options(pictures, tiny, tmp_path / "b/run", **more))
    a, b = (load_file(tmp_path / side / "run/state.safetensors") for side in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    lines = [json.loads(line) for line in (tmp_path / "b/run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["error"] > 0 for line in lines)
    assert (tmp_path / "a/run/loss.png").exists()
    assert whole is not None and again is not None
    if whole.is_file():
        assert whole.read_bytes() == again.read_bytes() or whole.suffix == ".pt"  # whose archive holds a name
    model = inkwash.load(tiny)
    before = model.text_to_image("a sks disc", steps=2, seed=1)[0].tobytes()
    if method in ("lora", "dreambooth"):
        with attach(model, read_adapter(whole, model)):
            assert model.text_to_image("a sks disc", steps=2, seed=1)[0].tobytes() != before
    elif method == "textual-inversion":
        named = inkwash.load(tiny, embeddings=whole)
        assert named.text_to_image("a sks disc", steps=2, seed=1)[0].tobytes() != before
    elif method in ("controlnet", "t2i-adapter", "lllite", "ip-adapter"):
        encoder = str(eye) if method == "ip-adapter" else None
        control = Control(file=whole, image=pictures / "0.png", encoder=encoder)
        assert model.text_to_image("a sks disc", steps=2, seed=1, controls=[control])[0].tobytes() != before
    elif method == "hypernetwork":
        with prepare_hypernetwork(model, read_hypernetwork(whole, model)):
            assert model.text_to_image("a sks disc", steps=2, seed=1)[0].tobytes() != before
    else:
        assert inkwash.load(whole).unet.config.in_channels == model.unet.config.in_channels + {
            "text-to-image": 0, "inpainting": 5, "depth": 1, "instruct": 4
        }[method]  # fmt: skip


def test_the_average_is_what_is_written(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    path = trained("lora", **options(pictures, tiny, tmp_path / "run", ema=0.5, save_dtype="fp32"))
    state, written = load_file(tmp_path / "run/state.safetensors"), load_file(path)
    key = next(key for key in state if key.startswith("emas/") and key.endswith("lora_up"))
    assert any(
        value.shape == state[key].shape and torch.equal(value, state[key]) for value in written.values()
    )
    assert not torch.equal(state[key], state[key.replace("emas", "modules")])


def test_options_come_from_a_file_and_the_command_line(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'model = "{tiny}"\ndata = "{pictures}"\n[loop]\nsteps = 7\nrank = 3\nbuckets = false\n'
    )
    assert (
        main(["train", "lora", str(config), "--output", str(tmp_path / "o"), "--rank", "2", "--print-config"])
        == 0
    )
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert main(["train", "lora", str(printed), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 7 and report["pictures"] == 4 and report["buckets"] == {"32x32": 4}
    assert "\nrank = 2\n" in printed.read_text()


@pytest.mark.parametrize(
    ("method", "words", "name", "wanted"),
    [
        ("lora", "--betas 0.9,0.95", "betas", [0.9, 0.95]),
        ("hypernetwork", "--layer-structure 1,2,1", "layer_structure", [1.0, 2.0, 1.0]),
        ("hypernetwork", "--layer-structure 1 --layer-structure 2", "layer_structure", [1.0, 2.0]),
        ("unconditional", "--design ddpm-cifar10 --channel-mult 1,2,2", "channel_mult", [1, 2, 2]),
    ],
)
def test_several_numbers_have_commas_between(
    method: str, words: str, name: str, wanted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", method, "--data", "x", "--output", "y", *words.split()]
    assert main([*given, "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)[name] == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "there is no nowhere"),
        (["--data", "empty"], "empty holds no pictures"),
        (["--rank", "0"], "--rank 0 is too small; the least is 1"),
        (["--rank-of", "middel_block=4"], "rank_of 'middel_block' is in no layer's path; near: middle_block"),
        (["--alpha-of", "attn3=4"], "alpha_of 'attn3' is in no layer's path; near: attn2, attn1"),
        (["--lr-of", "atn2=0.1"], "lr_of 'atn2' is in no layer's path; near: attn2"),
        (["--lr-of", "attn2=nan"], "'attn2=nan' is not a path's part and a number from 0"),
        (["--rank-of", "attn2=1.5"], "'attn2=1.5' is not a path's part and a rank from 0 to 1024"),
        (["--alpha-of", "attn2=0"], "'attn2=0' is not a path's part and a number above 0"),
        (["--names", "peft", "--kind", "loha"], "names peft goes with kind lora or dora, not loha"),
        (["--kind", "lroa"], "--kind 'lroa' is not one of"),
        (["--targets", "to_x"], "no layer's path ends in 'to_x'"),
        (["--resolution", "33", "--no-buckets"], "resolution 33 is not a multiple of 8; near: 32, 40"),
        (["--filter", "aesthetic~5"], "filter 'aesthetic~5' is not a column"),
        (["--filter", "aesthetic>5"], "has no number in the column 'aesthetic'"),
        (["--lr", "inf"], "--lr"),
        (
            ["--prediction", "edm", "--weighting", "p2"],
            "weighting p2 does not go with prediction edm; give none",
        ),
        (["--prediction", "edm", "--zero-snr"], "zero_snr does not go with prediction edm"),
        (["--zero-snr"], "zero_snr needs a model that predicts v or x0"),
        (["--warmup", "2000"], "warmup 2000 is more than the 1000 steps"),
        (["bad.toml"], "bad.toml: rnak 4 is not an option of lora; near: rank"),
    ],
)
def test_what_does_not_fit_is_one_line(
    pictures: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("rnak = 4\n")
    given = ["--data", str(pictures)] if "--data" not in arguments else []
    code = main(["train", "lora", *arguments, *given, "--model", str(tiny), "--output", "run"])
    error = capsys.readouterr().err
    assert code in (1, 2) and said in error and len(error.splitlines()) == 1, error


def test_another_config_is_not_resumed(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    trained("lora", **options(pictures, tiny, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"holds a run with rank 8, and 4 is given"):
        trained("lora", **options(pictures, tiny, tmp_path / "run", rank=4))


def test_a_broken_picture_is_passed_over_by_name(
    pictures: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for path in pictures.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.png").write_bytes(b"no picture")
    cut = (pictures / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 2])
    more = {"roles": []}
    assert trained("lora", **options(folder, tiny, tmp_path / "run", **more))
    assert "bad.png is not a readable picture" in caplog.text
    with pytest.raises(ValueError, match=r"(bad|cut)\.png is not a readable picture"):
        trained("lora", **options(folder, tiny, tmp_path / "other", on_broken="stop", **more))


@pytest.mark.full
def test_a_compiled_network_learns_the_same(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    own = {
        "model": str(tiny),
        "data": str(pictures),
        "buckets": False,
        "steps": 3,
        "lr": 1e-3,
        "log_every": 1,
    }
    logs = []
    for compiled in (False, True):
        folder = tmp_path / f"{compiled}"
        trained("text-to-image", **own, output=str(folder), compile=compiled)
        logs.append([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
    for plain, compiled in zip(*logs, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_lora_is_not_compiled(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    own = {
        "model": str(tiny),
        "data": str(pictures),
        "output": str(tmp_path),
        "instance_prompt": "a sks disc",
    }
    with pytest.raises(ValueError, match="compile goes with methods that train the U-Net's own weights"):
        trained("dreambooth", **own, compile=True)
