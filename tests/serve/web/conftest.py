"""Debian's Chromium, driven by playwright; without it these tests are skipped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serve.web.fake_api import FakeApi, serve

BROWSER = os.environ.get("INKWASH_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")

PATIENCE = 30_000  # milliseconds, on a machine where much else is tested
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("the page is tested in Chromium, and there is none")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    state = FakeApi()
    server, state.address = serve(state)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(chromium: Any, api: FakeApi) -> Iterator[Any]:
    with opened(chromium, api.address) as page:
        yield page


@contextmanager
def opened(chromium: Any, address: str) -> Iterator[Any]:
    """The page at 1280 x 800; errors, refused contents and requests of other hosts fail the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on(
        "request",
        lambda request: request.url.startswith((address, "data:", "blob:")) or wrong.append(request.url),
    )
    page.wrong = wrong
    page.wrong_allowed = None  # a text of errors that the test provokes
    page.goto(address)
    page.get_by_role("button", name="Draw").wait_for()
    yield page
    context.close()
    assert not [text for text in wrong if not (page.wrong_allowed and page.wrong_allowed in text)]
