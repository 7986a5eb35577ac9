"""ComfyUI's dialect, driven as its own example of an API client does, and by graphs of its default workflows."""

import copy
import json
import urllib.parse
import urllib.request
import uuid
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageDraw
from websockets.sync.client import connect

GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "cfg": 8, "denoise": 1, "latent_image": ["5", 0], "model": ["4", 0], "negative": ["7", 0], "positive": ["6", 0],
            "sampler_name": "euler", "scheduler": "normal", "seed": 8566257, "steps": 3,
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mini"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 1, "height": 128, "width": 128}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a red taxi"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "blue"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}  # fmt: skip


def graph(**nodes: Any) -> dict[str, Any]:
    """The default graph with other inputs, as node_3={"seed": 1}, and more nodes."""
    made = copy.deepcopy(GRAPH)
    for key, value in nodes.items():
        id = key.removeprefix("node_")
        if "class_type" in value:
            made[id] = value
        else:
            made[id]["inputs"] |= value
    return made


class Client:
    """ComfyUI's example of a client: queue, listen on the socket until the graph has ended, fetch the pictures."""

    def __init__(self, server: Any):
        self.server, self.id = server, str(uuid.uuid4())

    def queue_prompt(self, prompt: dict[str, Any]) -> str:
        data = json.dumps({"prompt": prompt, "client_id": self.id}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.server.url}/prompt", data, headers)
        ) as answer:
            return json.loads(answer.read())["prompt_id"]

    def images(self, prompt: dict[str, Any]) -> tuple[dict[str, list[bytes]], list[Any]]:
        messages = []
        with connect(f"ws://127.0.0.1:{self.server.port}/ws?clientId={self.id}") as socket:
            id = self.queue_prompt(prompt)
            while True:
                messages.append(message := socket.recv(60))
                if isinstance(message, str):
                    told = json.loads(message)
                    if (
                        told["type"] == "executing"
                        and told["data"]["node"] is None
                        and told["data"]["prompt_id"] == id
                    ):
                        break
        outputs = self.server.get(f"/history/{id}")[id]["outputs"]
        return {
            node: [self.view(image) for image in output["images"]] for node, output in outputs.items()
        }, messages

    def view(self, image: dict[str, str]) -> bytes:
        with urllib.request.urlopen(f"{self.server.url}/view?{urllib.parse.urlencode(image)}") as answer:
            return answer.read()

    def draw(self, prompt: dict[str, Any]) -> Image.Image:
        images, _ = self.images(prompt)
        return Image.open(BytesIO(next(iter(images.values()))[0]))

    def upload(self, image: Image.Image) -> str:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        files = {"image": ("../../a picture.png", buffer.getvalue(), "image/png")}
        answer = self.server.call("POST", "/upload/image", files=files, data={"overwrite": "true"})
        return answer.raise_for_status().json()["name"]


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server)


@pytest.fixture(scope="module")
def taxi(client) -> Image.Image:
    return client.draw(GRAPH)


def test_the_default_graph_draws_what_our_own_request_does(client, server) -> None:
    images, messages = client.images(GRAPH)
    job = server.wait(
        server.job(
            {"prompt": "a red taxi", "negative_prompt": "blue", "seed": 8566257, "steps": 3, "cfg_scale": 8, "width": 128,
             "height": 128, "sampler": "euler", "schedule": "uniform", "prompt_language": "comfy"}
        )["id"]
    )  # fmt: skip
    assert images["9"] == [server.call("GET", job["pictures"][0]["url"]).content]
    types = [json.loads(message)["type"] for message in messages if isinstance(message, str)]
    order = ["status", "execution_start", "executing", "progress", "executed", "execution_success"]
    assert sorted(order, key=types.index) == order


def test_previews_are_binary_messages_with_a_jpeg(client) -> None:
    _, messages = client.images(graph(node_3={"steps": 60}))
    binary = [message for message in messages if isinstance(message, bytes)]
    assert binary[0][:8] == b"\0\0\0\1\0\0\0\1"
    assert Image.open(BytesIO(binary[0][8:])).format == "JPEG"


def test_image_to_image_takes_all_steps(client, taxi) -> None:
    load = {"class_type": "LoadImage", "inputs": {"image": client.upload(taxi)}}
    encode = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    made = client.draw(
        graph(node_10=load, node_11=encode, node_3={"latent_image": ["11", 0], "denoise": 0.6})
    )
    recipe = json.loads(made.info["inkwash"])
    assert (recipe["task"], recipe["request"]["step_rule"]) == ("image_to_image", "exact")


