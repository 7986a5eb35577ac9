"""The page before the real server, where it steers drawings by networks, merges models, and trains."""

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from inkwash.pipeline.annotate import annotate
from tests.serve.conftest import Served, start
from tests.serve.folders import write_models, write_pictures
from tests.serve.test_controls import png
from tests.serve.web.conftest import opened
from tests.support.small_controls import picture

SECONDS = 90_000  # milliseconds


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("page-models")
    write_models(tiny, place / "models")
    write_pictures(place / "data/things")
    folders = ("--models", str(place / "models"), "--data", str(place / "data"))
    running = start(place / "state", *folders, "--model", str(place / "models/tiny"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def page(chromium: Any, server: Any) -> Iterator[Any]:
    with opened(chromium, server.url) as page:
        yield page


def open_group(page: Any, title: str) -> None:
    page.locator("details:visible", has=page.get_by_text(title, exact=True)).locator("> summary").click()


def test_a_control_with_a_hint_that_is_looked_at_first(page: Any, server: Any) -> None:
    page.locator("#field-prompt").fill("a taxi")
    page.locator("#field-steps").fill("2")
    open_group(page, "Control")
    page.get_by_role("button", name="Add a control").click()
    unit = page.get_by_role("group", name="Control 1")
    file = {"name": "scene.png", "mimeType": "image/png", "buffer": png(picture(1))}
    unit.locator("input[type=file]").first.set_input_files(file)
    expect(unit.locator("[data-role=hint] img")).to_be_visible()
    before = unit.locator("[data-role=hint] img").get_attribute("src")
    unit.get_by_label("Make the hint from the picture").select_option("canny")
    expect(unit.locator("[data-role=hint] img")).not_to_have_attribute("src", before)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    unit.get_by_label("Weight", exact=True).fill("0.5")
    with page.expect_response(lambda a: a.request.method == "POST" and a.url.endswith("/api/jobs")) as asked:
        page.get_by_role("button", name="Draw").click()
    job = server.wait(asked.value.json()["id"])
    assert job["state"] == "done", job["error"]
    assert job["request"]["controls"][0]["file"] == "net"
    assert job["request"]["controls"][0]["weight"] == 0.5
    sent = asked.value.request.post_data_json["request"]["controls"][0]["image"]
    seen = Image.open(BytesIO(base64.b64decode(sent.partition(",")[2])))
    assert seen.tobytes() == annotate("canny", picture(1)).tobytes()
    unit.get_by_role("button", name="Remove this control").click()
    expect(unit).to_be_hidden()


def test_controls_are_grouped_by_whether_they_fit_the_model(page: Any, server: Any) -> None:
    open_group(page, "Control")
    page.get_by_role("button", name="Add a control").click()
    unit = page.get_by_role("group", name="Control 1")
    names = unit.get_by_label("Model of the control")
    groups = names.locator("optgroup")
    expect(groups).to_have_count(2)
    listed = {
        group.get_attribute("label"): group.locator("option").all_text_contents() for group in groups.all()
    }
    assert listed.keys() == {"For tiny", "For other models"}
    assert {"net", "union", "reference_only"} <= set(listed["For tiny"])
    assert listed["For other models"] == ["canny", "ip-adapter"]  # which are for mini
    expect(unit.get_by_role("status")).to_be_hidden()
    names.select_option("canny")
    expect(unit.get_by_role("status")).to_contain_text("mini-canny is for another model")
    page.locator("#model").select_option("mini")
    expect(unit.get_by_role("status")).to_be_hidden()
    expect(names).to_have_value("canny")
    expect(groups.first).to_have_attribute("label", "For mini")
    assert "canny" in groups.first.locator("option").all_text_contents()
    assert {"net", "union"} <= set(groups.last.locator("option").all_text_contents())
    report = Axe().run(page)
    assert not [one for one in report.response["violations"] if one["impact"] in ("serious", "critical")]
    page.locator("#model").select_option("tiny")
    expect(unit.get_by_role("status")).to_be_visible()


def test_a_merge_is_started_and_its_model_is_there_to_draw_with(page: Any, server: Any) -> None:
    page.get_by_role("link", name="Merge").click()
    form = page.locator("#merge form")
    form.get_by_label("Name", exact=True).fill("between")
    form.get_by_role("button", name="Add tiny to Models").click()
    form.get_by_role("button", name="Add other to Models").click()
    form.get_by_label("Alpha", exact=True).fill("0.25")
    form.get_by_role("button", name="Merge", exact=True).click()
    run = page.locator("#merge article")
    expect(run).to_contain_text("between: Done", timeout=SECONDS)
    expect(run.get_by_label("Log")).to_contain_text("wrote between.safetensors")
    form.get_by_role("button", name="Merge", exact=True).click()
    expect(form).to_contain_text("there is already a between")
    page.wrong_allowed = "422"
    page.locator("#model").select_option(label="Look for new ones")
    expect(page.locator("#model option", has_text="between")).to_be_attached(timeout=SECONDS)


def fill_training(page: Any, name: str, steps: int) -> Any:
    page.get_by_role("link", name="Train").click()
    form = page.locator("#train form")
    form.get_by_label("Name", exact=True).fill(name)
    form.get_by_role("button", name="Add things to Data").click()
    form.get_by_label("Model", exact=True).select_option("tiny")
    form.get_by_label("Steps", exact=True).fill(str(steps))
    form.get_by_label("Sample every", exact=True).fill("10")
    open_group(page, "Data")
    for label, value in (("Resolution", "32x32"), ("Bucket step", "8"), ("Bucket min", "16")):
        form.get_by_label(label, exact=True).fill(value)
    open_group(page, "Saving and watching")
    form.get_by_label("Sample steps", exact=True).fill("1")
    form.get_by_label("Log every", exact=True).fill("1")
    return form


def test_a_training_is_started_and_its_losses_and_samples_are_watched(page: Any, server: Any) -> None:
    form = fill_training(page, "things", 40)
    form.get_by_role("button", name="Train", exact=True).click()
    run = page.locator("#train article")
    expect(run).to_contain_text("things: Done", timeout=SECONDS)
    expect(run.get_by_role("img", name="Loss")).to_be_visible()
    assert len(run.locator("polyline").get_attribute("points").split()) == 40
    expect(run.get_by_alt_text("Sample 4")).to_be_visible()
    expect(run.get_by_label("Log")).to_contain_text("wrote loras/things.safetensors")
    page.reload()
    page.get_by_role("link", name="Train").click()
    expect(page.locator("#train article").get_by_role("img", name="Loss")).to_be_visible()
    serious = [
        found["id"]
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_training_is_cancelled_and_goes_on(page: Any, server: Any) -> None:
    form = fill_training(page, "longer", 100_000)
    form.get_by_role("button", name="Train", exact=True).click()
    run = page.locator("#train article").first
    expect(run).to_contain_text("of 100000", timeout=SECONDS)
    run.get_by_role("button", name="Cancel").click()
    expect(run).to_contain_text("Cancelled", timeout=SECONDS)
    run.get_by_role("button", name="Go on").click()
    first = page.locator("#train article").first
    expect(first).to_contain_text("of 100000", timeout=SECONDS)
    first.get_by_role("button", name="Cancel").click()
    expect(first).to_contain_text("Cancelled", timeout=SECONDS)


def test_what_is_wrong_stands_by_its_field(page: Any) -> None:
    form = fill_training(page, "wrong", 10)
    form.get_by_label("Bucket min", exact=True).fill("4")
    form.get_by_role("button", name="Train", exact=True).click()
    expect(form.locator("#field-train-bucket_min-problem")).to_contain_text("too small")
    page.wrong_allowed = "422"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("Train", "Merge"):
        page.get_by_role("link", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
