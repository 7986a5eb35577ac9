"""inkwash's own dialect."""

import base64
import json
import time
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from inkwash.cli import main
from inkwash.pipeline.tasks import TASKS

DRAW = {"prompt": "a red taxi, noto style", "steps": 3, "seed": 7}


def data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_picture_equals_the_command_lines_to_the_byte(server, tmp_path) -> None:
    job = server.wait(server.job(DRAW)["id"])
    path = tmp_path / "cli.png"
    assert main(["generate", DRAW["prompt"], "--steps", "3", "--seed", "7", "--output", str(path)]) == 0
    assert server.call("GET", job["pictures"][0]["url"]).content == path.read_bytes()


def test_the_table_of_tasks_is_the_librarys(server) -> None:
    tasks = {task["name"]: task for task in server.get("/api/tasks")["tasks"]}
    assert tasks.keys() == TASKS.keys()
    for name, task in tasks.items():
        fields = TASKS[name].request.model_fields
        properties = task["schema"]["properties"]
        assert properties.keys() == fields.keys()
        described = properties.keys() - {"controls"}  # which are named here, and files elsewhere
        assert all(properties[field]["description"] == fields[field].description for field in described)
        assert "image" in properties["controls"]["items"]["properties"]
    assert "euler_ancestral" in tasks["text_to_image"]["schema"]["properties"]["sampler"]["enum"]


def test_a_job_goes_through_its_states_and_events(server) -> None:
    id = server.job(DRAW | {"steps": 60, "seed": 1})["id"]
    seen: list[tuple[str, Any]] = []
    with httpx.stream("GET", f"{server.url}/api/jobs/{id}/events", timeout=60) as response:
        kind = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            if line.startswith("data: "):
                seen.append((kind, json.loads(line.removeprefix("data: "))))
    states = [data["state"] for kind, data in seen if kind == "job"]
    steps = [data["step"] for kind, data in seen if kind == "progress"]
    assert states[-1] == "done"
    assert steps == sorted(steps)
    assert steps[-1] == 60
    previews = [data["image"] for kind, data in seen if kind == "preview"]
    Image.open(BytesIO(base64.b64decode(previews[0].partition(",")[2]))).load()


def test_an_edited_picture_and_its_recipe(server) -> None:
    drawn = server.wait(server.job(DRAW)["id"])["pictures"][0]
    given = data_url(Image.open(BytesIO(server.call("GET", drawn["url"]).content)))
    job = server.job(DRAW | {"strength": 0.6}, "image_to_image", images={"image": given})
    done = server.wait(job["id"])
    made = server.call("GET", done["pictures"][0]["url"]).content
    told = server.post("/api/recipe", {"image": "data:image/png;base64," + base64.b64encode(made).decode()})
    assert (told["task"], told["request"]["strength"], told["images"]) == ("image_to_image", 0.6, ["image"])
    thumbnail = Image.open(BytesIO(server.call("GET", done["pictures"][0]["thumbnail"]).content))
    assert thumbnail.format == "WEBP"
    assert max(thumbnail.size) <= 256


def test_a_grid_is_cells_and_a_sheet(server) -> None:
    job = server.job(DRAW, grid={"steps": [1, 2], "cfg_scale": [1, 4]})
    pictures = server.wait(job["id"])["pictures"]
    assert [picture["recipe"].get("request", {}).get("steps") for picture in pictures] == [1, 2, 1, 2, None]
    assert "X/Y/Z plot" in pictures[-1]["parameters"]


def test_the_queue_is_paused_reordered_and_searched(server) -> None:
    server.post("/api/queue", {"paused": True})
    try:
        ids = [server.job(DRAW | {"prompt": f"zebra {k}"})["id"] for k in range(3)]
        assert server.call("PATCH", f"/api/jobs/{ids[2]}", json={"position": 0}).json()["position"] == 0
        assert [job["id"] for job in server.get("/api/queue")["jobs"]] == [ids[2], ids[0], ids[1]]
        server.call("PATCH", f"/api/jobs/{ids[0]}", json={"state": "paused"}).raise_for_status()
        assert server.post(f"/api/jobs/{ids[1]}/cancel")["state"] == "cancelled"
        found = server.get("/api/jobs?search=zebra&limit=2")
        assert [job["id"] for job in found["jobs"]] == [ids[2], ids[1]]
        rest = server.get(f"/api/jobs?search=zebra&before={found['next']}")
        assert [job["id"] for job in rest["jobs"]] == [ids[0]]
    finally:
        server.post("/api/queue", {"paused": False})
    server.wait(ids[2])
    assert server.get(f"/api/jobs/{ids[0]}")["state"] == "paused"
    server.call("DELETE", f"/api/jobs/{ids[0]}").raise_for_status()
    assert server.call("GET", f"/api/jobs/{ids[0]}").status_code == 404
    again = server.wait(server.post(f"/api/jobs/{ids[1]}/retry")["id"])
    assert again["state"] == "done"
    assert again["request"] == server.get(f"/api/jobs/{ids[1]}")["request"]


