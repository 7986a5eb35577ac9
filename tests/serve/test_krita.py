"""Krita's plugin of ComfyUI, replayed: what it asks as it connects, and graphs as it builds them."""

import base64
import json
import struct
import uuid
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from websockets.sync.client import connect

OPTIONS = {"prompt": "a red taxi", "negative_prompt": "blue", "steps": 4, "cfg_scale": 5.0, "seed": 7}


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Graph:
    """Nodes by number, as the plugin's builder counts them."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {}

    def add(self, kind: str, **inputs: Any) -> str:
        id = str(len(self.root) + 1)
        self.root[id] = {"class_type": kind, "inputs": inputs}
        return id


def sampled(graph: Graph, latent: str, start: int = 0, scheduler: str = "normal", **loader: Any) -> list[Any]:
    """The plugin's sampler, which has a node for each of its settings; the decoded picture."""
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name="mini")
    positive = graph.add("CLIPTextEncode", clip=[checkpoint, 1], text=OPTIONS["prompt"])
    negative = graph.add("CLIPTextEncode", clip=[checkpoint, 1], text=OPTIONS["negative_prompt"])
    if latent == "pixels":
        latent = graph.add("VAEEncode", vae=[checkpoint, 2], **loader)
    guider = graph.add(
        "CFGGuider",
        model=[checkpoint, 0],
        positive=[positive, 0],
        negative=[negative, 0],
        cfg=OPTIONS["cfg_scale"],
    )
    sigmas = [
        graph.add(
            "BasicScheduler",
            model=[checkpoint, 0],
            scheduler=scheduler,
            steps=OPTIONS["steps"] + start,
            denoise=1.0,
        ),
        0,
    ]
    if start:
        sigmas = [graph.add("SplitSigmas", sigmas=sigmas, step=start), 1]
    noise = graph.add("RandomNoise", noise_seed=OPTIONS["seed"])
    select = graph.add("KSamplerSelect", sampler_name="dpmpp_2m")
    sampler = graph.add(
        "SamplerCustomAdvanced",
        noise=[noise, 0],
        guider=[guider, 0],
        sampler=[select, 0],
        sigmas=sigmas,
        latent_image=[latent, 0],
    )
    return [graph.add("VAEDecode", vae=[checkpoint, 2], samples=[sampler, 1]), 0]


class Plugin:
    """The plugin's client: pictures are put by the CRC of their bytes, results come by the socket or by HTTP."""

    def __init__(self, server: Any):
        self.server, self.id = server, str(uuid.uuid4())

    def put(self, image: Image.Image) -> str:
        data = png(image)
        id = f"{zlib.crc32(data):08x}"
        headers = {"Content-Type": "application/octet-stream"}
        self.server.call("PUT", f"/api/etn/image/{id}", content=data, headers=headers).raise_for_status()
        return id

    def run(self, graph: Graph) -> list[Image.Image]:
        job, images = str(uuid.uuid4()), []
        with connect(f"ws://127.0.0.1:{self.server.port}/ws?clientId={self.id}") as socket:
            body = {"prompt": graph.root, "client_id": self.id, "prompt_id": job}
            assert self.server.post("/prompt", body)["prompt_id"] == job
            while True:
                message = socket.recv(60)
                if isinstance(message, bytes):
                    if struct.unpack(">II", message[:8]) == (1, 2):
                        images.append(Image.open(BytesIO(message[8:])))
                    continue
                told = json.loads(message)
                if told["type"] == "status":
                    continue
                assert told["data"]["prompt_id"] == job
                assert told["type"] != "execution_error", told
                if told["type"] == "executed":
                    for image in told["data"]["output"]["images"]:
                        if image["source"] == "http":
                            answer = self.server.call(
                                "GET", f"/api/etn/image/{image['id']}"
                            ).raise_for_status()
                            images.append(Image.open(BytesIO(answer.content)))
                if told["type"] == "executing" and told["data"]["node"] is None:
                    return images


@pytest.fixture
def plugin(server: Any) -> Plugin:
    return Plugin(server)


