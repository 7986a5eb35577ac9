"""Drawing in a browser: what is asked of the server, and what is shown while it draws."""

from typing import Any

from playwright.sync_api import expect

from tests.serve.web.fake_api import FakeApi, picture


def draw(page: Any, api: FakeApi) -> dict[str, Any]:
    """Press Draw and wait until the page shows the job; what the server was asked for."""
    before = len(api.bodies)
    with page.expect_response(
        lambda response: response.request.method == "POST" and response.url.endswith("/api/jobs")
    ) as response:
        page.get_by_role("button", name="Draw").click()
    assert len(api.bodies) == before + 1
    if response.value.ok:
        expect(page.locator(f'.view[data-job="{response.value.json()["id"]}"]')).to_be_attached()
    return api.bodies[-1]


def pick(page: Any, name: str) -> None:
    """Choose a task, or another one of a few buttons."""
    page.get_by_role("radio", name=name, exact=True).check()


def choose(page: Any, role: str, data: bytes | None = None) -> None:
    files = {"name": "apple.png", "mimeType": "image/png", "buffer": data or picture(1)}
    page.locator(f"#slot-{role}").set_input_files(files)
    expect(page.locator(f'[data-role="{role}"] img')).to_be_visible()


def test_a_prompt_is_asked_for_with_what_differs_from_the_defaults(page: Any, api: FakeApi) -> None:
    page.get_by_label("Prompt", exact=True).fill("a red apple, noto style")
    page.get_by_label("Steps", exact=True).fill("12")
    page.get_by_label("Sampler", exact=True).select_option("euler_ancestral")
    page.get_by_label("Seed", exact=True).fill("7")
    assert draw(page, api) == {
        "task": "text_to_image",
        "model": "mini",
        "request": {
            "prompt": "a red apple, noto style",
            "steps": 12,
            "sampler": "euler_ancestral",
            "seed": 7,
        },
        "images": {},
    }


def test_regions_are_written_as_on_the_command_line(page: Any, api: FakeApi) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    page.get_by_label("Prompt", exact=True).fill("a house")
    regions = page.locator('[data-name="regions"] input')
    regions.fill("0,0,0.5,1=a cat, black; 0.5,0,1,1=a dog")
    assert draw(page, api)["request"]["regions"] == "0,0,0.5,1=a cat, black; 0.5,0,1,1=a dog"
    regions.fill("")
    assert "regions" not in draw(page, api)["request"]


def test_every_field_of_every_task_has_a_control(page: Any, api: FakeApi) -> None:
    api.models[0]["tasks"] = [task["name"] for task in api.tasks]
    page.reload()
    for task in api.tasks:
        pick(page, task["title"])
        expect(page.locator(".summary")).to_have_text(task["summary"])
        shown = set(
            page.locator("[data-name]").evaluate_all("nodes => nodes.map((node) => node.dataset.name)")
        )
        assert shown == task["schema"]["properties"].keys() - {"boxes", "controls"}, task["name"]


def test_a_new_task_appears_by_itself(page: Any, api: FakeApi) -> None:
    properties = {
        "prompt": {"type": "string", "description": "What to draw."},
        "sparkle": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0.5,
            "description": "How much it sparkles.",
        },
        "mood": {"type": "string", "enum": ["calm", "wild"], "default": "calm"},
    }
    schema = {"properties": properties, "required": ["prompt"]}
    api.tasks.append(
        {"name": "sparkle", "title": "Sparkle", "summary": "Draw with sparkles.", "images": {"image": {"mode": "RGB"}},
         "schema": schema}
    )  # fmt: skip
    api.models[0]["tasks"].append("sparkle")
    page.reload()
    pick(page, "Sparkle")
    choose(page, "image")
    page.get_by_label("Sparkle", exact=True).and_(page.get_by_role("spinbutton")).fill("0.9")
    page.get_by_label("Mood").select_option("wild")
    body = draw(page, api)
    assert body["task"] == "sparkle" and body["images"]["image"].startswith("data:image/png;base64,")
    assert body["request"] == {"prompt": "", "sparkle": 0.9, "mood": "wild"}


def test_a_seed_of_63_bits_stays_exact_both_ways(page: Any, api: FakeApi) -> None:
    seed = 2**63 - 2
    page.get_by_label("Seed", exact=True).fill(str(seed))
    assert draw(page, api)["request"]["seed"] == seed
    api.run("job1")
    expect(page.get_by_text(f"seed {seed}")).to_be_visible()


def test_without_a_seed_each_request_has_its_own(page: Any, api: FakeApi) -> None:
    assert draw(page, api)["request"]["seed"] != draw(page, api)["request"]["seed"]


def test_previews_and_the_time_left_are_shown_and_then_the_picture(page: Any, api: FakeApi) -> None:
    draw(page, api)
    stage = page.get_by_role("group", name="Picture", exact=True)
    expect(stage.get_by_text("Waiting")).to_be_visible()
    api.run("job1", previews=3, finish=False)
    expect(stage.get_by_text("Step 3 of 20, 1 min 15 s left")).to_be_visible()
    preview = stage.get_by_alt_text("The picture so far")
    expect(preview).to_have_attribute("src", api.previews[-1])
    assert page.get_by_role("progressbar").evaluate("bar => bar.value") == 3 / 20
    api.finish(api.jobs["job1"])
    expect(stage.locator("img.large")).to_have_attribute("src", "/api/pictures/job1/0.png")
    expect(page.get_by_role("status")).to_have_text("The picture is done")


def test_a_running_job_is_cancelled(page: Any, api: FakeApi) -> None:
    draw(page, api)
    api.run("job1", finish=False)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()
    assert api.jobs["job1"]["state"] == "cancelled"


