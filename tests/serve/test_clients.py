"""Requests of other programs as they go over the wire, replayed: what each one sends and what it reads of the answer."""

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.serve.test_comfy import Client, graph


def picture(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def b64(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# Open WebUI


@pytest.fixture
def webui(server) -> Any:
    """Its header is empty where no key was set."""
    with httpx.Client(base_url=server.url, headers={"authorization": ""}, timeout=120) as client:
        yield client


def test_open_webui_by_automatic1111(webui) -> None:
    options = webui.get("/sdapi/v1/options").raise_for_status().json()
    models = [
        (m["title"], m["model_name"]) for m in webui.get("/sdapi/v1/sd-models").raise_for_status().json()
    ]
    assert options["sd_model_checkpoint"] in [title for title, _ in models]
    options["sd_model_checkpoint"] = models[0][0]
    webui.post("/sdapi/v1/options", json=options).raise_for_status()  # the whole object, one value changed
    body = {
        "prompt": "a fox",
        "batch_size": 2,
        "width": 128,
        "height": 128,
        "steps": 2,
        "negative_prompt": "blue",
    }
    answer = webui.post("/sdapi/v1/txt2img", json=body).raise_for_status().json()
    assert [picture(text).size for text in answer["images"]] == [(128, 128)] * 2
    assert json.loads(answer["info"])["negative_prompt"] == "blue"


def test_open_webui_by_openai(webui) -> None:
    body = {"model": "mini", "prompt": "a fox", "n": 1, "size": "128x128", "response_format": "b64_json"}
    made = webui.post("/v1/images/generations", json=body).raise_for_status().json()["data"][0]["b64_json"]
    files = [("image", ("image.png", base64.b64decode(made), "image/png"))]
    form = {
        "model": "mini",
        "prompt": "a red fox",
        "n": "1",
        "size": "128x128",
        "response_format": "b64_json",
    }
    edited = (
        webui.post("/v1/images/edits", data=form | {"background": "auto"}, files=files)
        .raise_for_status()
        .json()
    )
    assert picture(edited["data"][0]["b64_json"]).size == (128, 128)
    several = [("image[]", file) for _, file in files * 2]
    both = webui.post("/v1/images/edits", data=form, files=several).raise_for_status().json()
    assert len(both["data"]) == 2
    linked = webui.post("/v1/images/generations", json=body | {"response_format": "url"}).json()["data"][0][
        "url"
    ]
    assert webui.get(linked).headers["content-type"] == "image/png"


COMFY_OF_WEBUI = {"node_6": {"text": "a fox"}, "node_5": {"width": 128, "height": 128, "batch_size": 1}}


def test_open_webui_by_comfyui(server, webui) -> None:
    """It writes prompt, size, steps and seed into a workflow, waits on the socket, and reads the history."""
    nodes = COMFY_OF_WEBUI | {"node_3": {"steps": 2, "seed": 5}, "node_4": {"ckpt_name": "mini"}}
    assert (
        "mini"
        in webui.get("/object_info").json()["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    )
    images, messages = Client(server).images(graph(**nodes))
    assert Image.open(BytesIO(images["9"][0])).size == (128, 128)
    assert json.loads(next(m for m in messages if isinstance(m, str)))["type"] == "status"


# SillyTavern


SILLY = {
    "url": "http://localhost:7860", "auth": "", "prompt": "a fox", "negative_prompt": "blue", "sampler_name": "Euler a",
    "scheduler": "Karras", "steps": 2, "cfg_scale": 7, "width": 128, "height": 128, "restore_faces": False,
    "enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.7, "hr_second_pass_steps": 0,
    "seed": 3, "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
    "override_settings_restore_afterwards": True, "clip_skip": 2, "save_images": True, "send_images": True,
    "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip


def test_silly_tavern_by_automatic1111(server) -> None:
    assert server.call("OPTIONS", "/sdapi/v1/options").status_code in (200, 204, 405)
    lists = ("samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models", "sd-vae")
    names = {path: server.get(f"/sdapi/v1/{path}") for path in lists}
    assert {"name"} <= names["samplers"][0].keys()
    assert "Latent" in [mode["name"] for mode in names["latent-upscale-modes"]]
    body = {"sd_model_checkpoint": names["sd-models"][0]["title"]}
    assert server.post("/sdapi/v1/options", body) == {}
    answer = server.post("/sdapi/v1/txt2img", SILLY)
    assert picture(answer["images"][0]).size == (192, 192)
    told = server.get("/sdapi/v1/progress")
    assert (told["progress"], told["state"]["job_count"]) == (0, 0)
    assert server.post("/sdapi/v1/interrupt") == {}


def test_silly_tavern_by_stable_diffusion_cpp(server) -> None:
    """It asks by OPTIONS whether the server is there, lists the models, and draws as before."""
    assert server.call("OPTIONS", "/v1/images/generations").status_code in (200, 204)
    assert server.get("/v1/models")["data"][0]["id"]
    seedless = {key: value for key, value in SILLY.items() if key != "seed"} | {"enable_hr": False}
    assert picture(server.post("/sdapi/v1/txt2img", seedless)["images"][0]).size == (128, 128)


# Krita's plugins


KRITA = {
    "prompt": "a fox", "negative_prompt": "", "sampler_name": "Euler a", "steps": 2, "cfg_scale": 7, "width": 128,
    "height": 128, "batch_size": 1, "n_iter": 1, "seed": 3, "tiling": False, "restore_faces": False, "subseed": -1,
    "subseed_strength": 0, "eta": 0, "override_settings": {}, "script_name": None, "script_args": [], "alwayson_scripts": {},
    "s_noise": 1, "save_images": False, "send_images": True, "include_init_images": False,
}  # fmt: skip


def test_krita_paints_over_a_selection(server) -> None:
    """The layer and the selection come as data URLs; the answer is laid over the canvas."""
    options = server.get("/sdapi/v1/options")
    assert options["sd_model_checkpoint"]
    layer = Image.effect_noise((128, 128), 60).convert("RGB")
    mask = Image.new("L", layer.size)
    mask.paste(255, (32, 32, 96, 96))
    body = KRITA | {
        "init_images": [f"data:image/png;base64,{b64(layer)}"], "mask": f"data:image/png;base64,{b64(mask)}",
        "denoising_strength": 0.8, "inpainting_fill": 1, "inpaint_full_res": False, "inpaint_full_res_padding": 0,
        "inpainting_mask_invert": 0, "mask_blur": 0, "resize_mode": 1, "initial_noise_multiplier": 1,
    }  # fmt: skip
    made = picture(server.post("/sdapi/v1/img2img", body)["images"][0])
    assert made.size == layer.size
    assert made.crop((0, 0, 128, 32)).tobytes() == layer.crop((0, 0, 128, 32)).tobytes()
    assert made.crop((40, 40, 88, 88)).tobytes() != layer.crop((40, 40, 88, 88)).tobytes()
