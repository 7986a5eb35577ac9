"""Graphs of tiles with a sampler each, as Krita's plugin builds them for its tiled upscaling."""

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from inkwash.pipeline.controls import Control
from inkwash.pipeline.tiles import TileLayout
from inkwash.pipeline.upscaler import open_upscaler
from tests.serve.test_controls import data_url
from tests.serve.test_krita import OPTIONS, Graph, Plugin, sampled

SETTINGS = {
    "strength": 0.4,
    "step_rule": "exact",
    "sampler": "dpmpp_2m",
    "schedule": "normal",
    "prompt_language": "comfy",
}


@pytest.fixture
def plugin(server: Any) -> Plugin:
    return Plugin(server)


@pytest.fixture(scope="module")
def canvas() -> Image.Image:
    return Image.effect_noise((96, 128), 60).convert("RGB")


def tiled(
    image: list[Any], graph: Graph, size: tuple[int, int], tile: int = 72, **settings: int
) -> list[Any]:
    """The plugin's nodes for a picture of (width, height); the merged picture."""
    numbers = {"min_tile_size": tile, "padding": 16, "blending": 8, "multiple": 8} | settings
    layout = graph.add("ETN_TileLayout", image=image, **numbers)
    merged = image
    for k in range(TileLayout(size[::-1], *numbers.values()).num):
        part = [graph.add("ETN_ExtractImageTile", image=image, layout=[layout, 0], index=k), 0]
        mask = [graph.add("ETN_GenerateTileMask", layout=[layout, 0], index=k), 0]
        made = sampled(graph, "pixels", start=6, pixels=part)
        sampler, encoder = (last(graph, kind) for kind in ("SamplerCustomAdvanced", "VAEEncode"))
        latent = graph.add("SetLatentNoiseMask", samples=[encoder, 0], mask=mask)
        graph.root[sampler]["inputs"]["latent_image"] = [latent, 0]
        merged = [graph.add("ETN_MergeImageTile", layout=[layout, 0], index=k, tile=made, image=merged), 0]
    return merged


def last(graph: Graph, kind: str) -> str:
    return [id for id, node in graph.root.items() if node["class_type"] == kind][-1]


def by_hand(model: Any, canvas: Image.Image) -> Image.Image:
    """Each tile inpainted with its mask, and put over the others with its soft edge."""
    layout, made = TileLayout(canvas.size[::-1], 72, 16, 8, 8), canvas
    for k in range(layout.num):
        (tile,) = model.inpaint(
            image=layout.cut(canvas, k), mask=layout.mask(k, False), mask_blur=0, blend_mask=True, **OPTIONS, **SETTINGS
        )  # fmt: skip
        made = layout.merged(made, k, tile)
    return made


def test_tiles_with_a_sampler_each_are_one_request(plugin: Plugin, model: Any, canvas: Image.Image) -> None:
    graph = Graph()
    image = [graph.add("ETN_LoadImageCache", id=plugin.put(canvas)), 0]
    graph.add("ETN_SaveImageCache", images=tiled(image, graph, canvas.size), format="PNG")
    assert sum(node["class_type"] == "SamplerCustomAdvanced" for node in graph.root.values()) == 6
    (made,) = plugin.run(graph)
    assert made.tobytes() == by_hand(model, canvas).tobytes()
    recipe = json.loads(made.info["inkwash"])
    assert (recipe["task"], recipe["request"]["tile"]) == ("image_to_image", 72)
    tiles = {"tile": 72, "tile_padding": 16, "tile_blending": 8}
    (ours,) = model.image_to_image(image=canvas, **OPTIONS, **SETTINGS, **tiles)
    assert made.tobytes() == ours.tobytes()


def test_a_picture_is_enlarged_by_a_network_before_and_resized_after(
    plugin: Plugin, model: Any, server: Any, canvas: Image.Image
) -> None:
    small = canvas.resize((24, 32))
    graph = Graph()
    loaded = [graph.add("ETN_LoadImageCache", id=plugin.put(small)), 0]
    network = graph.add("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")
    larger = [graph.add("ImageUpscaleWithModel", upscale_model=[network, 0], image=loaded), 0]
    graph.add(
        "ETN_SendImageWebSocket",
        images=[
            graph.add(
                "ImageScale", image=tiled(larger, graph, (96, 128)), upscale_method="lanczos", width=90, height=120,
                crop="disabled",
            ),
            0,
        ],
        format="PNG",
    )  # fmt: skip
    (made,) = plugin.run(graph)
    path = server.state.parent / "models/ESRGAN/RealESRGAN_x4plus.safetensors"
    enlarged = open_upscaler(path).enlarged(small, (96, 128))
    wanted = by_hand(model, enlarged).resize((90, 120), Image.Resampling.LANCZOS)
    assert made.tobytes() == wanted.tobytes()