def test_the_reason_of_a_failure_is_shown_and_it_is_tried_again(page: Any, api: FakeApi) -> None:
    draw(page, api)
    api.jobs["job1"] |= {"state": "failed", "error": "there is no LoRA ink"}
    api.tell("job", api.jobs["job1"])
    expect(page.get_by_text("there is no LoRA ink", exact=True)).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("Waiting")).to_be_visible()
    assert len(api.jobs) == 2


def test_what_the_server_says_no_to_stands_at_its_field(page: Any, api: FakeApi) -> None:
    api.refusal = {"message": "pag_scale is 3; this model has no such layer", "field": "pag_scale"}
    page.wrong_allowed = "422"
    draw(page, api)
    field = page.get_by_label("PAG scale", exact=True)
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description("pag_scale is 3; this model has no such layer")
    expect(field).to_have_attribute("aria-invalid", "true")


def test_image_to_image_needs_and_sends_the_picture(page: Any, api: FakeApi) -> None:
    pick(page, "Image to image")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("needs the image")
    assert not api.bodies
    choose(page, "image")
    page.get_by_label("Strength", exact=True).fill("0.4")
    body = draw(page, api)
    assert body["images"].keys() == {"image"} and body["request"]["strength"] == 0.4


def test_a_task_that_the_model_cannot_do_chooses_one_that_can(page: Any, api: FakeApi) -> None:
    api.models[1]["tasks"].append("depth_to_image")
    page.reload()
    pick(page, "Depth to image")
    expect(page.get_by_label("Model")).to_have_value("mini-inpainting")


def test_an_annotator_makes_the_second_picture_of_the_first(page: Any, api: FakeApi) -> None:
    api.models[0]["tasks"].append("depth_to_image")
    page.reload()
    pick(page, "Depth to image")
    choose(page, "image")
    page.get_by_label("Make the depth from the picture").select_option("depth")
    expect(page.locator('[data-role="depth"] img')).to_be_visible()
    assert draw(page, api)["images"].keys() == {"image", "depth"}


def test_weights_change_by_the_keyboard(page: Any, api: FakeApi) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a red apple")
    prompt.evaluate("area => area.setSelectionRange(3, 3)")  # within red
    prompt.press("Control+ArrowUp")
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value("a (red:1.2) apple")
    prompt.press("Control+ArrowDown")
    prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a red apple")
    prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value("a (red:0.9) apple")


def test_tokens_are_counted(page: Any, api: FakeApi) -> None:
    page.get_by_label("Prompt", exact=True).fill("a red apple on a book")
    expect(page.get_by_text("6/75 tokens")).to_be_visible()


def test_loras_embeddings_wildcards_and_styles_are_picked(page: Any, api: FakeApi) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a red apple")
    for kind in ("ink", "soft-light", "colours"):
        page.get_by_role("button", name="Add LoRA, style").click()
        page.get_by_role("dialog").get_by_role("button", name=kind, exact=True).click()
    expect(prompt).to_have_value("a red apple <lora:ink:1> inkstyle soft-light __colours__")
    page.get_by_role("button", name="Add LoRA, style").click()
    page.get_by_role("button", name="watercolour").click()
    page.keyboard.press("Escape")
    assert draw(page, api)["request"]["styles"] == ["watercolour"]


def test_a_grid_asks_for_two_axes_and_is_shown_as_a_table(page: Any, api: FakeApi) -> None:
    page.get_by_text("Grid of settings (X/Y)").click()
    page.get_by_label("X, columns: setting").select_option("steps")
    page.get_by_label("X, columns: values").fill("4, 8, 12")
    page.get_by_label("Y, rows: setting").select_option("prompt")
    page.get_by_label("Y, rows: values").fill('"a taxi, noto style", a rocket')
    assert draw(page, api)["grid"] == {"steps": [4, 8, 12], "prompt": ["a taxi, noto style", "a rocket"]}
    api.run("job1")
    expect(page.get_by_role("columnheader")).to_have_text(["steps 4", "steps 8", "steps 12"])
    expect(page.get_by_role("rowheader")).to_have_text(["prompt a taxi, noto style", "prompt a rocket"])
    page.get_by_role("button", name="steps 8, prompt a rocket").click()
    expect(page.locator(".stage img.large")).to_have_attribute("src", "/api/pictures/job1/4.png")


def test_hires_and_batch_are_asked_for(page: Any, api: FakeApi) -> None:
    page.get_by_label("Hires", exact=True).fill("2")
    page.get_by_label("Batch size", exact=True).fill("3")
    body = draw(page, api)["request"]
    assert (body["hires"], body["batch_size"]) == (2, 3)
    api.run("job1")
    expect(page.locator(".strip button")).to_have_count(3)


def test_controls_explain_themselves_in_a_sentence_and_a_drawing(page: Any, api: FakeApi) -> None:
    pick(page, "Image to image")
    for title in ("Steps", "CFG scale", "Sampler", "Schedule", "Seed", "Strength", "Batch size"):
        ask = page.get_by_role("button", name=f"About {title}", exact=True)
        ask.click()
        help = page.locator(f"#{ask.get_attribute('aria-controls')}")
        expect(help.locator("svg")).to_be_visible()
        expect(help.locator("p")).to_be_visible()
        assert help.locator("p").text_content().strip().endswith(".")


def test_settings_are_kept_over_a_reload_and_reset(page: Any, api: FakeApi) -> None:
    page.get_by_label("Prompt", exact=True).fill("a rocket")
    page.get_by_label("Steps", exact=True).fill("31")
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a rocket")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("31")
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("20")
