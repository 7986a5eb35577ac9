"""The page before the real server and `mini`: what is clicked is drawn."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.serve.conftest import Served, serving
from tests.serve.web.conftest import opened
from tests.serve.web.test_page_canvas import stroke
from tests.serve.web.test_page_drawing import pick
from tests.serve.web.test_page_pictures import DROP

SECONDS = 60_000  # milliseconds that a drawing may take on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own, in whose queue and gallery other tests put nothing."""
    with serving(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture
def real(chromium: Any, server: Any) -> Iterator[Any]:
    with opened(chromium, server.url) as page:
        yield page


def draw(page: Any, server: Any, steps: int = 4) -> dict[str, Any]:
    """Press Draw and wait; the job that was drawn."""
    page.get_by_label("Steps", exact=True).fill(str(steps))
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and answer.url.endswith("/api/jobs")
    ) as asked:
        page.get_by_role("button", name="Draw").click()
    job = server.wait(asked.value.json()["id"])
    assert job["state"] == "done", job["error"]
    expect(page.get_by_role("toolbar", name="Picture")).to_be_visible(timeout=SECONDS)
    return job


def shown(page: Any) -> np.ndarray:
    """The picture on the stage, H x W x 3."""
    text = page.locator(".stage img.large").evaluate(
        """async (image) => {
          const blob = await (await fetch(image.src)).blob();
          return new Promise((resolve) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.readAsDataURL(blob);
          });
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB"))


def test_an_example_is_drawn_with_previews(chromium: Any, started: Any) -> None:
    """Examples stand where there are no pictures yet, so the server is a new one."""
    with opened(chromium, started().url) as page:
        page.get_by_label("Steps", exact=True).fill("60")
        page.get_by_role("button", name="a red apple, noto style").click()
        expect(page.get_by_alt_text("The picture so far")).to_be_visible(timeout=SECONDS)
        expect(page.get_by_text("of 60,")).to_contain_text("left", timeout=SECONDS)
        expect(page.get_by_role("toolbar", name="Picture")).to_be_visible(timeout=SECONDS)
        assert shown(page).shape == (128, 128, 3)


def test_a_recipe_that_is_read_draws_the_same_picture(real: Any, server: Any) -> None:
    real.get_by_label("Prompt", exact=True).fill("a taxi, noto style")
    real.get_by_label("Sampler", exact=True).select_option("euler_ancestral")
    job = draw(real, server)
    before = shown(real)
    file = server.call("GET", job["pictures"][0]["url"]).content
    real.get_by_role("button", name="Reset").click()
    real.evaluate(DROP, ["#stage", "taxi.png", list(file)])
    real.get_by_role("dialog").get_by_role("button", name="Use settings").click()
    expect(real.get_by_label("Sampler", exact=True)).to_have_value("euler_ancestral")
    assert draw(real, server)["id"] != job["id"]
    assert (shown(real) == before).all()


def test_what_is_not_painted_stays(real: Any, server: Any) -> None:
    real.get_by_label("Prompt", exact=True).fill("a blue book")
    draw(real, server)
    before = shown(real)
    real.get_by_label("Send to").select_option("inpaint")
    expect(real.locator("canvas.paint")).to_be_visible()
    stroke(real, (0.5, 0.5), (0.6, 0.5))
    draw(real, server)
    after = shown(real)
    assert (after[:30] == before[:30]).all() and (after[100:] == before[100:]).all()
    assert (after[56:72, 60:76] != before[56:72, 60:76]).any()


def test_a_grid_of_the_server_is_a_table(real: Any, server: Any) -> None:
    real.get_by_label("Prompt", exact=True).fill("a lamp")
    real.get_by_text("Grid of settings (X/Y)").click()
    for axis, name, values in (("X, columns", "steps", "2, 3"), ("Y, rows", "cfg_scale", "1, 5")):
        real.get_by_label(f"{axis}: setting").select_option(name)
        real.get_by_label(f"{axis}: values").fill(values)
    job = draw(real, server)
    for k, (steps, scale) in enumerate(((2, 1), (3, 1), (2, 5), (3, 5))):
        request = job["pictures"][k]["recipe"]["request"]
        assert (request["steps"], request["cfg_scale"]) == (steps, scale)
        image = real.get_by_role("button", name=f"steps {steps}, cfg_scale {scale}").locator("img")
        expect(image).to_have_attribute("src", job["pictures"][k]["url"])


def test_the_queue_of_the_server_is_reordered(real: Any, server: Any) -> None:
    server.post("/api/queue", {"paused": True})
    try:
        ids = [server.job({"prompt": prompt, "steps": 2})["id"] for prompt in ("first", "second")]
        real.get_by_role("link", name="Queue").click()
        rows = real.locator("ol.queue li strong")
        expect(rows).to_have_text(["first", "second"])
        real.locator("li", has_text="second").get_by_role("button", name="Move up").click()
        expect(rows).to_have_text(["second", "first"])
        assert [job["id"] for job in server.get("/api/queue")["jobs"]] == ids[::-1]
        real.get_by_role("button", name="Resume the queue").click()
        expect(rows).to_have_count(0, timeout=SECONDS)
    finally:
        server.post("/api/queue", {"paused": False})


def test_what_the_server_refuses_stands_at_its_field(real: Any, server: Any) -> None:
    real.wrong_allowed = "422"
    real.get_by_label("Width", exact=True).fill("7")
    real.get_by_role("button", name="Draw").click()
    expect(real.get_by_label("Width", exact=True)).to_be_focused()
    expect(real.locator("#field-width-problem")).to_contain_text("32")


def test_a_token_opens_the_page(chromium: Any, started: Any) -> None:
    server = started(token="a-token-of-many-letters")
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.get_by_label("Token", exact=True).fill(server.token)
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("button", name="Draw")).to_be_visible()
    pick(page, "Image to image")
    context.close()
