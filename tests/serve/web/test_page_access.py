"""Keyboard, screen readers, phones, colours, and the time to the first paint."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.serve.web.fake_api import FakeApi
from tests.serve.web.test_page_drawing import choose, pick
from tests.serve.web.test_page_pictures import drop

VIEWS = ("draw", "gallery", "queue")


def violations(page: Any) -> list[str]:
    """The serious and critical findings of axe-core."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html']} ({node['failureSummary']})"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(page: Any, api: FakeApi, width: int, colours: str) -> None:
    for k in range(5):
        job = api.add({"task": "text_to_image", "request": {"prompt": f"apple {k}", "seed": k}})
        if k < 3:
            api.run(job["id"])
    api.run("job4", finish=False)
    api.jobs["job5"] |= {"state": "failed", "error": "out of memory"}
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=colours)
    page.reload()
    page.locator(".strip button").first.wait_for()
    page.evaluate("document.querySelectorAll('summary, .ask').forEach((node) => node.click())")
    assert violations(page) == []
    for view in VIEWS[1:]:
        page.goto(f"{api.address}/#{view}")
        page.wait_for_timeout(300)
        assert violations(page) == [], view
    page.goto(f"{api.address}/#gallery")
    page.locator("ul.gallery button").first.click()
    page.get_by_role("button", name="Recipe", exact=True).click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.goto(f"{api.address}/#draw")
    pick(page, "Inpaint")
    page.get_by_role("button", name="Add LoRA, style").click()
    assert violations(page) == []


def test_a_picture_is_drawn_by_the_keyboard_alone(page: Any, api: FakeApi) -> None:
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "field-prompt":
            break
    page.keyboard.type("a lamp")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Waiting")).to_be_visible()
    assert api.bodies[0]["request"]["prompt"] == "a lamp"


def test_the_first_tab_leads_past_the_bar(page: Any, api: FakeApi) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(page: Any, api: FakeApi, view: str) -> None:
    api.models[0]["title"] = "a-model-with-a-very-long-name-that-goes-on-and-on-v1.5-pruned-emaonly-fp16"
    for k in range(12):
        job = api.add({"task": "text_to_image", "request": {"prompt": "an_unbroken_prompt" * 30, "seed": k}})
        if k % 2:
            api.run(job["id"])
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{api.address}/#{view}")
    page.reload()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.get_by_role("navigation")).to_be_in_viewport()


def test_the_canvas_and_its_tools_fit_a_phone(page: Any, api: FakeApi) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    pick(page, "Inpaint")
    choose(page, "image")
    page.get_by_role("button", name="New layer").click()
    page.get_by_label("Soft mask", exact=True).check()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for tool in page.locator(".editor :is(button, input, label):visible").all():
        box = tool.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_no_label_is_cut_off(page: Any, api: FakeApi) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    cut = "node => node.scrollWidth > node.clientWidth + 1"
    for label in page.locator(".field-head label:visible, .axis .label:visible").all():
        assert not label.evaluate(cut), label.text_content()


def test_the_colours_are_chosen_and_kept(page: Any, api: FakeApi) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    for scheme, dark in (("dark", "true"), ("light", "false")):  # the system's, until one is chosen
        page.emulate_media(color_scheme=scheme)
        expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", dark)
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark
    expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "true")


def test_a_dialog_gives_the_focus_back(page: Any, api: FakeApi) -> None:
    opener = page.get_by_role("button", name="Add LoRA, style")
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Search")).to_be_focused()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    page.wrong_allowed = "422"
    drop(page)
    expect(page.get_by_role("dialog")).to_be_visible()


@pytest.mark.full  # a time, which other tests on the same machine would change
def test_the_first_paint_comes_within_half_a_second(page: Any, api: FakeApi) -> None:
    paints = "performance.getEntriesByType('paint').map((entry) => [entry.name, entry.startTime])"
    times = []
    for _ in range(5):
        page.reload()
        page.wait_for_function(f"{paints}.length > 1")
        times.append(dict(page.evaluate(paints))["first-contentful-paint"])
    assert sorted(times)[2] < 500
