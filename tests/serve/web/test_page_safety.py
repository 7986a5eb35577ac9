"""No text of the server, a file or a user runs; no request leaves the server; the token is asked for."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.serve.web.fake_api import CSP, FakeApi
from tests.serve.web.test_page_pictures import drop

CALL = "window.hacked=1"
TAGS = ("img src=x onerror", "svg onload", "body onload", "iframe onload src=/", "video autoplay onloadstart src=x",
        "audio autoplay onloadstart src=x", "details open ontoggle", "input autofocus onfocus", "marquee onstart",
        "select autofocus onfocus", "textarea autofocus onfocus", "object data=x onerror", "embed src=/ onload",
        "style onload", "link rel=stylesheet href=/style/base.css onload", "math onclick", "a href=# onfocus autofocus",
        "button autofocus onfocus", "meter onmouseover", "dialog open onclose")  # fmt: skip
WRAPPED = [
    f"{before}<{tag}={CALL}>" for tag in TAGS for before in ("", '">', "'>", "</textarea></title></script>")
]
PAYLOADS = [
    *WRAPPED,
    *(f"{before}<script>{CALL}</script>" for before in ("", '"', "'", "-->", "]]>", "</style>")),
    *(f"{scheme}{CALL}" for scheme in ("javascript:", "JaVaScRiPt:", "java\tscript:", " javascript:", "\x01javascript:")),
    "data:text/html,<script>parent.hacked=1</script>", f'<iframe srcdoc="<script>parent.{CALL[7:]}</script>">',
    f"<base href=javascript:{CALL}//>", f"<form action=javascript:{CALL}><button autofocus>x",
    "{{constructor.constructor('hacked=1')()}}",
    f"${{{CALL}}}", f'" onfocus="{CALL}" autofocus="', f"' onmouseover='{CALL}", f"`-{CALL}-`",
]  # fmt: skip


def fill(api: FakeApi, payloads: list[str]) -> None:
    """Put the payloads wherever the server, its folders or a picture can bring a text."""
    text = "\n".join(payloads)
    for k, payload in enumerate(payloads):
        request = {"prompt": payload, payload: payload, "seed": k}
        job = api.add({"task": "text_to_image", "model": payload, "request": request})
        api.run(job["id"])
        job["pictures"][0]["parameters"] = payload
        if k % 3 == 1:
            job |= {"state": "failed", "error": payload}
        if k % 3 == 2:
            job |= {"state": "queued", "position": k}
            job["pictures"][0]["thumbnail"] = job["pictures"][0]["url"] = payload
        model = {"name": payload, "title": payload, "hash": payload, "tasks": ["text_to_image"], "size": 1}
        api.models.append(model)
    files = [{"name": payload, "triggers": [payload]} for payload in payloads]
    styles = [{"name": payload, "prompt": payload} for payload in payloads]
    api.extras |= {
        "loras": files,
        "embeddings": files,
        "wildcards": payloads,
        "styles": styles,
        "upscalers": payloads,
    }
    api.recipe = {
        "task": "text_to_image",
        "request": {"prompt": text, text: text},
        "images": [],
        "notes": payloads,
    }
    for task in api.tasks:
        task["title"] += payloads[0]
        task["summary"] += text
    properties = api.tasks[0]["schema"]["properties"]
    properties["prompt"]["examples"] = payloads
    properties["steps"] |= {"title": payloads[0], "description": text}
    odd = {"title": payloads[1], "description": text, "group": payloads[2], "enum": payloads, "default": text}
    properties["odd"] = {"type": "string"} | odd


@pytest.mark.parametrize("policy", [CSP, None], ids=["policy", "no policy"])
def test_a_hundred_payloads_run_nowhere(page: Any, api: FakeApi, policy: str | None) -> None:
    """Also without the Content-Security-Policy, which alone would stop them."""
    assert len(PAYLOADS) >= 100
    api.policy = policy
    fill(api, PAYLOADS)
    page.wrong_allowed = "Failed to load resource"  # pictures without a place
    page.reload()
    page.get_by_role("button", name="Draw").wait_for()
    for ask in page.locator(".ask").all()[:8]:
        ask.click()
    page.get_by_role("button", name="Add LoRA, style").click()
    expect(page.get_by_role("dialog").get_by_role("button", name=PAYLOADS[0], exact=True)).to_have_count(4)
    page.keyboard.press("Escape")
    drop(page, name=PAYLOADS[0])
    expect(page.get_by_role("dialog").locator(".note")).to_have_count(len(PAYLOADS))
    page.get_by_role("button", name="Use settings").click()
    for name in ("Gallery", "Queue"):
        page.get_by_role("link", name=name).click()
        page.wait_for_timeout(300)
    page.get_by_role("link", name="Gallery").click()
    page.locator("ul.gallery button").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Recipe").click()
    page.keyboard.press("Escape")
    api.refusal = {"message": PAYLOADS[0], "field": "steps"}
    page.get_by_role("link", name="Draw").click()
    page.get_by_role("button", name="Draw").click()
    page.get_by_label("Prompt", exact=True).fill(PAYLOADS[0])
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 2  # the page's own
    assert not any("inline event handler" in text for text in page.wrong)
    if policy is None:  # in a page that trusts texts they do run
        page.evaluate("text => (document.body.innerHTML = text)", PAYLOADS[0])
        page.wait_for_function("window.hacked")


def test_the_page_keeps_its_policy_with_nothing_inline(page: Any, api: FakeApi) -> None:
    assert "unsafe" not in CSP
    found = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap((node) => node.getAttributeNames())"
        ".filter((name) => /^(on|style$)/.test(name))"
    )
    assert set(found) <= {"style"}  # set by setProperty, which the policy lets through
    assert (
        page.evaluate(
            "fetch('/').then((answer) => answer.text()).then((text) => / style=| on[a-z]+=/.test(text))"
        )
        is False
    )


def test_a_server_with_a_token_asks_for_it_once(chromium: Any, api: FakeApi) -> None:
    api.token = "open sesame"
    context = chromium.new_context()
    page = context.new_page()
    page.goto(api.address)
    page.get_by_label("Token", exact=True).fill("wrong")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_text("the token is wrong")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("open sesame")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("button", name="Draw")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    context.close()


def test_what_happens_while_the_connection_is_lost_is_made_up_for(page: Any, api: FakeApi) -> None:
    job = api.add({"task": "text_to_image", "request": {"prompt": "a lamp", "seed": 3}})
    page.reload()
    expect(page.get_by_text("Waiting")).to_be_visible()
    page.wait_for_function(
        "performance.getEntriesByType('resource').some((entry) => entry.name.endsWith('/api/queue'))"
    )
    api.hang_up()
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    api.run(job["id"])
    expect(page.locator(".stage img.large")).to_have_attribute("alt", "a lamp")
    expect(page.get_by_text("The server does not answer.")).to_be_hidden()