@pytest.mark.parametrize("way", ["VAEEncodeForInpaint", "SetLatentNoiseMask"])
def test_inpainting_draws_what_is_transparent(client, taxi, way) -> None:
    holed = taxi.convert("RGBA")
    alpha = Image.new("L", taxi.size, 255)
    ImageDraw.Draw(alpha).rectangle((48, 48, 79, 79), fill=0)
    holed.putalpha(alpha)
    nodes: dict[str, Any] = {
        "node_10": {"class_type": "LoadImage", "inputs": {"image": client.upload(holed)}}
    }
    pixels = {"pixels": ["10", 0], "vae": ["4", 2]}
    if way == "SetLatentNoiseMask":
        nodes["node_12"] = {"class_type": "VAEEncode", "inputs": pixels}
        nodes["node_11"] = {"class_type": way, "inputs": {"samples": ["12", 0], "mask": ["10", 1]}}
    else:
        nodes["node_11"] = {"class_type": way, "inputs": pixels | {"mask": ["10", 1], "grow_mask_by": 6}}
    made = client.draw(graph(**nodes, node_3={"latent_image": ["11", 0]}))
    assert made.crop((0, 0, 128, 32)).tobytes() == taxi.crop((0, 0, 128, 32)).tobytes()
    assert made.crop((56, 56, 72, 72)).tobytes() != taxi.crop((56, 56, 72, 72)).tobytes()


def test_a_second_sampler_on_an_enlarged_latent_is_a_second_pass(client) -> None:
    second = copy.deepcopy(GRAPH["3"])
    second["inputs"] |= {"latent_image": ["12", 0], "denoise": 0.5, "steps": 4}
    larger = {
        "upscale_method": "nearest-exact",
        "width": 192,
        "height": 192,
        "crop": "disabled",
        "samples": ["3", 0],
    }
    made = client.draw(
        graph(
            node_11=second,
            node_12={"class_type": "LatentUpscale", "inputs": larger},
            node_8={"samples": ["11", 0]},
        )
    )
    assert made.size == (192, 192)


@pytest.mark.parametrize("upscaler", ["lanczos", "RealESRGAN_x4plus.safetensors"])
def test_a_second_sampler_on_an_enlarged_picture_is_a_second_pass(client, server, upscaler) -> None:
    second, of = copy.deepcopy(GRAPH["3"]), ["13", 0]
    second["inputs"] |= {"latent_image": ["12", 0], "denoise": 0.5, "steps": 4}
    more = {}
    if upscaler != "lanczos":
        more = {
            "node_15": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": upscaler}},
            "node_16": {
                "class_type": "ImageUpscaleWithModel",
                "inputs": {"upscale_model": ["15", 0], "image": of},
            },
        }
        assert server.get("/object_info/UpscaleModelLoader")["UpscaleModelLoader"]["input"]["required"] == {
            "model_name": [[upscaler]]
        }
    scale = {"upscale_method": "lanczos", "width": 192, "height": 192, "crop": "disabled", "image": of}
    made = client.draw(
        graph(
            **more,
            node_11=second,
            node_12={"class_type": "VAEEncode", "inputs": {"pixels": ["14", 0], "vae": ["4", 2]}},
            node_13={"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
            node_14={"class_type": "ImageScale", "inputs": scale | ({"image": ["16", 0]} if more else {})},
            node_8={"samples": ["11", 0]},
        )
    )
    request = {"prompt": "a red taxi", "negative_prompt": "blue", "seed": 8566257, "steps": 3, "cfg_scale": 8,
               "width": 128, "height": 128, "sampler": "euler", "schedule": "uniform", "prompt_language": "comfy",
               "hires": 1.5, "hires_steps": 4, "hires_strength": 0.5, "hires_upscaler": upscaler}  # fmt: skip
    job = server.wait(server.job(request)["id"])
    wanted = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
    assert made.size == (192, 192) and made.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ({"height": 320}, "width and height must be enlarged by the same factor"),
        ({"upscale_method": "area"}, "upscale_method 'area' is not one of lanczos, nearest-exact"),
        (None, "only at a size that ImageScale gives"),
    ],
)
def test_second_passes_that_cannot_be(server, scale, said) -> None:
    second = copy.deepcopy(GRAPH["3"])
    second["inputs"] |= {"latent_image": ["12", 0], "denoise": 0.5}
    inputs = {"upscale_method": "lanczos", "width": 192, "height": 192, "image": ["13", 0]}
    nodes = graph(
        node_11=second,
        node_12={
            "class_type": "VAEEncode",
            "inputs": {"pixels": ["14" if scale else "13", 0], "vae": ["4", 2]},
        },
        node_13={"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        node_14={"class_type": "ImageScale", "inputs": inputs | (scale or {})},
        node_8={"samples": ["11", 0]},
    )
    answer = server.call("POST", "/prompt", json={"prompt": nodes})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_the_layer_of_clip_and_loras_go_into_the_request(client, server) -> None:
    skip = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["4", 1], "stop_at_clip_layer": -2}}
    made = client.draw(graph(node_10=skip, node_6={"clip": ["10", 0]}, node_7={"clip": ["10", 0]}))
    assert json.loads(made.info["inkwash"])["request"]["clip_skip"] == 2
    inputs = {
        "model": ["4", 0],
        "clip": ["4", 1],
        "lora_name": "none.safetensors",
        "strength_model": 0.5,
        "strength_clip": 0.25,
    }
    lora = {"class_type": "LoraLoader", "inputs": inputs}
    id = client.queue_prompt(graph(node_10=lora, node_3={"model": ["10", 0]}, node_6={"clip": ["10", 1]}))
    job = server.wait(id)
    assert (
        job["request"]["prompt"] == "a red taxi<lora:none:0.25:0.5>"
    )  # the text encoder's strength comes first
    assert "there is no LoRA 'none'" in job["error"]
    assert server.get(f"/history/{id}")[id]["status"]["status_str"] == "error"


