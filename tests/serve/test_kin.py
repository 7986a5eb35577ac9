"""Few-step models, priors and unCLIP over HTTP: the bytes of the command line, and notes on settings that do not suit."""

import base64
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import inkwash
from inkwash.cli import main
from inkwash.models.conditions import PictureConfig
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES
from inkwash.pipeline.presets import PRESETS
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.prior import write_prior
from tests.pipeline.test_control_parity import EYE as ADAPTERS_EYE
from tests.pipeline.test_control_parity import write_ip_adapter
from tests.pipeline.test_prior_pictures import random_prior
from tests.pipeline.test_vary import EYE, PICTURES, UNCLIP, seeing
from tests.support.small_controls import write_model
from tests.weights.test_single_files import SMALL, random_checkpoint


def test_notes_and_priors_over_http(
    tiny: Path, tmp_path: Path, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny, models / "tiny-turbo")
    monkeypatch.setitem(FAMILIES, "small-sd1", SMALL["small-sd1"])
    silent = replace(random_checkpoint(SMALL["small-sd1"]), text=())
    write_folder(seeing(silent, PictureConfig(EYE, noised=False)), models / "decoder")
    write_prior(random_prior(), tmp_path / "prior")
    server = started(
        "--models", str(models), "--model", str(models / "tiny-turbo"), "--prior", str(tmp_path / "prior")
    )
    own = {"prompt": "a taxi", "seed": 1}
    done = server.wait(server.job({**own, "steps": 50, "cfg_scale": 7}, model="tiny-turbo")["id"])
    assert done["state"] == "done", done
    said = " ".join(done["pictures"][0]["notes"])
    assert "1 to 4 steps, and 50 were asked for" in said and "burns colours" in said
    quiet = server.wait(server.job({**own, "preset": "turbo"}, model="tiny-turbo")["id"])
    assert quiet["pictures"][0]["notes"] == []
    drawn = server.post(
        "/sdapi/v1/txt2img", {"prompt": "a", "steps": 9, "cfg_scale": 1, "width": 32, "height": 32}
    )
    assert any("1 to 4 steps, and 9" in text for text in json.loads(drawn["info"])["comments"])

    done = server.wait(server.job({**own, "steps": 2, "prior_steps": 3}, model="decoder")["id"])
    assert done["state"] == "done", done
    recipe = done["pictures"][0]["recipe"]
    assert recipe["prior"]["name"] == "prior" and recipe["request"]["prior_steps"] == 3
    # models that draw by words have no use for the server's prior
    failed = server.wait(server.job({**own, "steps": 2, "prior_steps": 3}, model="tiny-turbo")["id"])
    assert failed["state"] == "failed" and "tiny-turbo draws without a prior" in failed["error"]


def drawn_by_command(folder: Path, name: str, *arguments: str) -> bytes:
    path = folder / f"{name}.png"
    assert main([*arguments, "--output", str(path)]) == 0
    return path.read_bytes()


