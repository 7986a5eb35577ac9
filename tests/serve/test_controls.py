"""Controls over HTTP, in each dialect, and hints: what is drawn is what the library draws."""

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webuiapi
from PIL import Image

import inkwash
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.controls import Control
from tests.serve.conftest import Served, start
from tests.serve.folders import write_models
from tests.serve.test_api import data_url
from tests.serve.test_comfy import GRAPH, Client, graph
from tests.support.small_controls import picture

DRAW = {"prompt": "a taxi", "steps": 3, "seed": 4, "sampler": "euler"}
HINT = picture(1)
SCRIPT = "alwayson_scripts"


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tiny, tmp_path_factory.mktemp("steered") / "models")


@pytest.fixture(scope="module")
def steered(models: Path) -> Iterator[Served]:
    running = start(models.with_name("state"), "--models", str(models), "--model", str(models / "tiny"))
    yield running
    running.process.kill()
    running.process.wait()


def drawn(models: Path, *controls: dict[str, Any], net: str = "net", **more: Any) -> bytes:
    """The pixels that the library draws."""
    made = [Control(file=models / f"controlnet/{net}.safetensors", **values) for values in controls]
    return inkwash.load(models / "tiny").text_to_image(controls=made, **DRAW | more)[0].tobytes()  # type: ignore[arg-type]


def pixels(server: Served, job: dict[str, Any]) -> bytes:
    ended = server.wait(job["id"])
    assert ended["state"] == "done", ended["error"]
    return Image.open(BytesIO(server.call("GET", ended["pictures"][0]["url"]).content)).tobytes()


def opened(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text.rpartition(",")[2])))


def test_a_control_with_its_picture_or_the_hash_of_it_draws_what_the_library_draws(steered, models) -> None:
    unit = {"model": "net", "weight": 0.8, "start": 0.0, "end": 0.7, "mode": "prompt", "resize": "just"}
    digest = steered.post("/api/uploads", {"image": data_url(HINT)})["hash"]
    by_picture = steered.job(DRAW | {"controls": [unit | {"image": data_url(HINT)}]})
    by_hash = steered.job(DRAW | {"controls": [unit | {"image": digest}]})
    values = {key: value for key, value in unit.items() if key != "model"}
    expected = drawn(models, values | {"image": HINT})
    assert pixels(steered, by_picture) == pixels(steered, by_hash) == expected
    assert expected != drawn(models)
    job = steered.get(f"/api/jobs/{by_picture['id']}")
    assert job["request"]["controls"][0]["file"] == "net"
    assert str(models) not in str(job)


def test_a_job_with_controls_is_tried_again_with_them(steered) -> None:
    unit = {"model": "net", "image": data_url(HINT), "mask": data_url(Image.new("L", (32, 32), 255))}
    first = steered.job(DRAW | {"controls": [unit]})
    again = steered.post(f"/api/jobs/{first['id']}/retry")
    assert pixels(steered, first) == pixels(steered, again)


def test_without_a_picture_of_its_own_it_sees_the_one_that_is_changed(steered, models) -> None:
    request = DRAW | {"strength": 0.8, "controls": [{"model": "NET.safetensors"}]}
    job = steered.job(request, "image_to_image", images={"image": data_url(HINT)})
    control = Control(file=models / "controlnet/net.safetensors")
    model = inkwash.load(models / "tiny")
    from inkwash.pipeline.denoising.control import with_pictures
    from inkwash.pipeline.tasks import TASKS

    task = TASKS["image_to_image"]
    made = task.request.model_validate(DRAW | {"strength": 0.8, "controls": [control]})
    expected = task.draw(model, with_pictures(made, HINT), {"image": HINT})[0]
    assert pixels(steered, job) == expected.tobytes()


def test_an_annotator_makes_the_hint(steered, models) -> None:
    job = steered.job(DRAW | {"controls": [{"model": "net", "annotator": "canny", "image": data_url(HINT)}]})
    assert pixels(steered, job) == drawn(models, {"image": HINT, "annotator": "canny"})


