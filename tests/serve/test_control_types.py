"""A ControlNet union over HTTP: its hints' types in each dialect draw what the library draws by them."""

import base64
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from PIL import Image

from inkwash.pipeline.annotate import annotate
from tests.serve.conftest import Served, start
from tests.serve.folders import write_models
from tests.serve.test_api import data_url
from tests.serve.test_comfy import Client, graph
from tests.serve.test_controls import DRAW, SCRIPT, SMALL, opened, pixels
from tests.serve.test_controls import drawn as drawn_by
from tests.support.small_controls import picture

HINTS = picture(1), picture(2)
NO_TYPES = "net.safetensors is not a ControlNet union, so it takes no type=depth"


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tiny, tmp_path_factory.mktemp("typed") / "models")


@pytest.fixture(scope="module")
def typed(models: Path) -> Iterator[Served]:
    running = start(models.with_name("state"), "--models", str(models), "--model", str(models / "tiny"))
    yield running
    running.process.kill()
    running.process.wait()


drawn = partial(drawn_by, net="union")


def unit(image: Image.Image, **values: Any) -> dict[str, Any]:
    """A unit as the extension's page sends it, with all of its fields."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return {
        "enabled": True, "module": "none", "model": "union [0123abcd]", "weight": 1.0, "resize_mode": "Crop and Resize",
        "image": base64.b64encode(buffer.getvalue()).decode(), "low_vram": False, "processor_res": -1, "threshold_a": -1,
        "threshold_b": -1, "guidance_start": 0, "guidance_end": 1, "control_mode": "Balanced", "pixel_perfect": False,
        "hr_option": "Both", "save_detected_map": False, "union_control_type": "Unknown", **values,
    }  # fmt: skip


def body_of(*units: dict[str, Any]) -> dict[str, Any]:
    return SMALL | {"steps": 3, "sampler_name": "Euler", SCRIPT: {"ControlNet": {"args": list(units)}}}


def test_several_hints_of_types_in_our_own_dialect(typed, models) -> None:
    own = [{"weight": 0.8, "type": "depth"}, {"weight": 0.4, "type": "line"}]
    sent = [
        {"model": "union", "image": data_url(hint), **values} for hint, values in zip(HINTS, own, strict=True)
    ]
    made = pixels(typed, typed.job(DRAW | {"controls": sent}))
    named = [{"image": hint, **values} for hint, values in zip(HINTS, own, strict=True)]
    other = drawn(models, *(values | {"type": "pose"} for values in named))
    assert made == drawn(models, *named) != other


def test_several_units_with_types_of_a1111s(typed, models) -> None:
    units = [unit(HINTS[0], weight=0.8, union_control_type="Depth"),
             unit(HINTS[1], weight=0.4, union_control_type="Hard Edge")]  # fmt: skip
    answer = typed.post("/sdapi/v1/txt2img", body_of(*units))
    expected = drawn(
        models,
        {"image": HINTS[0], "weight": 0.8, "type": "depth"},
        {"image": HINTS[1], "weight": 0.4, "type": "line"},
    )
    assert opened(answer["images"][0]).tobytes() == expected
    assert "Union Control Type: Depth" in answer["info"] and "Union Control Type: Hard Edge" in answer["info"]


def test_the_type_of_a_unit_follows_from_its_module(typed, models) -> None:
    sent = unit(HINTS[0], module="canny", threshold_a=40, threshold_b=90)
    del sent["union_control_type"]
    answer = typed.post("/sdapi/v1/txt2img", body_of(sent))
    hint = annotate("canny", HINTS[0], low=40, high=90)
    assert opened(answer["images"][0]).tobytes() == drawn(models, {"image": hint, "type": "line"})


def test_a_module_gives_what_is_no_union_no_type(typed) -> None:
    sent = unit(HINTS[0], module="canny", model="net")
    assert len(typed.post("/sdapi/v1/txt2img", body_of(sent))["images"]) == 1


def test_a_unit_of_webuiapi_that_says_no_type_is_told_to(typed) -> None:
    api = webuiapi.WebUIApi(port=typed.port, sampler="Euler", steps=3)
    asked = webuiapi.ControlNetUnit(image=HINTS[0], module="none", model="union")
    with pytest.raises(
        RuntimeError, match="union.safetensors is a union, whose hint is of no type; give type="
    ):
        api.txt2img(controlnet_units=[asked], **SMALL)


def test_a_type_for_what_is_no_union_is_refused_in_one_line(typed) -> None:
    job = typed.job(DRAW | {"controls": [{"model": "net", "type": "depth", "image": data_url(HINTS[0])}]})
    ended = typed.wait(job["id"])
    assert (ended["state"], ended["error"]) == ("failed", NO_TYPES)
    sent = unit(HINTS[0], model="net", union_control_type="Depth")
    answer = typed.call("POST", "/sdapi/v1/txt2img", json=body_of(sent))
    assert answer.status_code == 422 and NO_TYPES in answer.text
    sent = unit(HINTS[0], module="reference_only", model="None", union_control_type="Depth")
    answer = typed.call("POST", "/sdapi/v1/txt2img", json=body_of(sent))
    assert answer.status_code == 422 and "reference_only is not a ControlNet union" in answer.text


@pytest.mark.parametrize(
    ("theirs", "ours"), [("canny/lineart/anime_lineart/mlsd", "line"), ("repaint", "inpaint"), ("segment", "segmentation")]
)  # fmt: skip
def test_a_type_in_a_graph(typed, models, theirs: str, ours: str) -> None:
    made = Client(typed).draw(graph_of(Client(typed).upload(HINTS[0]), theirs))
    assert made.tobytes() == drawn(
        models, {"image": HINTS[0], "weight": 0.8, "type": ours}, prompt_language="comfy"
    )


def test_a_type_that_comfyui_does_not_know(typed) -> None:
    answer = typed.call("POST", "/prompt", json={"prompt": graph_of("none.png", "canny")})
    assert answer.status_code == 400 and "type 'canny' is not one of auto, openpose" in answer.text


def graph_of(name: str, kind: str) -> dict[str, Any]:
    """A graph with a union whose hint is an uploaded picture."""
    return graph(
        node_20={"class_type": "ControlNetLoader", "inputs": {"control_net_name": "union.safetensors"}},
        node_21={"class_type": "LoadImage", "inputs": {"image": name}},
        node_23={"class_type": "SetUnionControlNetType", "inputs": {"control_net": ["20", 0], "type": kind}},
        node_22={"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "control_net": ["23", 0],
                 "image": ["21", 0], "strength": 0.8}},
        node_3={"positive": ["22", 0], "seed": 4, "cfg": 5, "sampler_name": "euler", "scheduler": "automatic"},
        node_4={"ckpt_name": "tiny"}, node_5={"width": 32, "height": 32}, node_6={"text": "a taxi"}, node_7={"text": ""},
    )  # fmt: skip