@pytest.fixture
def kin(tmp_path: Path, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A server with a prior, of a model that draws by words, its IP-Adapter, and unCLIP; and the folder of all."""
    monkeypatch.setitem(FAMILIES, UNCLIP.name, UNCLIP)
    models = tmp_path / "models"
    write_model("sd1", models)
    (models / "ip-adapter").mkdir()
    write_ip_adapter(inkwash.load(models / "sd1"), "plain", models / "ip-adapter")
    (models / "ip-adapter/adapter.bin").unlink()
    write_prior(random_prior(dim=int(ADAPTERS_EYE["projection_dim"])), tmp_path / "prior")
    write_folder(seeing(random_checkpoint(UNCLIP), PictureConfig(EYE)), models / "unclip")
    server = started(
        "--models", str(models), "--model", str(models / "sd1"), "--prior", str(tmp_path / "prior")
    )
    end = time.monotonic() + 60
    while server.get("/api/models")["models"][-1]["tasks"] != ["text_to_image", "vary"]:
        assert time.monotonic() < end, "the models were not looked at"
        time.sleep(0.1)
    return server, tmp_path


def test_a_prior_draws_through_an_ip_adapter_as_the_command_line_does(kin: tuple[Any, Path]) -> None:
    server, folder = kin
    own = {"prompt": "a taxi", "seed": 1, "steps": 2, "prior_steps": 3}
    adapter = folder / "models/ip-adapter/adapter.safetensors"
    wanted = drawn_by_command(
        folder, "wanted", "generate", "a taxi", "--model", f"{folder}/models/sd1", "--prior", f"{folder}/prior",
        "--control", str(adapter), "--seed", "1", "--steps", "2", "--prior-steps", "3",
    )  # fmt: skip
    control = {"model": "adapter"}
    done = server.wait(server.job(own | {"controls": [control]}, model="sd1")["id"])
    assert done["state"] == "done", done
    assert server.call("GET", done["pictures"][0]["url"]).content == wanted
    # the next one without the adapter has no use for the prior, and the one with it still has
    plain = server.wait(server.job({"prompt": "a taxi", "seed": 1, "steps": 2}, model="sd1")["id"])
    assert plain["state"] == "done" and plain["pictures"][0]["recipe"].get("prior") is None
    unit = {"model": "adapter", "module": "ip-adapter_clip_sd15"}
    body = {
        "prompt": "a taxi", "seed": 1, "steps": 2, "cfg_scale": 5, "width": 32, "height": 32, "sampler_name": "DPM++ 2M",
        "alwayson_scripts": {"ControlNet": {"args": [unit]}},
    }  # fmt: skip
    answer = server.post("/sdapi/v1/txt2img", body)
    same = server.wait(
        server.job(
            {name: value for name, value in own.items() if name != "prior_steps"}
            | {"width": 32, "height": 32, "controls": [control | {"annotator": "none"}]},
            model="sd1",
        )["id"]
    )
    theirs = Image.open(BytesIO(base64.b64decode(answer["images"][0])))
    ours = Image.open(BytesIO(server.call("GET", same["pictures"][0]["url"]).content))
    assert len(answer["images"]) == 1 and theirs.tobytes() == ours.tobytes()
    assert json.loads(theirs.info["inkwash"])["prior"]["name"] == "prior"
    # an annotator needs a picture, and so does everything but an adapter
    unit["module"] = "canny"
    refused = server.call("POST", "/sdapi/v1/txt2img", json=body)
    assert refused.status_code == 422 and "has no picture" in refused.text
    failed = server.wait(server.job(own | {"controls": [{"model": "reference_only"}]}, model="sd1")["id"])
    assert failed["state"] == "failed" and "reference_only has no picture" in failed["error"]


def test_pictures_are_varied_as_the_command_line_does(kin: tuple[Any, Path]) -> None:
    server, folder = kin
    names, urls = ("image", "second"), []
    for name, picture in zip(names, PICTURES, strict=True):
        picture.save(folder / f"{name}.png")
        urls.append(
            "data:image/png;base64," + base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        )
    wanted = drawn_by_command(
        folder, "wanted", "vary", f"{folder}/image.png", "--second", f"{folder}/second.png", "--mix", "0.3", "--noise-level",
        "20", "--model", f"{folder}/models/unclip", "--seed", "1", "--steps", "2",
    )  # fmt: skip
    own: dict[str, Any] = {"seed": 1, "steps": 2}
    pictures = {"image": urls[0], "second": urls[1]}
    job = server.job(own | {"mix": 0.3, "noise_level": 20}, "vary", model="unclip", images=pictures)
    done = server.wait(job["id"])
    assert done["state"] == "done", done
    assert server.call("GET", done["pictures"][0]["url"]).content == wanted
    # img2img of a model that sees pictures varies them
    body = {
        "init_images": [urls[0]], "seed": 1, "steps": 2, "cfg_scale": 5, "width": 32, "height": 32,
        "denoising_strength": 0.6, "sampler_name": "DPM++ 2M", "override_settings": {"sd_model_checkpoint": "unclip"},
    }  # fmt: skip
    answer = server.post("/sdapi/v1/img2img", body)
    theirs = Image.open(BytesIO(base64.b64decode(answer["images"][0])))
    (ours,) = inkwash.load(folder / "models/unclip").vary(PICTURES[0], **own)
    assert theirs.tobytes() == ours.tobytes()
    assert any("denoising_strength is not applied" in text for text in json.loads(answer["info"])["comments"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_over_http_as_by_the_command_line(server: Any, tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    wanted = drawn_by_command(
        tmp_path, "wanted", "generate", "a taxi", "--preset", name, "--steps", "2", "--seed", "1", "--width", "64",
        "--height", "64",
    )  # fmt: skip
    own = {"prompt": "a taxi", "seed": 1, "width": 64, "height": 64, "steps": 2}
    done = server.wait(server.job(own | {"preset": name})["id"])
    assert server.call("GET", done["pictures"][0]["url"]).content == wanted
    body = own | {
        "sampler_name": SAMPLER_NAMES[preset.sampler],
        "scheduler": SCHEDULE_NAMES[preset.schedule],
        "cfg_scale": preset.cfg_scale,
    }
    theirs = base64.b64decode(server.post("/sdapi/v1/txt2img", body)["images"][0])
    assert Image.open(BytesIO(theirs)).tobytes() == Image.open(BytesIO(wanted)).tobytes()