def test_a_reference_is_a_control_and_a_module_of_a1111s(steered, models) -> None:
    control = {"weight": 0.8, "style_fidelity": 0.25, "image": HINT}
    made = [Control(file="reference_adain+attn", **control)]
    expected = inkwash.load(models / "tiny").text_to_image(controls=made, **DRAW)[0].tobytes()  # type: ignore[arg-type]
    unit = control | {"model": "reference_adain+attn", "image": data_url(HINT)}
    assert pixels(steered, steered.job(DRAW | {"controls": [unit]})) == expected != drawn(models)
    unit = {"module": "reference_adain+attn", "image": data_url(HINT), "weight": 0.8, "threshold_a": 0.25}
    body = SMALL | {"steps": 3, "sampler_name": "Euler", SCRIPT: {"ControlNet": {"args": [unit]}}}
    told = steered.post("/sdapi/v1/txt2img", body)
    assert [opened(image).tobytes() for image in told["images"]] == [expected]  # with no detected map
    assert "reference_only" in steered.get("/controlnet/module_list")["module_list"]
    assert "reference_only" not in steered.get("/controlnet/model_list")["model_list"]


def test_what_does_not_fit_a_model_is_listed_with_the_reason(steered) -> None:
    found = {one["name"]: one["misfit"] for one in steered.get("/api/controls")["controls"]}
    assert found.keys() == {one["name"] for one in steered.get("/api/extras")["controlnets"]}
    assert [name for name, why in found.items() if why] == ["canny", "ip-adapter"] and "context_dim" in found[
        "canny"
    ]
    told = steered.get("/api/controls?model=mini")
    assert told["model"] == "mini"
    assert sorted(one["name"] for one in told["controls"] if one["misfit"]) == ["net", "union"]
    assert steered.get("/api/controls?model=mini") == told  # of what was kept
    assert steered.call("GET", "/api/controls?model=nothing").status_code == 404


def test_hints_alone_are_opencvs(steered) -> None:
    told = steered.post("/api/annotate", {"kind": "canny", "image": data_url(HINT), "low": 40, "high": 90})
    made = np.array(opened(told["image"]).convert("L"))
    assert (made == cv2.Canny(np.array(HINT), 40, 90)).all()
    assert "canny" in steered.get("/api/extras")["annotators"]
    wrong = steered.call("POST", "/api/annotate", json={"kind": "canny", "image": data_url(HINT), "sigma": 1})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        422,
        "canny takes low, high, and not sigma",
    )


def test_a_picture_is_enlarged(steered) -> None:
    told = steered.post("/api/upscale", {"image": data_url(HINT), "upscaler": "nearest", "scale": 3})
    made = opened(told["image"])
    assert made.size == (HINT.width * 3, HINT.height * 3)
    assert made.getpixel((5, 5)) == HINT.getpixel((1, 1))
    body = {"image": data_url(HINT), "upscaler": "none", "scale": 3}
    assert steered.call("POST", "/api/upscale", json=body).json()["error"]["field"] == "upscaler"


