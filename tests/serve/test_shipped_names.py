"""The shipped LoRA and ControlNet are in every list, and draw by their names in each dialect."""

from io import BytesIO
from typing import Any

import openai
import pytest
import webuiapi
from PIL import Image

from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.controls import Control
from inkwash.weights.bytes.paths import shipped_lora
from tests.serve.conftest import Served
from tests.serve.test_api import data_url
from tests.serve.test_comfy import Client, graph
from tests.serve.test_controls import opened
from tests.support.small_controls import picture

pytestmark = pytest.mark.skipif(not shipped_lora("mini-turbo"), reason="this installation has no mini-turbo")
TAGGED = "a red taxi <lora:mini-turbo:1>"
DRAW: dict[str, Any] = {
    "steps": 2,
    "seed": 4,
    "cfg_scale": 1.0,
    "sampler": "euler",
    "width": 128,
    "height": 128,
}
HINT = annotate("canny", picture(1).resize((128, 128)))


@pytest.fixture(scope="module")
def api(server: Served) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=server.port, sampler="Euler", steps=2)


SENT = {"seed": 4, "cfg_scale": 1, "width": 128, "height": 128}


def test_they_are_in_every_list(server: Served, api: webuiapi.WebUIApi) -> None:
    assert "mini-turbo" in [lora["name"] for lora in api.get_loras()]
    assert "canny" in api.controlnet_model_list()
    extras = server.get("/api/extras")  # which the page's picker shows
    assert "mini-turbo" in [lora["name"] for lora in extras["loras"]]
    assert "canny" in [control["name"] for control in extras["controlnets"]]
    nodes = server.get("/object_info")
    assert "mini-turbo.safetensors" in nodes["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert "canny" in nodes["ControlNetLoader"]["input"]["required"]["control_net_name"][0]


def test_the_lora_draws_in_each_dialect(server: Served, api: webuiapi.WebUIApi, model: Any) -> None:
    (expected,) = model.text_to_image(TAGGED, **DRAW)
    (plain,) = model.text_to_image("a red taxi", **DRAW)
    assert expected.tobytes() != plain.tobytes()
    assert api.txt2img(prompt=TAGGED, **SENT).image.tobytes() == expected.tobytes()
    job = server.wait(server.job(DRAW | {"prompt": TAGGED})["id"])
    made = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
    assert made.tobytes() == expected.tobytes()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    more = {"seed": 4, "num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "euler"}
    answer = client.images.generate(
        prompt=TAGGED, size="128x128", response_format="b64_json", extra_body=more
    )  # type: ignore[call-overload]
    assert opened(answer.data[0].b64_json).tobytes() == expected.tobytes()


def test_the_lora_draws_in_a_graph(server: Served, model: Any) -> None:
    prompt = graph(
        node_10={"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1], "strength_model": 1,
                 "lora_name": "mini-turbo.safetensors", "strength_clip": 1}},
        node_3={"model": ["10", 0], "seed": 4, "steps": 2, "cfg": 1, "scheduler": "automatic"},
        node_6={"clip": ["10", 1]}, node_7={"clip": ["10", 1], "text": ""},
    )  # fmt: skip
    (expected,) = model.text_to_image(TAGGED, **DRAW, prompt_language="comfy")
    assert Client(server).draw(prompt).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["canny", "mini-canny"])
def test_the_controlnet_draws_in_each_dialect(
    server: Served, api: webuiapi.WebUIApi, model: Any, name: str
) -> None:
    control = Control(file="canny", image=HINT, annotator="none", weight=0.8)
    (expected,) = model.text_to_image("a taxi", **DRAW, controls=[control])
    (plain,) = model.text_to_image("a taxi", **DRAW)
    assert expected.tobytes() != plain.tobytes()
    unit = webuiapi.ControlNetUnit(image=HINT, module="none", model=name, weight=0.8)
    assert (
        api.txt2img(prompt="a taxi", controlnet_units=[unit], **SENT).images[0].tobytes()
        == expected.tobytes()
    )
    own = {"model": name, "image": data_url(HINT), "weight": 0.8, "annotator": "none"}
    job = server.wait(server.job(DRAW | {"prompt": "a taxi", "controls": [own]})["id"])
    made = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
    assert made.tobytes() == expected.tobytes()
    client = Client(server)
    prompt = graph(
        node_20={"class_type": "ControlNetLoader", "inputs": {"control_net_name": name}},
        node_21={"class_type": "LoadImage", "inputs": {"image": client.upload(HINT)}},
        node_22={"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "control_net": ["20", 0],
                 "image": ["21", 0], "strength": 0.8}},
        node_3={"positive": ["22", 0], "seed": 4, "steps": 2, "cfg": 1, "scheduler": "automatic"},
        node_6={"text": "a taxi"}, node_7={"text": ""},
    )  # fmt: skip
    (expected,) = model.text_to_image("a taxi", **DRAW, controls=[control], prompt_language="comfy")
    assert client.draw(prompt).tobytes() == expected.tobytes()