@pytest.mark.parametrize(
    ("nodes", "node", "said"),
    [
        ({"node_9": {"class_type": "ETN_Magic", "inputs": {}}}, "9", "ETN_Magic"),
        ({"node_3": {"seed": "many"}}, "3", "seed"),
        ({"node_8": {"samples": ["99", 0]}}, "8", "samples"),
        ({"node_8": {"samples": ["5", 0]}}, "8", "EmptyLatentImage"),
        ({"node_3": {"denoise": 0.5}}, "3", "denoise"),
        ({"node_5": {"class_type": "KSampler", "inputs": {}}}, "5", "missing"),
        ({"node_3": {"model": ["6", 0]}}, "6", "CLIPTextEncode is no loader"),
    ],
)
def test_a_graph_that_means_nothing_here_is_an_error_that_names_the_node(server, nodes, node, said) -> None:
    answer = server.call("POST", "/prompt", json={"prompt": graph(**nodes)})
    told = answer.json()
    assert answer.status_code == 400
    assert said in told["error"]["message"]
    assert list(told["node_errors"]) == [node]


def test_the_queue_is_listed_and_emptied(client, server) -> None:
    server.post("/api/queue", {"paused": True})
    try:
        ids = [client.queue_prompt(GRAPH) for _ in range(2)]
        pending = server.get("/queue")["queue_pending"]
        assert [entry[1] for entry in pending] == ids
        assert pending[0][2] == GRAPH
        assert server.get("/prompt")["exec_info"]["queue_remaining"] == 2
        server.call("POST", "/queue", json={"delete": [ids[0]]}).raise_for_status()
        assert [entry[1] for entry in server.get("/queue")["queue_pending"]] == ids[1:]
        server.call("POST", "/queue", json={"clear": True}).raise_for_status()
    finally:
        server.post("/api/queue", {"paused": False})
    assert server.get(f"/history/{ids[0]}")[ids[0]]["status"]["completed"] is False


def test_nodes_and_models_are_described(server) -> None:
    nodes = server.get("/object_info")
    assert nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] == list(
        model["name"] for model in server.get("/api/models")["models"]
    )
    assert "euler" in server.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"][0]
    assert server.get("/system_stats")["devices"][0]["name"] == "cpu"


@pytest.mark.parametrize(
    "name", ["../queue.sqlite", "/etc/passwd", "a_0123456789abcdef01234567_0.png", "..%2f..", "\0.png"]
)
def test_view_leads_to_no_other_file(server, name) -> None:
    answer = server.call("GET", "/view", params={"filename": name, "type": "input"})
    assert answer.status_code == 404
