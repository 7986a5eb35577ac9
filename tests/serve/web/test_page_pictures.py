"""Gallery, queue, recipes, comparing, and what a drawn picture is sent to."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.serve.web.fake_api import FakeApi, picture
from tests.serve.web.test_page_drawing import draw, pick

DROP = """async ([selector, name, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const target = document.querySelector(selector);
  for (const kind of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture
def drawn(page: Any, api: FakeApi) -> Any:
    """The page of a server that has drawn three pictures."""
    for seed, prompt in enumerate(("a red apple", "a blue book", "a rocket")):
        job = api.add({"task": "text_to_image", "request": {"prompt": prompt, "seed": seed, "steps": 9}})
        api.run(job["id"])
    page.reload()
    return page


def drop(page: Any, selector: str = "#stage", name: str = "old.png") -> None:
    page.evaluate(DROP, [selector, name, list(picture(5))])


def test_the_gallery_shows_the_newest_first_and_searches(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_role("link", name="Gallery").click()
    items = drawn.locator("ul.gallery button")
    expect(items).to_have_count(3)
    assert items.first.get_attribute("aria-label") == "a rocket"
    drawn.get_by_label("Search prompts").fill("book")
    expect(items).to_have_count(1)


def test_the_gallery_goes_on_page_by_page(page: Any, api: FakeApi) -> None:
    for seed in range(50):
        api.run(api.add({"task": "text_to_image", "request": {"prompt": str(seed), "seed": seed}})["id"])
    page.get_by_role("link", name="Gallery").click()
    expect(page.locator("ul.gallery button")).to_have_count(40)
    page.get_by_role("button", name="More", exact=True).click()
    expect(page.locator("ul.gallery button")).to_have_count(50)


def test_a_picture_of_the_gallery_gives_its_recipe_to_the_form(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_role("link", name="Gallery").click()
    drawn.get_by_role("button", name="a rocket").click()
    dialog = drawn.get_by_role("dialog")
    drawn.keyboard.press("ArrowRight")
    expect(dialog.locator(".prompt-text")).to_have_text("a blue book")
    dialog.get_by_role("button", name="Recipe").click()
    expect(dialog.locator("dl")).to_contain_text("a blue book")
    dialog.get_by_role("button", name="Use settings").click()
    expect(drawn.get_by_label("Prompt", exact=True)).to_have_value("a blue book")
    assert draw(drawn, api)["request"] == {"prompt": "a blue book", "steps": 9, "seed": 1}


def test_a_recipe_shows_prompts_first_and_what_differs_from_the_defaults(page: Any, api: FakeApi) -> None:
    request = {
        "pag_scale": 0.0,
        "hires": 1.5,
        "hires_strength": 0.7,
        "steps": 20,
        "prompt": "a lamp",
        "seed": 3,
    }
    api.run(api.add({"task": "text_to_image", "request": request})["id"])
    page.goto(f"{api.address}/#gallery")
    page.reload()
    page.locator("ul.gallery button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Recipe").click()
    terms = page.get_by_role("dialog").locator("dt").all_text_contents()
    assert terms[0] == "Prompt" and {"Hires", "Steps", "Seed"} <= set(terms)
    assert not {"PAG scale", "Hires strength"} & set(terms)


def test_a_picture_is_sent_to_another_task(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_label("Send to").select_option("image_to_image")
    expect(drawn.locator('[data-role="image"] img')).to_be_visible()
    assert draw(drawn, api)["images"]["image"].startswith("data:image/png;base64,")


def test_a_picture_is_enlarged(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_label("Enlarge").select_option("2 lanczos")
    enlarged = drawn.get_by_alt_text("The picture, 2 times as large")
    expect(enlarged).to_be_visible()
    assert enlarged.evaluate("image => image.naturalWidth") == 256


def test_two_pictures_are_compared_by_a_slider(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_role("button", name="Compare", exact=True).click()
    slider = drawn.get_by_role("slider", name="Where the two pictures meet")
    over = drawn.locator(".compare .over")
    assert over.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 50%)"
    slider.press("End")
    assert over.evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 0px 0px 100%)"
    drawn.get_by_role("button", name="Seed 0", exact=True).click()
    expect(drawn.locator(".compare img").first).to_have_attribute("src", "/api/pictures/job1/0.png")


def test_a_picture_is_compared_with_what_it_was_made_of(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_label("Send to").select_option("image_to_image")
    expect(drawn.locator('[data-role="image"] img')).to_be_visible()
    body = draw(drawn, api)
    api.run("job4")
    drawn.get_by_role("button", name="Compare", exact=True).click()
    expect(drawn.locator(".compare img").first).to_have_attribute("src", body["images"]["image"])


def test_a_picture_is_deleted(drawn: Any, api: FakeApi) -> None:
    drawn.get_by_role("button", name="Delete").click()
    drawn.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(drawn.locator(".strip button")).to_have_count(2)
    assert "job3" not in api.jobs


def test_a_dropped_picture_tells_its_recipe(page: Any, api: FakeApi) -> None:
    request = {"prompt": "an old castle", "steps": 33, "seed": 2**60 + 1, "sampler": "euler"}
    controls = [{"file": "canny.safetensors", "image": None, "weight": 0.8}]
    recipe = {"task": "text_to_image", "request": request | {"controls": controls}, "images": []}
    api.recipe = recipe | {"notes": ["Clip skip was not kept"]}
    drop(page)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("an old castle")
    expect(dialog).to_contain_text("Clip skip was not kept")
    expect(dialog).to_contain_text("file canny.safetensors, weight 0.8")
    dialog.get_by_role("button", name="Use settings").click()
    expect(page.locator("#toasts")).to_contain_text("The settings are in the form, except Controls.")
    assert draw(page, api)["request"] == request


def test_a_dropped_picture_without_a_recipe_can_still_be_sent(page: Any, api: FakeApi) -> None:
    page.wrong_allowed = "422"
    drop(page)
    expect(page.get_by_role("dialog")).to_contain_text("it carries no recipe")
    page.get_by_role("dialog").get_by_label("Send to").select_option("inpaint")
    expect(page.locator("canvas.paint")).to_be_visible()


def test_a_picture_dropped_on_a_slot_is_taken_by_it(page: Any, api: FakeApi) -> None:
    pick(page, "Image to image")
    drop(page, selector=".zone")
    expect(page.locator('[data-role="image"] img')).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_queue_is_reordered_paused_and_cancelled(page: Any, api: FakeApi) -> None:
    for seed, prompt in enumerate(("first", "second", "third")):
        api.add({"task": "text_to_image", "request": {"prompt": prompt, "seed": seed}})
    page.reload()
    expect(page.locator("#waiting")).to_have_text("3")
    page.get_by_role("link", name="Queue").click()
    rows = page.locator("ol.queue li strong")
    expect(rows).to_have_text(["first", "second", "third"])
    page.locator("li", has_text="third").get_by_role("button", name="Move up").click()
    expect(rows).to_have_text(["first", "third", "second"])
    page.locator("li", has_text="second").drag_to(page.locator("li", has_text="first"))
    expect(rows).to_have_text(["second", "first", "third"])
    assert [job["request"]["prompt"] for job in api.waiting()] == ["second", "first", "third"]
    page.locator("li", has_text="first").get_by_role("button", name="Pause").click()
    expect(page.locator("li", has_text="first")).to_contain_text("Paused")
    page.locator("li", has_text="third").get_by_role("button", name="Cancel").click()
    expect(rows).to_have_text(["second", "first"])
    page.get_by_role("button", name="Pause the queue").click()
    expect(page.get_by_role("button", name="Resume the queue")).to_be_visible()
    assert api.paused and api.jobs["job1"]["state"] == "paused" and api.jobs["job3"]["state"] == "cancelled"


def test_a_running_job_is_shown_before_a_long_queue(page: Any, api: FakeApi) -> None:
    for seed in range(90):
        api.add({"task": "text_to_image", "request": {"prompt": f"job {seed}", "seed": seed}})
    api.run("job1", finish=False)
    page.reload()
    page.get_by_role("link", name="Queue").click()
    expect(page.locator("ol.queue li strong").first).to_have_text("job 0")
    expect(page.locator("ol.queue li").first).to_contain_text("Step 1 of 20")
    expect(page.locator("#waiting")).to_have_text("90")


def described(config: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI description with POST /api/train alone, as FastAPI writes it."""
    schemas = {"Body": {"properties": {"config": {"$ref": "#/components/schemas/Config"}}}, "Config": config}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}
    return {
        "paths": {"/api/train": {"post": {"requestBody": {"content": content}}}},
        "components": {"schemas": schemas},
    }


def test_a_training_is_started_from_its_schema_and_watched(page: Any, api: FakeApi) -> None:
    expect(page.get_by_role("link", name="Train")).to_be_hidden()
    properties = {
        "data": {"type": "string", "description": "Folder of pictures."},
        "rank": {"type": "integer", "default": 8, "minimum": 1, "maximum": 128},
    }
    api.openapi = described({"title": "LoRA", "properties": properties, "required": ["data"]})
    page.reload()
    page.get_by_role("link", name="Train").click()
    expect(page.get_by_role("link", name="Merge")).to_be_hidden()
    page.get_by_label("Data", exact=True).fill("apples")
    page.get_by_label("Rank", exact=True).fill("4")
    page.get_by_role("button", name="Train", exact=True).click()
    run = page.get_by_role("article")
    expect(run).to_contain_text("Queued")
    assert api.bodies == [{"config": {"data": "apples", "rank": 4}}]
    job = api.jobs["job1"]
    job |= {"state": "running", "position": None}
    api.tell("job", job)
    losses = [[1, 0.9], [50, 0.4], [100, 0.25]]
    progress = {
        "step": 100,
        "num_steps": 400,
        "seconds_left": 30,
        "losses": losses,
        "log": ["step 100: loss 0.25"],
    }
    api.files["/api/sample.png"] = picture(2)
    api.tell("progress", {"id": "job1", **progress, "samples": ["/api/sample.png"]})
    expect(run).to_contain_text("Step 100 of 400, 30 s left")
    expect(
        run.get_by_role("img", name="Loss 0.250 at step 100, between 0.250 and 0.900 so far")
    ).to_be_visible()
    assert len(run.locator("polyline").get_attribute("points").split()) == 3
    expect(run.get_by_alt_text("Sample 1")).to_be_visible()
    expect(run.get_by_label("Log")).to_have_text("step 100: loss 0.25")
    run.get_by_role("button", name="Cancel").click()
    expect(run).to_contain_text("Cancelled")
