"""ComfyUI's graphs of few-step models, of noise levels by nodes, of refiners and of unCLIP, beside our own requests."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import inkwash
from inkwash.diffusion.schedules import SCHEDULES, NoiseSchedule, sqrt_linear_betas, uniform
from inkwash.models.conditions import PictureConfig
from inkwash.pipeline.denoising.sigmas import make_sigmas
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.serve.comfy.graph import Reader
from inkwash.serve.comfy.links import Links, NodeError
from inkwash.serve.comfy.sampling import switch_at
from inkwash.serve.comfy.table import NODES
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from tests.diffusion.test_samplers_parity import k_sampling  # noqa: F401
from tests.pipeline.test_vary import EYE, UNCLIP, seeing
from tests.serve.folders import write_models
from tests.serve.test_comfy import GRAPH, Client, graph
from tests.weights.test_single_files import SMALL, random_checkpoint

OWN: dict[str, Any] = {
    "prompt": "a red taxi", "negative_prompt": "blue", "prompt_language": "comfy", "seed": 8566257, "cfg_scale": 8,
    "width": 128, "height": 128,
}  # fmt: skip
STABLE_DIFFUSION = NoiseSchedule.from_betas(sqrt_linear_betas())
MODEL = {"model": ["4", 0]}


class Stub:
    """A server of one model that predicts eps and of a refiner, with a picture."""

    picture = Image.linear_gradient("L").resize((128, 96)).convert("RGB")

    def load(self, way: str, text: str) -> Image.Image:
        return self.picture

    def enlarge(self, image: Image.Image, upscaler: str) -> Image.Image:
        raise AssertionError

    def about(self, model: str) -> dict[str, Any]:
        return {"sampling": "eps", "zsnr": False}

    def is_refiner(self, model: str) -> bool:
        return model == "refiner"


def meant(nodes: dict[str, Any]) -> Any:
    """The request that a graph means."""
    return Reader(nodes, Stub()).meant().drawing


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def custom(sampler: str, levels: str, latent: str = "5", /, **inputs: Any) -> dict[str, Any]:
    """The default graph with a SamplerCustom whose levels are a node's, as in ComfyUI's example of SDXL Turbo."""
    old = GRAPH["3"]["inputs"]
    linked = {name: old[name] for name in ("model", "positive", "negative", "cfg")}
    inputs = (MODEL if "model" in NODES[levels] else {}) | inputs
    return graph(
        node_3=node(
            "SamplerCustom", **linked, add_noise=True, noise_seed=old["seed"], sampler=["20", 0], sigmas=["21", 0],
            latent_image=[latent, 0],
        ),
        node_20=node("KSamplerSelect", sampler_name=sampler),
        node_21=node(levels, **inputs),
    )  # fmt: skip


def advanced(**inputs: Any) -> dict[str, Any]:
    """A KSamplerAdvanced with the settings of the default graph's sampler."""
    old = {name: value for name, value in GRAPH["3"]["inputs"].items() if name not in ("denoise", "seed")}
    more = {"add_noise": "enable", "noise_seed": 8566257, "start_at_step": 0, "end_at_step": 10000}
    return node("KSamplerAdvanced", **old | more | {"return_with_leftover_noise": "disable"} | inputs)


def encoded(**sampler: Any) -> dict[str, Any]:
    """The default graph with a picture to draw over."""
    return graph(
        node_10=node("LoadImage", image="picture.png"),
        node_11=node("VAEEncode", pixels=["10", 0], vae=["4", 2]),
        node_3=sampler,
    )