@pytest.fixture(scope="module")
def canvas() -> Image.Image:
    return Image.effect_noise((128, 128), 60).convert("RGB")


def test_it_finds_out_what_the_server_has(server: Any) -> None:
    assert server.get("/system_stats")["devices"][0]["name"]
    nodes = server.get("/object_info")
    for kind in ("ETN_LoadImageCache", "ETN_SaveImageCache", "ETN_LoadImageBase64", "ETN_SendImageWebSocket"):
        assert nodes[kind]["input"]["required"]
    models = server.get("/api/etn/model_info/checkpoints?offset=0&limit=8")
    assert models.pop("_meta")["total"] >= len(models) >= 1
    assert models["mini"] == {"base_model": "sd15", "is_inpaint": False, "is_refiner": False}
    assert server.get("/api/etn/model_info/diffusion_models") == {"_meta": {"total": 0}}
    assert server.get("/api/etn/languages") == []
    server.post("/api/etn/workflow/subscribe", {"client_id": "a"})


@pytest.mark.parametrize("kind", ["ETN_SaveImageCache", "ETN_SendImageWebSocket"])
def test_a_picture_is_drawn_and_cut_to_the_canvas(plugin: Plugin, model: Any, kind: str) -> None:
    graph = Graph()
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    made = sampled(graph, latent)
    cut = graph.add("ImageCrop", image=made, x=8, y=0, width=100, height=120)
    graph.add(kind, images=[cut, 0], format="PNG")
    drawn = model.text_to_image(
        **OPTIONS,
        batch_size=2,
        width=128,
        height=128,
        sampler="dpmpp_2m",
        schedule="normal",
        prompt_language="comfy",
    )
    images = plugin.run(graph)
    assert [image.tobytes() for image in images] == [one.crop((8, 0, 108, 120)).tobytes() for one in drawn]


def test_a_result_that_is_sent_as_it_was_drawn_keeps_its_recipe(plugin: Plugin) -> None:
    graph = Graph()
    made = sampled(graph, graph.add("EmptyLatentImage", width=128, height=128, batch_size=1))
    graph.add("ETN_SendImageWebSocket", images=made, format="PNG")
    (image,) = plugin.run(graph)
    assert json.loads(image.info["inkwash"])["request"]["seed"] == OPTIONS["seed"]


@pytest.mark.parametrize("cached", [True, False])
def test_a_canvas_is_refined_from_a_step_on(
    plugin: Plugin, model: Any, canvas: Image.Image, cached: bool
) -> None:
    graph = Graph()
    if cached:
        loader = graph.add("ETN_LoadImageCache", id=plugin.put(canvas))
    else:
        loader = graph.add("ETN_LoadImageBase64", image=base64.b64encode(png(canvas)).decode())
    made = sampled(graph, "pixels", start=6, pixels=[loader, 0])
    graph.add("ETN_SaveImageCache", images=made, format="PNG")
    (image,) = plugin.run(graph)
    (drawn,) = model.image_to_image(
        image=canvas,
        **OPTIONS,
        strength=0.4,
        step_rule="exact",
        sampler="dpmpp_2m",
        schedule="normal",
        prompt_language="comfy",
    )
    assert image.tobytes() == drawn.tobytes()


def test_a_large_canvas_is_drawn_small_enlarged_by_a_network_and_refined(plugin: Plugin, server: Any) -> None:
    graph = Graph()
    small = sampled(graph, graph.add("EmptyLatentImage", width=128, height=128, batch_size=1))
    network = graph.add("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")
    larger = graph.add("ImageUpscaleWithModel", upscale_model=[network, 0], image=small)
    fit = graph.add(
        "ImageScale", image=[larger, 0], upscale_method="lanczos", width=192, height=192, crop="disabled"
    )
    made = sampled(graph, "pixels", start=6, pixels=[fit, 0])
    cut = graph.add("ImageCrop", image=made, x=0, y=0, width=190, height=192)
    graph.add("ETN_SaveImageCache", images=[cut, 0], format="PNG")
    (image,) = plugin.run(graph)
    hires = {"hires": 1.5, "hires_steps": 4, "hires_strength": 0.4, "hires_upscaler": "RealESRGAN_x4plus"}
    size = {
        "width": 128,
        "height": 128,
        "sampler": "dpmpp_2m",
        "schedule": "normal",
        "prompt_language": "comfy",
    }
    job = server.wait(server.job(OPTIONS | size | hires)["id"])
    wanted = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
    assert image.tobytes() == wanted.crop((0, 0, 190, 192)).tobytes()


