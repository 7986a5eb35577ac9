"""Models made over HTTP: by merging and by training."""

import json
import os
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.serve.app import make_app
from inkwash.serve.builds import TRAININGS
from inkwash.serve.settings import Settings
from inkwash.training.methods import METHODS
from inkwash.training.run import trained
from tests.serve.conftest import Served, start
from tests.serve.folders import write_models, write_pictures

TRAIN = {"method": "lora", "data": ["things"], "model": "tiny", "lr": 1e-3, "bucket_step": 8, "bucket_min": 16,
         "resolution": [32, 32], "log_every": 1}  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("builds")
    write_models(tiny, place / "models")
    write_pictures(place / "data/things")
    write_pictures(place / "secret")
    (place / "data/link").symlink_to(place / "secret")
    return place


def begin(place: Path, state: str = "state") -> Served:
    return start(place / state, "--models", str(place / "models"), "--data", str(place / "data"))


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    running = begin(place)
    yield running
    running.process.kill()
    running.process.wait()


def train(server: Served, name: str, **options: Any) -> dict[str, Any]:
    return server.post("/api/train", {"config": TRAIN | {"name": name} | options})


def until(happened: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_merge_is_the_command_lines_to_the_byte_and_then_a_model(server, place) -> None:
    config = {"name": "mix", "models": ["tiny", "other"], "alpha": 0.3, "method": "weighted_sum"}
    job = server.wait(server.post("/api/merge", {"config": config})["id"])
    assert job["state"] == "done", job["error"]
    assert job["progress"]["step"] == job["progress"]["num_steps"] > 10
    assert "wrote mix.safetensors" in job["progress"]["log"][-1]
    sources = [str(place / "models" / name) for name in ("tiny", "other")]
    assert main(["merge", *sources, "--alpha", "0.3", "-o", str(place / "cli.safetensors")]) == 0
    assert (place / "models/mix.safetensors").read_bytes() == (place / "cli.safetensors").read_bytes()
    until(lambda: "mix" in [model["name"] for model in server.get("/api/models")["models"]])
    drawn = server.wait(server.job({"prompt": "x", "steps": 1}, model="mix")["id"])
    assert drawn["state"] == "done", drawn["error"]
    again = server.call("POST", "/api/merge", json={"config": config})
    assert (again.status_code, again.json()["error"]["field"]) == (422, "name")


def test_a_training_tells_of_losses_and_samples_and_gives_a_lora_that_prompts_may_name(server, place) -> None:
    id = train(server, "things", steps=30, sample_every=15, sample_steps=1, sample_prompts=["a", "b"])["id"]
    progress = []
    with httpx.stream("GET", f"{server.url}/api/jobs/{id}/events", timeout=120) as response:
        for line in response.iter_lines():
            if '"losses"' in line and '"state"' not in line:
                progress.append(json.loads(line.removeprefix("data: ")))
    job = server.get(f"/api/jobs/{id}")
    assert job["state"] == "done", job["error"]
    last = job["progress"]
    assert [step for step, _ in last["losses"]] == list(range(1, 31))
    rows = [json.loads(line) for line in (place / "state/runs/things/log.jsonl").read_text().splitlines()]
    assert [loss for _, loss in last["losses"]] == [row["error"] for row in rows]
    assert len(last["samples"]) == 2
    assert Image.open(BytesIO(server.call("GET", last["samples"][1]).content)).width > 32
    assert progress[-1]["step"] == 30
    assert "things" in [lora["name"] for lora in server.get("/api/extras")["loras"]]
    plain, changed = (
        server.wait(server.job({"prompt": f"a{tag}", "steps": 1, "seed": 0}, model="tiny")["id"])
        for tag in ("", "<lora:things:1>")
    )
    pictures = [server.call("GET", each["pictures"][0]["url"]).content for each in (plain, changed)]
    assert pictures[0] != pictures[1]
    assert id in [job["id"] for job in server.get("/api/jobs?search=things")["jobs"]]


def test_a_training_that_is_cancelled_or_whose_server_ends_goes_on_from_there(place) -> None:
    server = begin(place, "state2")
    job = train(server, "stopped", steps=60, save_every=1000)
    until(lambda: server.get(f"/api/jobs/{job['id']}")["progress"])
    server.post(f"/api/jobs/{job['id']}/cancel")
    assert server.wait(job["id"])["state"] == "cancelled"
    assert (place / "state2/runs/stopped/state.safetensors").exists()
    again = server.post(f"/api/jobs/{job['id']}/retry")
    until(lambda: server.get(f"/api/jobs/{again['id']}")["progress"])
    assert server.stop() == 0
    server = begin(place, "state2")
    try:
        ended = server.wait(again["id"], 120)
    finally:
        server.process.kill()
        server.process.wait()
    assert ended["state"] == "done", ended["error"]
    options = TRAIN | {"data": str(place / "data/things"), "model": str(place / "models/tiny")}
    name = str(options.pop("method"))
    trained(name, output=str(place / "whole"), steps=60, save_every=1000, **options)
    ours, theirs = (
        load_file(place / path) for path in ("models/loras/stopped.safetensors", "whole/whole.safetensors")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-3) for key in ours)