def test_a_control_sees_the_part_of_its_picture_that_a_tile_is(
    plugin: Plugin, model: Any, server: Any, canvas: Image.Image
) -> None:
    edges = Image.fromarray(cv2.Canny(cv2.GaussianBlur(np.asarray(canvas), (9, 9), 0), 20, 60)).convert("RGB")
    graph = Graph()
    image, hint = ([graph.add("ETN_LoadImageCache", id=plugin.put(each)), 0] for each in (canvas, edges))
    network = graph.add("ControlNetLoader", control_net_name="canny")
    merged = tiled(image, graph, canvas.size)
    (layout,) = (id for id, node in graph.root.items() if node["class_type"] == "ETN_TileLayout")
    del graph.root[layout]["inputs"]["multiple"]  # as older versions of the plugin
    guiders = [node["inputs"] for node in graph.root.values() if node["class_type"] == "CFGGuider"]
    parts = []
    for k, guider in enumerate(guiders):
        parts.append(graph.add("ETN_ExtractImageTile", image=hint, layout=[layout, 0], index=k))
        applied = graph.add(
            "ControlNetApplyAdvanced", positive=guider["positive"], negative=guider["negative"], control_net=[network, 0],
            image=[parts[-1], 0], strength=0.8, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        guider.update(positive=[applied, 0], negative=[applied, 1])
    for node in graph.root.values():
        if node["class_type"] == "VAEEncode":
            node["class_type"] = "VAEEncodeTiled"
    graph.add("ETN_SaveImageCache", images=merged, format="PNG")
    (made,) = plugin.run(graph)
    control = Control(file="canny", image=edges, annotator="none", weight=0.8)
    tiles = {"tile": 72, "tile_padding": 16, "tile_blending": 8}
    (ours,) = model.image_to_image(image=canvas, **OPTIONS, **SETTINGS, **tiles, controls=[control])
    assert made.tobytes() == ours.tobytes() != by_hand(model, canvas).tobytes()
    graph.root[parts[1]]["inputs"]["index"] = 2
    answer = server.call("POST", "/prompt", json={"prompt": graph.root})
    assert answer.status_code == 400 and "tile 1 must see its part of the control's picture" in answer.text


@pytest.mark.parametrize("sent", ["ETN_SaveImageCache", "SaveImage"])
def test_a_picture_is_enlarged_without_a_sampler(
    plugin: Plugin, server: Any, canvas: Image.Image, sent: str
) -> None:
    graph = Graph()
    network = graph.add("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")
    loaded = [graph.add("ETN_LoadImageCache", id=plugin.put(canvas)), 0]
    larger = [graph.add("ImageUpscaleWithModel", upscale_model=[network, 0], image=loaded), 0]
    path = server.state.parent / "models/ESRGAN/RealESRGAN_x4plus.safetensors"
    wanted = open_upscaler(path).enlarged(canvas, (384, 512))
    if sent == "SaveImage":
        graph.add(sent, images=larger, filename_prefix="large")
        id = server.post("/prompt", {"prompt": graph.root})["prompt_id"]
        assert server.wait(id)["state"] == "done"
        (output,) = server.get(f"/history/{id}")[id]["outputs"].values()
        made = Image.open(BytesIO(server.call("GET", "/view", params=output["images"][0]).content))
    else:
        scaled = {"upscale_method": "lanczos", "width": 192, "height": 256, "crop": "disabled"}
        graph.add(sent, images=[graph.add("ImageScale", image=larger, **scaled), 0], format="PNG")
        (made,) = plugin.run(graph)
        wanted = wanted.resize((192, 256), Image.Resampling.LANCZOS)
    assert made.tobytes() == wanted.tobytes()


def test_an_upscaler_is_a_jobs_model_and_says_its_tiles(server: Any, canvas: Image.Image) -> None:
    image = {"image": data_url(canvas)}
    body = {"prompt": "", "factor": 2.0}
    job = server.wait(server.job(body, "upscale", images=image, model="RealESRGAN_x4plus")["id"])
    assert job["state"] == "done", job["error"]
    made = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
    assert made.size == (192, 256)
    assert json.loads(made.info["inkwash"])["model"]["name"] == "RealESRGAN_x4plus"
    again = server.wait(server.post(f"/api/jobs/{job['id']}/retry")["id"])
    assert again["state"] == "done" and again["model"] == job["model"] == "RealESRGAN_x4plus.safetensors"
    large = {"image": data_url(Image.new("RGB", (4096, 8)))}
    job = server.wait(server.job({"prompt": ""}, "upscale", images=large, model="RealESRGAN_x4plus")["id"])
    assert job["state"] == "failed" and job["error"] == "16384x32 is not 1 to 8192 pixels a side"
    for task, model in (("text_to_image", "RealESRGAN_x4plus"), ("upscale", "nothing")):
        answer = server.call(
            "POST",
            "/api/jobs",
            json={"task": task, "request": {"prompt": ""}, "images": image, "model": model},
        )
        assert answer.status_code in (404, 422)


def changed(kind: str, **inputs: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        graph.root[last(graph, kind)]["inputs"] |= inputs

    return change


def extra_output(graph: Graph) -> None:
    graph.add("PreviewImage", images=[last(graph, "VAEDecode"), 0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("CLIPTextEncode", text="red"), "tile 5 is drawn by other settings than the first one"),
        (changed("RandomNoise", noise_seed=8), "tile 5 is drawn by other settings than the first one"),
        (changed("ETN_ExtractImageTile", index=0), "tile 5 must be drawn of its part of the picture"),
        (changed("ETN_GenerateTileMask", index=0), "tile 5 must be drawn of its part of the picture"),
        (changed("ETN_MergeImageTile", index=4), "all 6 tiles must be merged here, in their order"),
        (changed("ETN_TileLayout", multiple=4), "multiple must be 8 here"),
        (extra_output, "one graph draws one batch here"),
    ],
)
def test_tiles_that_one_request_can_not_mean_are_refused(
    plugin: Plugin, server: Any, canvas: Image.Image, change: Callable[[Graph], None], said: str
) -> None:
    graph = Graph()
    image = [graph.add("ETN_LoadImageCache", id=plugin.put(canvas)), 0]
    graph.add("ETN_SaveImageCache", images=tiled(image, graph, canvas.size), format="PNG")
    change(graph)
    answer = server.call("POST", "/prompt", json={"prompt": graph.root})
    assert answer.status_code == 400 and said in answer.text
