"""`inkwash evaluate` and its kin: figures of pictures and of models, resumable, and bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio

from inkwash.metrics import drawn, networks
from inkwash.metrics.networks import FeatureNetwork, Features, Identity
from tests.support.tiny_models import write_clip

NUM = 60


class Means(torch.nn.Module):
    """Six features of a picture: means and spreads of its colours."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], 1)


@pytest.fixture(autouse=True)
def judge(monkeypatch) -> None:
    """A small network in EfficientNet's place."""
    small = FeatureNetwork(Identity("means", "0" * 10, "as it is"), Means(), lambda x: x, Features)
    monkeypatch.setitem(networks.NETWORKS, "efficientnet-lite0", lambda weights: small)  # pyright: ignore


def pictures(folder: Path, seed: int, num: int = NUM, bright: float = 0.0) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    for k in range(num):
        base = random.integers(0, 120, (1, 1, 3)) + bright
        noise = random.integers(0, 100, (32, 32, 3))
        Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{k:03}.png")
        (folder / f"{k:03}.txt").write_text(f"picture {k}")
    return folder


def test_two_pictures_are_a_pair(run, tmp_path: Path) -> None:
    a, b = (pictures(tmp_path / name, seed, 1) / "000.png" for seed, name in enumerate("ab"))
    result = run("evaluate-pictures", a, b, "--json")
    sides = [np.asarray(Image.open(path)) for path in (a, b)]
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(*sides, data_range=255), abs=1e-3)
    assert set(found) == {"psnr", "ssim"}


def test_sets_are_compared_and_a_page_written(run, tmp_path: Path) -> None:
    real = pictures(tmp_path / "real", 0)
    near, far = pictures(tmp_path / "near", 1), pictures(tmp_path / "far", 2, bright=60)
    found = {}
    for side in (near, far):
        result = run(
            "evaluate-pictures", side, real, "--training", real, "--page", f"{side.name}.html", "--json"
        )
        assert result.code == 0, result.err
        found[side.name] = json.loads(result.out)["runs"][0]["figures"]
    assert found["near"]["frechet_distance"]["value"] < found["far"]["frechet_distance"]["value"]
    assert found["far"]["kid"]["low"] > found["near"]["kid"]["high"]
    page = Path("near.html").read_text()
    assert "nearest to a real picture" in page and "nearest to a training picture" in page
    assert "memorisation needs at least 100 pictures, not 60" in page


def test_pairs_have_their_figures_with_intervals(run, tmp_path: Path) -> None:
    a, b = pictures(tmp_path / "a", 0), pictures(tmp_path / "b", 1)
    result = run("evaluate-pictures", a, b, "--paired")
    assert result.code == 0, result.err
    assert result.out.count("psnr") == 1 and " to " in result.out and "frechet" not in result.out


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("few", "real"), "not given: a kernel distance needs at least 50 pictures, not 5", 0),
        (("none", "real"), "there is no picture at", 1),
        (("torn", "real"), "000.png is not a readable picture", 1),
        (("few", "real", "--paired"), "can't be paired: 5 of 32x32, and 60 of 32x32", 1),
        (("real", "real", "--size", "big"), "--size big is not a size such as 256x256", 2),
        (("real", "real", "--network", "inception"), "inception needs --weights", 1),
        (("real", "real", "--captions"), "--captions needs --clip", 2),
    ],
)
def test_bad_input_is_one_line(run, tmp_path: Path, arguments: tuple[str, ...], said: str, code: int) -> None:
    pictures(tmp_path / "real", 0)
    pictures(tmp_path / "few", 1, 5)
    (tmp_path / "none").mkdir()
    (pictures(tmp_path / "torn", 1, 2) / "000.png").write_bytes(b"\x89PNG")
    result = run("evaluate-pictures", *arguments)
    assert (result.code, said in (result.out if code == 0 else result.err)) == (code, True), result
    assert code == 0 or result.err.count("\n") == 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A small random CLIP in transformers' folder."""
    write_clip(tmp_path / "clip")
    head = {"layers.0.weight": torch.ones(1, 12), "layers.0.bias": torch.full((1,), 5.0)}
    save_file(head, tmp_path / "head.safetensors")
    return tmp_path / "clip"