@pytest.mark.parametrize(
    ("changes", "field", "status"),
    [
        ({"data": ["../secret"]}, None, 404), ({"data": ["/etc"]}, None, 404), ({"data": ["link"]}, None, 404),
        ({"data": ["things/../../secret"]}, None, 404), ({"data": ["\0"]}, None, 404),
        ({"roles": ["mask=../secret"]}, None, 404),
        ({"name": "../x"}, "name", 422), ({"name": "/x"}, "name", 422), ({"name": ".x"}, "name", 422),
        ({"output": "/tmp/x"}, "output", 422), ({"cache": "/tmp"}, "cache", 422), ({"device": "cuda:9"}, "device", 422),
        ({"model": "/etc/passwd"}, None, 404), ({"steps": 0}, "steps", 422), ({"warmup": 5000}, None, 422),
        ({"method": "textual-inversion", "token": "../../x"}, "token", 422), ({"method": "nothing"}, None, 422),
        ({"method": "dreambooth", "instance_prompt": "a", "class_data": "../secret"}, None, 404),
    ],
    ids=str,
)  # fmt: skip
def test_a_training_leaves_its_folders_for_nothing(server, changes, field, status) -> None:
    answer = server.call("POST", "/api/train", json={"config": TRAIN | {"name": "n"} | changes})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["field"] == field or field is None
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ({"models": ["tiny", "/etc/passwd"]}, 404), ({"name": "../x"}, 422), ({"name": "tiny"}, 422),
        ({"models": []}, 422), ({"method": "none"}, 422), ({"vae": "../x"}, 404), ({"alpha": "much"}, 422),
        ({"output": "/tmp/x"}, 422),
    ],
)  # fmt: skip
def test_a_merge_leaves_its_folder_for_nothing(server, config, status) -> None:
    body = {"config": {"name": "n", "models": ["tiny", "other"]} | config}
    assert server.call("POST", "/api/merge", json=body).status_code == status


def test_a_merge_that_does_not_work_out_fails_in_one_line(server) -> None:
    config = {"name": "odd", "models": ["tiny", "mini"]}
    job = server.wait(server.post("/api/merge", {"config": config})["id"])
    assert job["state"] == "failed"
    assert "/" not in job["error"]
    assert not [path for path in os.listdir(server.state.parent / "models") if "odd" in path]


def test_two_jobs_do_not_make_the_same_thing(server) -> None:
    server.post("/api/queue", {"paused": True})
    try:
        first = train(server, "twice")
        answer = server.call("POST", "/api/train", json={"config": TRAIN | {"name": "twice"}})
        assert answer.status_code == 409
        server.post(f"/api/jobs/{first['id']}/cancel")
    finally:
        server.post("/api/queue", {"paused": False})


def test_the_schema_types_every_option_that_a_client_may_set(server) -> None:
    schemas = server.get("/openapi.json")["components"]["schemas"]
    kinds = schemas["Training"]["properties"]["config"]["oneOf"]
    assert len(kinds) == len(TRAININGS)
    assert (
        {"lora", "text-to-image", "distill"} <= TRAININGS.keys() < METHODS.keys()
    )  # not those that name other files
    lora = schemas["TrainLoRA"]["properties"]
    assert lora["rank"]["maximum"] == 1024
    assert lora["rank"]["group"] == "LoRA"
    assert {"output", "device", "cache"}.isdisjoint(lora)
    assert schemas["Merge"]["properties"]["config"]


def test_a_server_without_folders_makes_no_models(tmp_path: Path) -> None:
    client = TestClient(make_app(Settings(tmp_path / "state")), base_url="http://127.0.0.1")
    for path in ("/api/merge", "/api/train"):
        assert client.post(path, json={"config": {}}).status_code in (404, 405)
        assert path not in client.get("/openapi.json").json()["paths"]