def test_a_running_job_is_cancelled_within_a_step_and_the_next_one_is_untouched(server) -> None:
    expected = server.call("GET", server.wait(server.job(DRAW)["id"])["pictures"][0]["url"]).content
    long = server.job(DRAW | {"steps": 500})["id"]
    after = server.job(DRAW)["id"]
    while server.get(f"/api/jobs/{long}")["progress"] is None:
        time.sleep(0.02)
    begun = time.monotonic()
    server.post(f"/api/jobs/{long}/cancel")
    assert server.wait(long)["state"] == "cancelled"
    assert time.monotonic() - begun < 5  # 500 steps take far longer
    assert server.call("GET", server.wait(after)["pictures"][0]["url"]).content == expected


def test_prompts_name_styles_and_wildcards_of_the_folder_of_models(server) -> None:
    extras = server.get("/api/extras")
    assert [style["name"] for style in extras["styles"]] == ["ink"]
    assert extras["wildcards"] == ["colour"]
    job = server.wait(server.job({"prompt": "a __colour__ fox", "styles": ["ink"], "steps": 1})["id"])
    assert job["pictures"][0]["recipe"]["request"]["prompt"] in ("a red fox in ink", "a blue fox in ink")


def test_models_are_listed_and_switched(server) -> None:
    listed = server.get("/api/models")
    assert listed["current"] == "mini"
    names = {model["name"] for model in listed["models"]}
    assert names >= {"mini", "mini-inpainting"}
    assert "broken" not in {model["name"] for model in server.post("/api/models/refresh")["models"]}
    assert server.post("/api/models/load", {"name": "mini-inpainting"})["loaded"]
    assert server.get("/api/models")["current"] == "mini-inpainting"
    server.post("/api/models/load", {"name": "mini"})


def test_tokens_are_counted_by_the_models_own_vocabulary(server) -> None:
    told = server.post("/api/tokens", {"text": "a red taxi, " * 40})
    assert told["limit"] == 75
    assert told["count"] == len(told["tokens"]) == 160
    assert told["chunks"] == 3


def known_mini(server) -> None:
    """Wait until the server knows what `mini` sees; it looks at its models after it has started."""
    end = time.monotonic() + 60
    while not next(m["hash"] for m in server.get("/api/models")["models"] if m["name"] == "mini"):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("body", "field", "status"),
    [
        ({"task": "text_to_image", "request": {"prompt": "x", "steps": 0}}, "steps", 422),
        ({"task": "text_to_image", "request": {"prompt": "x", "sampler": "none"}}, "sampler", 422),
        ({"task": "text_to_image", "request": {"prompt": "x", "nonsense": 1}}, "nonsense", 422),
        ({"task": "text_to_image", "request": {"prompt": "\ud800"}}, None, 422),
        ({"task": "text_to_image", "request": {}}, "prompt", 422),
        ({"task": "nonsense", "request": {}}, None, 404),
        ({"task": "text_to_image", "request": {"prompt": "x"}, "model": "../../etc/passwd"}, None, 404),
        ({"task": "depth_to_image", "request": {"prompt": "x"}}, "model", 422),
        ({"task": "image_to_image", "request": {"prompt": "x"}}, "image", 422),
        ({"task": "image_to_image", "request": {"prompt": "x"}, "images": {"image": "/etc/passwd"}}, None, 422),
        ({"task": "image_to_image", "request": {"prompt": "x"}, "images": {"image": "aGVsbG8="}}, "image", 422),
        ({"task": "text_to_image", "request": {"prompt": "x", "width": 4096, "height": 4096, "hires": 4}}, "width", 422),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(server, body, field, status) -> None:
    known_mini(server)
    response = server.call(
        "POST", "/api/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = response.json()["error"]
    assert response.status_code == status, error
    assert error["field"] == field or field is None
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    assert "/" not in error["message"].replace("../../etc/passwd", "")


def test_a_picture_that_is_damaged_fails_its_job_alone(server) -> None:
    whole = base64.b64decode(data_url(Image.effect_noise((64, 64), 90)).partition(",")[2])
    cut = base64.b64encode(whole[: len(whole) // 2]).decode()
    job = server.wait(server.job(DRAW, "image_to_image", images={"image": cut})["id"])
    assert job["state"] == "failed"
    assert "not a readable picture" in job["error"]
    assert "/" not in job["error"]


def test_health_metrics_and_schema(server) -> None:
    assert server.get("/health") == {"status": "ok"}
    text = server.call("GET", "/metrics").text
    assert 'inkwash_jobs{state="done"}' in text
    assert "/api/jobs/{id}" in server.get("/openapi.json")["paths"]
    assert "/api/jobs" in server.call("GET", "/docs").text