def test_clip_judges_captions_looks_and_edits(run, tmp_path: Path, clip: Path) -> None:
    real, made = pictures(tmp_path / "real", 0), pictures(tmp_path / "made", 1)
    for path in made.glob("*.txt"):
        path.write_text(f"{path.stem} changed")
    command = ("evaluate-pictures", made, real, "--clip", clip, "--captions", "--json")
    result = run(*command, "--aesthetic", "head.safetensors", "--page", "page.html")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    figures = found["runs"][0]["figures"]
    assert {"cmmd", "clip_score", "aesthetic", "kid"} <= figures.keys() and found["clip"].startswith("clip ")
    assert 1 < figures["aesthetic"]["value"] < 9  # 5, and the sum of a unit vector of twelve
    assert "worst by CLIP score" in Path("page.html").read_text()
    edits = json.loads(run(*command, "--paired").out)["runs"][0]["figures"]
    assert -1 <= edits["clip_direction"]["value"] <= 1 and "psnr" in edits


def test_an_aesthetic_head_needs_clip(run, tmp_path: Path) -> None:
    real = pictures(tmp_path / "real", 0)
    result = run("evaluate-pictures", real, real, "--aesthetic", "head.safetensors")
    assert (result.code, result.err) == (2, "inkwash: --aesthetic needs --clip, whose vectors it reads\n")


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    text = (
        'name = "quick"\nnum_pictures = 60\ncfg_scales = [1.0, 3.0]\n[request]\nsteps = 2\nsampler = "ddim"\n'
    )
    (tmp_path / "quick.toml").write_text(text)
    return tmp_path / "quick.toml"


def test_a_model_is_drawn_judged_and_judged_again_without_drawing(
    run, tmp_path, tiny, protocol, monkeypatch
) -> None:
    real = pictures(tmp_path / "real", 0)
    command = ("evaluate", tiny, "--protocol", protocol, "--reference", real, "--output", "out", "--json")
    for share in ("1/2", "2/2"):
        assert run(*command[:-1], "--shard", share).code == 0
    assert len(list(Path("out/pictures").glob("*.png"))) == 2 * NUM
    monkeypatch.setattr(drawn, "save_image", lambda *_: pytest.fail("all pictures are there"))
    result = run(*command)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [one["label"] for one in found["runs"]] == ["cfg_scale 1", "cfg_scale 3"]
    assert {"frechet_distance", "kid", "precision", "diversity"} <= found["runs"][0]["figures"].keys()
    assert found["features"] == "means 0000000000, as it is, float32" and found["model"].startswith("tiny ")
    assert json.loads(Path("out/report.json").read_text()) == found
    assert "frechet_distance over cfg_scale" in Path("out/report.html").read_text()


def test_a_stopped_run_goes_on_and_gives_the_same_pictures(run, tmp_path, tiny, protocol) -> None:
    real = pictures(tmp_path / "real", 0)
    command = ("evaluate", tiny, "--protocol", protocol, "--reference", real, "--num", 16, "--shard", "1/1")
    assert run(*command).code == 0
    kept = {path.name: path.read_bytes() for path in Path("evaluation/pictures").iterdir()}
    lost = sorted(kept)[:5]
    for name in lost:
        Path("evaluation/pictures", name).unlink()
    assert run(*command).code == 0
    assert {path.name: path.read_bytes() for path in Path("evaluation/pictures").iterdir()} == kept