@pytest.mark.parametrize("cached", [True, False])
def test_a_selection_is_the_opacity_of_what_comes_back(
    plugin: Plugin, canvas: Image.Image, cached: bool
) -> None:
    mask = Image.new("L", canvas.size)
    mask.paste(255, (32, 32, 96, 96))
    graph = Graph()
    loader = graph.add("ETN_LoadImageCache", id=plugin.put(canvas))
    if cached:
        selection = [graph.add("ETN_LoadImageCache", id=plugin.put(mask)), 1]
    else:
        selection = [graph.add("ETN_LoadMaskBase64", mask=base64.b64encode(png(mask)).decode()), 0]
    made = sampled(graph, "pixels", start=2, pixels=[loader, 0])
    masked = graph.add("ETN_ApplyMaskToImage", image=made, mask=selection)
    graph.add("ETN_SaveImageCache", images=[masked, 0], format="PNG")
    (image,) = plugin.run(graph)
    assert image.mode == "RGBA" and image.getchannel("A").tobytes() == mask.tobytes()


def test_a_job_is_taken_out_of_the_queue_by_the_plugins_own_id(server: Any) -> None:
    server.post("/api/queue", {"paused": True})
    try:
        graph, id = Graph(), str(uuid.uuid4())
        graph.add(
            "SaveImage",
            images=sampled(graph, graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)),
        )
        body = {"prompt": graph.root, "client_id": "krita", "prompt_id": id}
        assert server.post("/prompt", body)["prompt_id"] == id
        assert server.call("POST", "/prompt", json=body).status_code == 409
        assert [entry[1] for entry in server.get("/queue")["queue_pending"]] == [id]
        server.call("POST", "/queue", json={"delete": [id]}).raise_for_status()
        assert server.get("/queue")["queue_pending"] == []
        assert server.get(f"/history/{id}")[id]["status"]["completed"] is False
    finally:
        server.post("/api/queue", {"paused": False})


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"ETN_LoadImageCache": {"id": "nothing"}}, "there is no uploaded picture 'id-nothing'"),
        ({"ETN_LoadImageBase64": {"image": "bm90aGluZw=="}}, "not a PNG, JPEG"),
    ],
)
def test_a_picture_that_is_not_there_is_said(server: Any, nodes: dict[str, Any], said: str) -> None:
    graph = Graph()
    ((kind, inputs),) = nodes.items()
    made = sampled(graph, "pixels", start=2, pixels=[graph.add(kind, **inputs), 0])
    graph.add("ETN_SaveImageCache", images=made, format="PNG")
    answer = server.call("POST", "/prompt", json={"prompt": graph.root})
    assert 400 <= answer.status_code < 500 and said in answer.text


def test_another_sites_page_puts_nothing(server: Any, canvas: Image.Image) -> None:
    for origin in ("https://evil.example", "null"):
        answer = server.call("PUT", "/api/etn/image/a", content=png(canvas), headers={"Origin": origin})
        assert answer.status_code == 403
    assert server.call("PUT", "/api/etn/image/a", content=b"nothing").status_code == 422


@pytest.mark.parametrize("id", ["../queue.sqlite", "0123456789abcdef01234567-9-0", "a" * 90, "..%2f.."])
def test_ids_lead_to_no_other_file(server: Any, id: str) -> None:
    assert server.call("GET", f"/api/etn/image/{id}").status_code in (404, 422)