LCM = node("ModelSamplingDiscrete", model=["4", 0], sampling="lcm", zsnr=False)
DRAWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "turbo": (
        custom("euler_ancestral", "SDTurboScheduler", steps=3, denoise=1),
        {"sampler": "euler_ancestral", "timesteps": (999, 899, 799)},
    ),
    "lcm": (
        graph(
            node_20=LCM, node_3={"model": ["20", 0], "sampler_name": "lcm", "scheduler": "sgm_uniform", "steps": 4}
        ),
        {"sampler": "lcm", "schedule": "lcm", "steps": 4},
    ),
    "beta": (
        custom("euler", "BetaSamplingScheduler", steps=3, alpha=0.6, beta=0.6),
        {"sampler": "euler", "schedule": "beta", "steps": 3},
    ),
    "manual": (
        custom("euler", "ManualSigmas", sigmas="14.6, 3.5, .4, 0"),
        {"sampler": "euler", "sigmas": (14.6, 3.5, 0.4)},
    ),
    "advanced": (graph(node_3=advanced()), {"sampler": "euler", "schedule": "uniform", "steps": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_graphs_draw_what_our_own_requests_do(server: Any, model: Any, name: str) -> None:
    nodes, request = DRAWN[name]
    assert Client(server).draw(nodes).tobytes() == model.text_to_image(**OWN | request)[0].tobytes()


@pytest.mark.parametrize(("steps", "denoise"), [(1, 1.0), (4, 1.0), (10, 1.0), (4, 0.5), (5, 0.29)])
def test_sigmas_of_the_turbo_scheduler_are_comfyuis(steps: int, denoise: float) -> None:
    start = 10 - int(10 * denoise)
    timesteps = torch.flip(torch.arange(1, 11) * 100 - 1, (0,))[start : start + steps]
    wanted = torch.cat([STABLE_DIFFUSION.sigmas[timesteps], torch.zeros(1, dtype=torch.float64)])
    nodes = custom("euler", "SDTurboScheduler", "11", steps=steps, denoise=denoise) | {
        id: each for id, each in encoded().items() if id in ("10", "11")
    }
    drawing = meant(nodes)
    assert (drawing.task, drawing.values["strength"]) == ("image_to_image", denoise)
    request = TextToImageRequest(prompt="", timesteps=drawing.values["timesteps"])
    assert torch.equal(make_sigmas(request, request.steps, STABLE_DIFFUSION), wanted)


@pytest.mark.parametrize(
    ("kind", "theirs", "more"),
    [
        ("KarrasScheduler", "karras", {"rho": 5.0}),
        ("ExponentialScheduler", "exponential", {}),
        ("PolyexponentialScheduler", "polyexponential", {"rho": 0.7}),
    ],
)
def test_sigmas_of_formulas_are_k_diffusions(
    k_sampling: Any,  # noqa: F811
    kind: str,
    theirs: str,
    more: dict[str, float],
) -> None:
    ends = {"sigma_max": 12.0, "sigma_min": 0.05}
    drawing = meant(custom("euler", kind, steps=7, **(ends | more)))
    wanted = getattr(k_sampling, f"get_sigmas_{theirs}")(7, **ends, **more)[:-1]
    torch.testing.assert_close(torch.tensor(drawing.values["sigmas"]), wanted, rtol=1e-5, atol=0)
    assert (drawing.task, "steps" in drawing.values) == ("text_to_image", False)


def test_split_levels_are_the_last_ones() -> None:
    nodes = custom("euler", "SDTurboScheduler", steps=4, denoise=1)
    nodes["3"]["inputs"] |= {"sigmas": ["22", 1], "latent_image": ["11", 0]}
    nodes |= {id: each for id, each in encoded().items() if id in ("10", "11")}
    for split in (node("SplitSigmas", step=1), node("SplitSigmasDenoise", denoise=0.7)):
        split["inputs"]["sigmas"] = ["21", 0]
        drawing = meant(nodes | {"22": split})
        assert drawing.values["timesteps"] == (899, 799, 699)
        assert (drawing.values["strength"], drawing.values["step_rule"]) == (0.75, "exact")


def test_a_sampler_that_starts_later_draws_over_a_picture(server: Any, model: Any) -> None:
    """14 steps from the fifth: 9 / (9 / 14) is below 14 in floats, and no step may be lost by that."""
    client = Client(server)
    nodes = encoded()
    nodes["10"]["inputs"]["image"] = client.upload(Stub.picture)
    nodes["3"] = advanced(steps=14, start_at_step=5, latent_image=["11", 0])
    made = client.draw(nodes)
    sigmas = tuple(uniform(14, model.schedule)[5:-1].tolist())
    given = {name: value for name, value in OWN.items() if name not in ("width", "height")}
    (wanted,) = model.image_to_image(
        image=Stub.picture, **given, sampler="euler", sigmas=sigmas, strength=0.5, step_rule="exact"
    )
    assert made.tobytes() == wanted.tobytes()


def test_a_picture_is_drawn_over_from_given_sigmas() -> None:
    nodes = custom("euler", "KarrasScheduler", "11", steps=4, sigma_max=7.3, sigma_min=0.03, rho=7)
    nodes |= {id: each for id, each in encoded().items() if id in ("10", "11")}
    values = meant(nodes).values
    assert math.isclose(values["strength"], 0.5, abs_tol=0.01) and len(values["sigmas"]) == 4


BASE = {"steps": 10, "end_at_step": 6, "return_with_leftover_noise": "enable"}
REFINER: dict[str, Any] = {"steps": 10, "add_noise": "disable", "start_at_step": 6, "latent_image": ["30", 0]}


def refined(base: Mapping[str, Any] = {}, refiner: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The graph of SDXL's base and refiner, in ComfyUI's example."""
    prompts = {"positive": ["32", 0], "negative": ["33", 0], "model": ["31", 0]}
    return graph(
        node_30=advanced(**{**BASE, **base}),
        node_31=node("CheckpointLoaderSimple", ckpt_name="refiner"),
        node_32=node("CLIPTextEncode", clip=["31", 1], text="a red taxi"),
        node_33=node("CLIPTextEncode", clip=["31", 1], text="blue"),
        node_3=advanced(**{**REFINER, **prompts, **refiner}),
    )


def of_sdxl(kind: str, text: str, clip: str, **inputs: Any) -> dict[str, Any]:
    """An encoder of SDXL's, or of its refiner's."""
    if kind == "CLIPTextEncodeSDXL":
        given = {
            "crop_w": 0,
            "crop_h": 0,
            "target_width": 128,
            "target_height": 96,
            "text_g": text,
            "text_l": text,
        }
    else:
        given = {"ascore": 6, "text": text}
    return node(kind, **given | {"width": 256, "height": 192, "clip": [clip, 1]} | inputs)


def encoded_by_sdxl(**refiner: Any) -> dict[str, Any]:
    """The graph of base and refiner whose prompts come with sizes and scores."""
    scored = {"32": {"ascore": 7.5}, "33": {"ascore": 2}}
    nodes = refined()
    for id, text in (("6", "a red taxi"), ("7", "blue")):
        nodes[id] = of_sdxl("CLIPTextEncodeSDXL", text, "4")
    for id, text in (("32", "a red taxi"), ("33", "blue")):
        nodes[id] = of_sdxl("CLIPTextEncodeSDXLRefiner", text, "31", **scored[id] | refiner)
    return nodes


def test_sizes_and_scores_of_sdxl_are_the_requests() -> None:
    values = meant(encoded_by_sdxl()).values
    wanted = {
        "prompt": "a red taxi", "negative_prompt": "blue", "original_size": (256, 192), "target_size": (128, 96),
        "crop": (0, 0), "aesthetic": 7.5, "negative_aesthetic": 2, "refiner_switch_at": 0.612,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == wanted
    TextToImageRequest.model_validate(values)


@pytest.mark.parametrize("schedule", ["uniform", "sgm_uniform", "simple", "karras", "exponential"])
@pytest.mark.parametrize("steps", [2, 25, 60])
def test_a_refiner_takes_over_between_two_steps(schedule: str, steps: int) -> None:
    links, sigmas = Links({}, Stub()), SCHEDULES[schedule](steps, STABLE_DIFFUSION)
    for step in {1, steps // 3 or 1, steps * 4 // 5}:
        t = round((1 - switch_at(links, "", schedule, steps, step)) * 1000)  # as `switched_to_refiner`
        assert sigmas[step] < STABLE_DIFFUSION.sigma(torch.tensor(t)) <= sigmas[step - 1]


def test_base_and_refiner_are_one_request(tiny: Path, tmp_path: Path, started: Callable[..., Any]) -> None:
    models = write_models(tiny, tmp_path / "models")
    (models / "other").rename(models / "refiner")
    server = started(
        "--models", str(models), "--model", str(models / "tiny"), "--refiner", str(models / "refiner")
    )
    nodes = refined()
    nodes["4"]["inputs"]["ckpt_name"] = "tiny"
    nodes["5"]["inputs"] |= {"width": 32, "height": 32}
    made = Client(server).draw(nodes)
    own = OWN | {"width": 32, "height": 32, "sampler": "euler", "schedule": "uniform", "steps": 10}
    pair = inkwash.load(models / "tiny", refiner=models / "refiner")
    wanted = pair.text_to_image(**own, refiner_switch_at=0.6)[0]  # after 999, 888, 777, 666, 555 and 444
    assert made.tobytes() == wanted.tobytes()
    assert json.loads(made.info["inkwash"])["request"]["refiner_switch_at"] == 0.612
    assert made.tobytes() != pair.text_to_image(**own, refiner_switch_at=0.5)[0].tobytes()


@pytest.fixture
def unclip(tmp_path: Path, started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of an unCLIP model and of image variations, and the folder of both."""
    models = tmp_path / "models"
    monkeypatch.setitem(FAMILIES, UNCLIP.name, UNCLIP)
    monkeypatch.setitem(FAMILIES, "small-sd1", SMALL["small-sd1"])
    write_folder(seeing(random_checkpoint(UNCLIP), PictureConfig(EYE)), models / "unclip")
    silent = replace(random_checkpoint(SMALL["small-sd1"]), text=())
    write_folder(seeing(silent, PictureConfig(EYE, noised=False)), models / "variations")
    server, end = started("--models", str(models), "--model", str(models / "unclip")), time.monotonic() + 60
    while not all(model["tasks"] == ["vary"] for model in server.get("/api/models")["models"][-2:]):
        assert time.monotonic() < end, "the models were not looked at"
        time.sleep(0.1)
    return server, models


def seen(name: str, noise: float, loader: str = "unCLIPCheckpointLoader") -> dict[str, Any]:
    """The graph of ComfyUI's example of unCLIP."""
    nodes = graph(
        node_4=node("unCLIPCheckpointLoader", ckpt_name=name),
        node_40=node("LoadImage", image="picture.png"),
        node_41=node("CLIPVisionEncode", clip_vision=["4", 3], image=["40", 0], crop="center"),
        node_42=node(
            "unCLIPConditioning", conditioning=["6", 0], clip_vision_output=["41", 0], strength=1, noise_augmentation=noise
        ),
        node_3={"positive": ["42", 0]},
        node_5={"width": 32, "height": 32},
    )  # fmt: skip
    if loader == "CLIPVisionLoader":
        nodes["43"] = node(loader, clip_name=name)
        nodes["41"]["inputs"]["clip_vision"] = ["43", 0]
    return nodes


def test_unclip_varies_a_picture(unclip: tuple[Any, Path]) -> None:
    server, models = unclip
    client, picture = Client(server), Stub.picture
    sent = client.upload(picture)
    own = OWN | {"width": 32, "height": 32, "sampler": "euler", "schedule": "uniform", "steps": 3}
    for noise, level in ((0.3, 300), (0.0, 0)):
        nodes = seen("unclip", noise)
        nodes["40"]["inputs"]["image"] = sent
        (wanted,) = inkwash.load(models / "unclip").vary(picture, **own, noise_level=level)
        assert client.draw(nodes).tobytes() == wanted.tobytes()
    nodes = seen("variations", 0, "CLIPVisionLoader")
    for id, inputs in (("40", {"image": sent}), ("6", {"text": ""}), ("7", {"text": ""})):
        nodes[id]["inputs"] |= inputs
    wordless: dict[str, Any] = own | {"prompt": "", "negative_prompt": ""}
    (wanted,) = inkwash.load(models / "variations").vary(picture, **wordless)
    assert client.draw(nodes).tobytes() == wanted.tobytes()
    about = server.get("/object_info/CLIPVisionLoader")["CLIPVisionLoader"]["input"]["required"]
    assert about == {"clip_name": [["unclip", "variations"]]}


def test_what_a_model_predicts_is_no_request(unclip: tuple[Any, Path]) -> None:
    for sampling, status in (("eps", 200), ("v_prediction", 400)):
        nodes = seen("unclip", 0) | {
            "50": node("ModelSamplingDiscrete", model=["4", 0], sampling=sampling, zsnr=False)
        }
        nodes["3"]["inputs"]["model"] = ["50", 0]
        nodes["40"]["inputs"]["image"] = Client(unclip[0]).upload(Stub.picture)
        answer = unclip[0].call("POST", "/prompt", json={"prompt": nodes})
        assert answer.status_code == status
    assert "sampling of unclip is eps" in answer.json()["node_errors"]["50"]["errors"][0]["message"]


def changed(nodes: dict[str, Any], id: str, **inputs: Any) -> dict[str, Any]:
    """A graph in which a node has other inputs."""
    made = json.loads(json.dumps(nodes))
    made[id]["inputs"] |= inputs
    return made


TURBO, KARRAS = (
    custom("euler", "SDTurboScheduler", steps=1, denoise=1),
    {"sigma_max": 14.6, "sigma_min": 0.03, "rho": 7},
)
BAD = {
    "steps of turbo": (changed(TURBO, "21", steps=0), "21", "steps"),
    "no step": (changed(TURBO, "21", denoise=0.05), "21", "denoise"),
    "empty latent": (changed(TURBO, "21", denoise=0.5), "3", "denoise"),
    "text for a number": (changed(TURBO, "21", denoise="all"), "21", "denoise"),
    "noise": (changed(TURBO, "3", add_noise=False), "3", "add_noise"),
    "levels": (changed(TURBO, "3", sigmas=["20", 0]), "3", "sigmas"),
    "too many": (custom("euler", "KarrasScheduler", steps=10**9, **KARRAS), "21", "steps"),
    "ends": (custom("euler", "KarrasScheduler", steps=3, **KARRAS | {"sigma_min": 15}), "21", "sigma_min"),
    "endless": (custom("euler", "KarrasScheduler", steps=3, **KARRAS | {"sigma_max": math.inf}), "21", "sigma_max"),
    "rho": (custom("euler", "KarrasScheduler", steps=3, **KARRAS | {"rho": 0}), "21", "rho"),
    "small rho": (custom("euler", "KarrasScheduler", steps=3, **KARRAS | {"sigma_max": 5000, "rho": 0.01}), "21", "rho"),
    "no width": (changed(GRAPH, "5", width=0), "5", "width"),
    "wide": (changed(GRAPH, "5", height=10**400), "5", "height"),
    "alpha": (custom("euler", "BetaSamplingScheduler", steps=3, alpha=0.5, beta=0.6), "21", "alpha"),
    "rising": (custom("euler", "ManualSigmas", sigmas="1, 2, 0"), "21", "sigmas"),
    "left noise": (custom("euler", "ManualSigmas", sigmas="2, 1"), "21", "sigmas"),
    "words": (custom("euler", "ManualSigmas", sigmas="many"), "21", "sigmas"),
    "cfg": (changed(GRAPH, "3", cfg=10**400), "3", "cfg"),
    "lcm": (graph(node_20=LCM, node_3={"model": ["20", 0]}), "20", "sampling"),
    "v": (graph(node_20=changed({"": LCM}, "", sampling="v_prediction")[""], node_3={"model": ["20", 0]}), "20", "sampling"),
    "img": (graph(node_20=changed({"": LCM}, "", sampling="img_to_img")[""], node_3={"model": ["20", 0]}), "20", "sampling"),
    "zsnr": (
        graph(node_20=changed({"": LCM}, "", sampling="eps", zsnr=True)[""], node_3={"model": ["20", 0]}), "20", "zsnr",
    ),
    "end": (graph(node_3=advanced(end_at_step=2)), "3", "end_at_step"),
    "leftover": (graph(node_3=advanced(end_at_step=2, return_with_leftover_noise="enable")), "3", "end_at_step"),
    "start": (graph(node_3=advanced(start_at_step=9)), "3", "start_at_step"),
    "another model": (changed(refined(), "31", ckpt_name="mini"), "3", "model"),
    "another step": (refined(refiner={"start_at_step": 5}), "3", "start_at_step"),
    "another text": (changed(refined(), "33", text="red"), "3", "negative"),
    "another sampler": (refined(refiner={"sampler_name": "heun"}), "3", "sampler_name"),
    "unknown levels": (
        refined({"scheduler": "beta"}, {"scheduler": "beta"}), "30", "scheduler",
    ),
    "two texts": (changed(encoded_by_sdxl(), "6", text_l="blue"), "6", "text_l"),
    "two sizes": (changed(encoded_by_sdxl(), "7", width=128), "30", "negative"),
    "other size": (encoded_by_sdxl(width=128), "3", "positive"),
    "crop of the base": (changed(changed(encoded_by_sdxl(), "6", crop_w=8), "7", crop_w=8), "3", "positive"),
    "strength": (changed(seen("mini", 0), "42", strength=0.5), "42", "strength"),
    "noise of a vector": (changed(seen("mini", 0), "42", noise_augmentation=2), "42", "noise_augmentation"),
    "crop": (changed(seen("mini", 0), "41", crop="none"), "41", "crop"),
    "another eye": (
        changed(changed(seen("mini", 0, "CLIPVisionLoader"), "43", clip_name="clip_g"), "40"), "43", "clip_name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_no_request_means_is_an_error_that_names_the_input(name: str) -> None:
    nodes, node, field = BAD[name]
    with pytest.raises(NodeError) as caught:
        meant(nodes)
    assert (caught.value.node, caught.value.field) == (node, field), caught.value.message


def test_two_pictures_of_unclip_are_refused() -> None:
    nodes = seen("mini", 0)
    nodes["44"] = changed(nodes, "42", conditioning=["42", 0])["42"]
    nodes["3"]["inputs"]["positive"] = ["44", 0]
    with pytest.raises(NodeError, match="one picture is varied"):
        meant(nodes)


def test_the_nodes_are_described(server: Any) -> None:
    about = server.get("/object_info")
    required = {
        "SDTurboScheduler": {"model": ["MODEL"], "steps": ["INT"], "denoise": ["FLOAT"]},
        "ModelSamplingDiscrete": {
            "model": ["MODEL"],
            "sampling": [["eps", "v_prediction", "x0", "lcm"]],
            "zsnr": ["BOOLEAN"],
        },
        "ManualSigmas": {"sigmas": ["STRING"]},
        "unCLIPConditioning": {
            "conditioning": ["CONDITIONING"],
            "clip_vision_output": ["CLIP_VISION_OUTPUT"],
            "strength": ["FLOAT"],
            "noise_augmentation": ["FLOAT"],
        },
    }
    for kind, inputs in required.items():
        assert about[kind]["input"]["required"] == inputs
    assert about["KSamplerAdvanced"]["input"]["required"]["add_noise"] == [["enable", "disable"]]
    assert about["SamplerCustom"]["input"]["required"]["add_noise"] == ["BOOLEAN"]
    assert about["unCLIPCheckpointLoader"]["output"] == ["MODEL", "CLIP", "VAE", "CLIP_VISION"]
    assert about["KarrasScheduler"]["output"] == ["SIGMAS"]
    assert not NODES.keys() - about.keys()