def test_a_first_stage_is_compared_with_its_own_input(run, tmp_path, tiny) -> None:
    (tmp_path / "stage.toml").write_text('name = "stage"\ntask = "first_stage"\nnum_pictures = 60\n')
    real = pictures(tmp_path / "real", 0)
    result = run("evaluate", tiny, "--protocol", "stage.toml", "--reference", real, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["runs"][0]["figures"]
    assert {"psnr", "ssim", "frechet_distance"} <= found.keys() and found["ssim"]["value"] < 1


@pytest.mark.parametrize(
    ("more", "said", "code"),
    [
        (("--protocol", "none"), "there is no protocol 'none'", 2),
        (
            ("--protocol", "quick.toml", "--num", "500"),
            "500 pictures are to be compared, and there are 60",
            1,
        ),
        (("--protocol", "quick.toml", "--num", "0"), "num_pictures 0 is too small; the least is 1", 2),
        (("--protocol", "quick.toml", "--shard", "3/2"), "--shard 3/2 is not a share such as 2/4", 2),
        (("--protocol", "quick.toml", "--prompts", "real/000.png"), "holds no prompts", 1),
        (("--protocol", "first-stage", "--shard", "1/2"), "without --prompts or --shard", 2),
    ],
)
def test_bad_evaluations_are_one_line(run, tmp_path, tiny, protocol, more, said, code) -> None:
    pictures(tmp_path / "real", 0)
    result = run("evaluate", tiny, "--reference", "real", *more)
    assert (result.code, said in result.err, result.err.count("\n")) == (code, True, 1), result.err


def test_memorisation_is_asked_for_by_the_training_captions(run, tmp_path, tiny) -> None:
    text = 'name = "remembered"\nnum_pictures = 20\ncaptions = "training"\n[request]\nsteps = 1\nsampler = "ddim"\n'
    (tmp_path / "remembered.toml").write_text(text)
    real, training = pictures(tmp_path / "real", 0, 110), pictures(tmp_path / "training", 1, 30)
    for path in training.glob("*.txt"):
        path.write_text(f"learnt {path.stem}")
    command = ("evaluate", tiny, "--protocol", "remembered.toml", "--reference", real, "--json")
    result = run(*command)
    assert (result.code, "draws captions of --training" in result.err) == (2, True)
    result = run(*command, "--training", training)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["runs"][0]["pictures"] == 20 and "110 pictures" in found["beside"]
    assert 0 <= found["runs"][0]["figures"]["memorised"]["value"] <= 1
    drawn_from = {
        Image.open(path).info["parameters"].split("\n")[0] for path in Path("evaluation/pictures").iterdir()
    }
    assert len(drawn_from) == 20 and all(text.startswith("learnt ") for text in drawn_from)
    assert "nearest to a training picture" in Path("evaluation/report.html").read_text()


def test_holes_are_filled_once_and_the_rest_is_the_pictures_own(run, tmp_path, tiny, monkeypatch) -> None:
    text = 'name = "holes"\ntask = "inpaint"\nnum_pictures = 10\nhole = 0.5\n[request]\nsteps = 1\nsampler = "ddim"\n'
    (tmp_path / "holes.toml").write_text(text)
    real = pictures(tmp_path / "real", 0, 10)
    command = ("evaluate", tiny, "--protocol", "holes.toml", "--reference", real, "--json")
    result = run(*command)
    assert result.code == 0, result.err
    figures = json.loads(result.out)["runs"][0]["figures"]
    assert {"psnr", "ssim"} <= figures.keys() and figures["psnr"]["value"] < 40
    made = {np.asarray(Image.open(path)).tobytes(): path for path in Path("evaluation/pictures").iterdir()}
    assert len(made) == 10
    edges = {np.asarray(Image.open(path))[:8].tobytes() for path in made.values()}
    assert edges == {np.asarray(Image.open(path))[:8].tobytes() for path in real.glob("*.png")}
    monkeypatch.setattr(drawn, "save_image", lambda *_: pytest.fail("all pictures are there"))
    assert run(*command).code == 0
    assert run(*command, "--shard", "1/2").code == 2


def scenes_of(folder: Path, file: Path) -> Path:
    """A leaf left of a cherry, in every picture; captions of the pictures' own."""
    file.write_text(
        "".join(
            json.dumps(
                {
                    "caption": path.read_text(),
                    "objects": [
                        {"name": "leaf", "box": [0, 0, 16, 32]},
                        {"name": "cherry", "box": [16, 0, 32, 32]},
                    ],
                    "relations": [[0, "left of", 1]],
                    "width": 32,
                    "height": 32,
                }
            )
            + "\n"
            for path in sorted(folder.glob("*.txt"))
        )
    )
    return file


@pytest.fixture
def scene_judge(tmp_path: Path) -> Path:
    """Says leaf of what is greener than red, and cherry of the rest, by the judge's six features."""
    weight = torch.zeros(2, 6)
    weight[0, 1] = weight[1, 0] = 9.0
    path = tmp_path / "judge.safetensors"
    save_file({"0.weight": weight, "0.bias": torch.zeros(2)}, path, {"names": '["leaf", "cherry"]'})
    return path


def test_scenes_are_followed_or_not(run, tmp_path: Path, scene_judge: Path) -> None:
    real, made = pictures(tmp_path / "real", 0, 10), pictures(tmp_path / "made", 1, 10)
    half = Image.new("RGB", (32, 32), (200, 20, 20))
    half.paste((20, 200, 20), (0, 0, 16, 32))
    for path in real.glob("*.png"):
        half.save(path)
    for path in made.glob("*.png"):
        half.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    scenes = scenes_of(real, tmp_path / "scenes.jsonl")
    command = ("evaluate-pictures", made, real, "--scenes", scenes, "--scene-judge", scene_judge, "--json")
    result = run(*command)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    ours, theirs = ({name: each["value"] for name, each in one["figures"].items()} for one in report["runs"])
    assert (ours["named"], ours["relations"], theirs["named"], theirs["relations"]) == (1, 0, 1, 1)
    assert report["runs"][1]["label"] == "the real pictures"
    assert "of 2 names over means" in report["scenes"]
    report = json.loads(run(*command, "--in-boxes").out)
    ours, theirs = ({name: each["value"] for name, each in one["figures"].items()} for one in report["runs"])
    assert (ours["named"], theirs["named"]) == (0, 1)
    assert "relations" not in ours


def test_scenes_need_a_file_and_a_judge(run, tmp_path: Path, scene_judge: Path) -> None:
    real = pictures(tmp_path / "real", 0)
    scenes = scenes_of(real, tmp_path / "scenes.jsonl")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    save_file({"0.weight": torch.zeros(2, 6), "0.bias": torch.zeros(2)}, tmp_path / "nameless.safetensors")
    for arguments, said, code in (
        (("--scenes", scenes), "--scenes needs --scene-judge, or --clip, which then judges", 2),
        (("--scene-judge", scene_judge), "--scene-judge and --in-boxes need --scenes", 2),
        (("--in-boxes",), "--scene-judge and --in-boxes need --scenes", 2),
        (
            ("--scenes", "bad.jsonl", "--scene-judge", scene_judge),
            "bad.jsonl, line 1: no scene with a caption",
            1,
        ),
        (("--scenes", "none.jsonl", "--scene-judge", scene_judge), "none.jsonl can't be read", 1),
        (("--scenes", scenes, "--scene-judge", "nameless.safetensors"), "have no JSON list of names", 1),
        (("--scenes", scenes, "--scene-judge", "none.safetensors"), "none.safetensors", 1),
        (("--scenes", scenes, "--scene-judge", scene_judge, "--network", "none"), "which is none", 2),
    ):
        result = run("evaluate-pictures", real, real, *arguments)
        assert (result.code, said in result.err, result.err.count("\n")) == (code, True, 1), (
            arguments,
            result,
        )
