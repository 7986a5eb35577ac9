"""The guide's pictures of the page: a server of its own is started, used as a person would, and photographed."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pictures"
PORT = 7869
PROMPTS = (
    "a rocket, twemoji style",
    "a blue book left of a yellow star on a green background",
    "a pizza, noto style",
    "a taxi, noto style",
    "a penguin, noto style",
    "a red apple, noto style",
)


def photograph(page: Any, name: str) -> None:
    """Save what is seen, in 256 colours."""
    page.locator(".panel").evaluate("panel => (panel.scrollTop = 0)")
    page.wait_for_timeout(600)  # until the tokens are counted
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    image.quantize(256, Image.Quantize.FASTOCTREE).save(PICTURES / name, optimize=True)


def draw(page: Any, prompt: str, seed: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Draw").click()
    page.get_by_text(f"seed {seed}").wait_for(timeout=120_000)
    page.locator(".stage img.large").evaluate("image => image.decode()")


def paint(page: Any) -> None:
    """Send the picture to inpainting and paint over its middle."""
    page.get_by_label("Send to").select_option("inpaint")
    page.get_by_label("Size of the brush, percent").fill("34")
    box = page.locator("canvas.paint").bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.6 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_label("Prompt", exact=True).fill("a pizza, noto style")


def main(address: str, browser: Any) -> None:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(address)
    page.get_by_label("CFG scale", exact=True).fill("2")
    page.get_by_label("Sampler", exact=True).select_option("euler_ancestral")
    for seed, prompt in enumerate(PROMPTS, 1):
        draw(page, prompt, seed)
    photograph(page, "page.png")
    page.emulate_media(color_scheme="dark")
    paint(page)
    photograph(page, "page-inpaint.png")
    phone = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=1).new_page()
    phone.goto(address)
    phone.locator(".stage img.large").evaluate("image => image.decode()")
    photograph(phone, "page-phone.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as state, sync_playwright() as driver:
        command = [sys.executable, "-m", "inkwash", "serve", "--port", str(PORT), "--state", state]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            subprocess.run(["curl", "-sf", "--retry", "60", "--retry-connrefused", "--retry-delay", "1",
                            f"http://127.0.0.1:{PORT}/health"], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
            main(
                f"http://127.0.0.1:{PORT}",
                driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox"]),
            )
        finally:
            server.terminate()
            server.wait()