@pytest.mark.parametrize(
    "control",
    [
        "net.safetensors=/etc/passwd", {"model": "../net"}, {"model": "/etc/passwd"}, 
        {"model": "net", "file": "/etc/passwd"},
        {"model": "net", "image": "/etc/passwd"}, {"model": "net", "encoder": "/etc"}, {"model": "net", "image": "0" * 64},
        {"model": "net"}, {"model": "net", "image": data_url(HINT), "weight": 3},
        {"model": "net", "image": data_url(HINT), "start": 0.5, "end": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_control_that_is_none_is_refused_in_one_line(steered, control) -> None:
    for controls in ([control], control):
        body = {"task": "text_to_image", "request": DRAW | {"controls": controls}}
        answer = steered.call("POST", "/api/jobs", json=body)
        assert answer.status_code in (404, 422)
        assert "\n" not in answer.json()["error"]["message"]


# AUTOMATIC1111's extension


@pytest.fixture(scope="module")
def api(steered) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=steered.port, sampler="Euler", steps=3)


SMALL = {"prompt": "a taxi", "seed": 4, "cfg_scale": 5, "width": 32, "height": 32}


def test_webuiapi_finds_the_extension_and_what_it_has(api) -> None:
    assert api.controlnet_version() == 3
    assert api.controlnet_model_list() == ["net", "union", "canny", "ip-adapter"]  # the last two are shipped
    assert "canny" in api.controlnet_module_list()
    hint = api.controlnet_detect(
        [HINT], module="canny", processor_res=-1, threshold_a=40, threshold_b=90
    ).image
    assert (np.array(hint.convert("L")) == cv2.Canny(np.array(HINT), 40, 90)).all()


def test_a_unit_of_webuiapi_draws_what_the_library_draws(api, models) -> None:
    api.util_wait_for_ready(0.1)
    unit = webuiapi.ControlNetUnit(
        image=HINT, module="canny", model="net", weight=0.7, guidance_end=0.7, threshold_a=40, threshold_b=90,
        processor_res=-1, control_mode=1, resize_mode="Just Resize",
    )  # fmt: skip
    made = api.txt2img(controlnet_units=[unit], **SMALL)
    values = {"image": annotate("canny", HINT, low=40, high=90), "weight": 0.7, "end": 0.7, "mode": "prompt"}
    assert made.images[0].tobytes() == drawn(models, values | {"resize": "just"})
    hint = np.array(made.images[1].convert("L"))  # the hint comes last
    assert (hint == cv2.Canny(np.array(HINT), 40, 90)).all()
    assert "ControlNet 0" in made.info["infotexts"][0]


@pytest.mark.parametrize(
    "image",
    [
        lambda text: {"image": text},
        lambda text: {"input_image": f"data:image/png;base64,{text}"},
        lambda text: {"image": {"image": text, "mask": None}},
        lambda text: {"image": [text, None]},
        lambda text: {"image": [{"image": text}]},
    ],
)
def test_a_picture_comes_in_all_forms_that_clients_send(steered, models, image) -> None:
    text = base64.b64encode(png(HINT)).decode()
    unit = image(text) | {
        "model": "net [0123abcd]",
        "lowvram": None,
        "guidance": 0.7,
        "save_detected_map": False,
    }
    body = SMALL | {"steps": 3, "sampler_name": "Euler", SCRIPT: {"ControlNet": {"args": [unit]}}}
    answer = steered.post("/sdapi/v1/txt2img", body)
    assert len(answer["images"]) == 1
    assert opened(answer["images"][0]).tobytes() == drawn(models, {"image": HINT, "end": 0.7})


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_layers_and_a_region_of_a1111s(steered, models) -> None:
    region = Image.new("L", (32, 32))
    region.paste(255, (0, 0, 16, 32))
    n = len(inkwash.load(models / "tiny").unet.input_blocks) + 1
    weights = [0.5 + k / 10 for k in range(n)]
    text, where = (base64.b64encode(png(image)).decode() for image in (HINT, region))
    unit = {"model": "net", "image": text, "weight": 0.3, "control_mode": 1, "save_detected_map": False}
    unit |= {"advanced_weighting": weights, "effective_region_mask": where}
    body = SMALL | {"steps": 3, "sampler_name": "Euler", SCRIPT: {"ControlNet": {"args": [unit]}}}
    (made,) = steered.post("/sdapi/v1/txt2img", body)["images"]
    values = {"image": HINT, "layer_weights": tuple(weights), "mask": region}
    assert opened(made).tobytes() == drawn(models, values) != drawn(models, {"image": HINT, "mask": region})
    body[SCRIPT]["ControlNet"]["args"][0]["control_mode"] = 2
    assert steered.call("POST", "/sdapi/v1/txt2img", json=body).status_code == 422


def test_a_unit_without_a_picture_sees_the_one_of_img2img(api) -> None:
    unit = webuiapi.ControlNetUnit(model="net", module="none")
    made = api.img2img(
        images=[HINT.resize((32, 32))], controlnet_units=[unit], denoising_strength=0.9, **SMALL
    )
    plain = api.img2img(images=[HINT.resize((32, 32))], denoising_strength=0.9, **SMALL)
    assert made.images[0].tobytes() != plain.images[0].tobytes()


@pytest.mark.parametrize(
    ("unit", "status"),
    [
        ({"model": "none"}, 422), ({"model": "other"}, 404), ({"model": "net"}, 422), ({"model": "net", "module": "x"}, 422),
        ({"model": "net", "image": "/etc/passwd"}, 422), ({"model": "net", "weight": "much"}, 422),
        ({"model": "net", "image": "../net"}, 422),
    ],
)  # fmt: skip
def test_a_unit_that_is_none_is_refused(steered, unit, status) -> None:
    whole = {"image": base64.b64encode(png(HINT)).decode()} | unit if unit != {"model": "net"} else unit
    for args in ([whole], [True, whole]):
        answer = steered.call(
            "POST", "/sdapi/v1/txt2img", json=SMALL | {SCRIPT: {"controlnet": {"args": args}}}
        )
        assert answer.status_code == status, answer.text
    off = {SCRIPT: {"controlnet": {"args": [whole | {"enabled": False, "weight": 1}]}}}
    assert len(steered.post("/sdapi/v1/txt2img", SMALL | off)["images"]) == 1


# ComfyUI's nodes


@pytest.mark.parametrize("advanced", [False, True])
def test_a_graph_with_a_controlnet_draws_what_the_library_draws(steered, models, advanced) -> None:
    client = Client(steered)
    name = client.upload(HINT)
    nodes: dict[str, Any] = {
        "node_20": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "net.safetensors"}},
        "node_21": {"class_type": "LoadImage", "inputs": {"image": name}},
        "node_22": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "control_net": ["20", 0],
                    "image": ["21", 0], "strength": 0.8}},
        "node_3": {"positive": ["22", 0], "seed": 4, "cfg": 5, "sampler_name": "euler", "scheduler": "automatic"},
        "node_4": {"ckpt_name": "tiny"}, "node_5": {"width": 32, "height": 32}, "node_6": {"text": "a taxi"},
        "node_7": {"text": ""},
    }  # fmt: skip
    values: dict[str, Any] = {"image": HINT, "weight": 0.8}
    if advanced:
        nodes["node_22"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["6", 0], "negative": ["7", 0], "control_net": ["20", 0], "image": ["21", 0], "strength": 0.8,
            "start_percent": 0, "end_percent": 0.7}}  # fmt: skip
        nodes["node_3"] |= {"negative": ["22", 1]}
        values |= {"end": 0.7}
    made = client.draw(graph(**nodes))
    expected = drawn(models, values, prompt_language="comfy")
    assert made.tobytes() == expected
    assert "net.safetensors" in str(steered.get("/object_info/ControlNetLoader"))


def test_a_control_of_one_prompt_alone_is_an_error(steered) -> None:
    nodes: dict[str, Any] = {
        "node_20": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "net.safetensors"}},
        "node_22": {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["6", 0], "negative": ["7", 0], "control_net": ["20", 0], "image": ["8", 0], "strength": 0.8,
            "start_percent": 0, "end_percent": 1}},
        "node_3": {"positive": ["22", 0]},
    }  # fmt: skip
    answer = steered.call("POST", "/prompt", json={"prompt": graph(**nodes)})
    assert answer.status_code == 400
    assert "both prompts" in answer.json()["error"]["message"]
    assert GRAPH["3"]["inputs"]["positive"] == ["6", 0]
