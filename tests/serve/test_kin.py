"""Few-step models and priors over HTTP: notes on settings that do not suit, and pictures of prompts through a prior."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inkwash.models.conditions import PictureConfig
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.prior import write_prior
from tests.pipeline.test_prior_pictures import random_prior
from tests.pipeline.test_vary import EYE, seeing
from tests.weights.test_single_files import SMALL, random_checkpoint


def test_notes_and_priors_over_http(
    tiny: Path, tmp_path: Path, started: Callable, monkeypatch: pytest.MonkeyPatch
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
