"""AUTOMATIC1111's dialect, by its Python client as it is, and by requests as other clients send them."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import pytest
import webuiapi
from PIL import Image, ImageDraw

from inkwash.pipeline.names import SAMPLER_NAMES
from inkwash.pipeline.record.a1111 import parse_parameters

SMALL = {"width": 128, "height": 128, "steps": 2}
INFO = """prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds subseed_strength width
height sampler_name cfg_scale steps batch_size restore_faces face_restoration_model sd_model_name sd_model_hash sd_vae_name
sd_vae_hash seed_resize_from_w seed_resize_from_h denoising_strength extra_generation_params index_of_first_image infotexts
styles job_timestamp clip_skip is_using_inpainting_conditioning version"""


@pytest.fixture(scope="module")
def api(server) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=server.port, sampler="Euler a", steps=2)


@pytest.fixture(scope="module")
def taxi(api) -> Image.Image:
    return api.txt2img(prompt="a red taxi", seed=7, **SMALL).image


def test_txt2img_draws_what_was_asked_for_and_says_so(api) -> None:
    made = api.txt2img(prompt="a red taxi", negative_prompt="blue", seed=7, n_iter=2, batch_size=2, **SMALL)
    assert len(made.images) == 4
    assert made.info["all_seeds"] == [7, 8, 9, 10]
    assert set(INFO.split()) <= made.info.keys()
    for image, text in zip(made.images, made.info["infotexts"], strict=True):
        assert image.size == (128, 128)
        assert image.info["parameters"] == text
    fields = parse_parameters(made.info["infotexts"][2])[2]
    assert (fields["Seed"], fields["Sampler"], fields["Steps"]) == ("9", "Euler a", "2")


def test_the_same_seed_gives_the_same_bytes_and_a_new_one_is_told(api) -> None:
    first, again = (api.txt2img(prompt="a fox", seed=3, **SMALL).json["images"] for _ in range(2))
    assert first == again
    assert api.txt2img(prompt="a fox", seed=-1, **SMALL).info["seed"] >= 0


def test_old_sampler_names_split_and_unknown_ones_are_not_found(api, server) -> None:
    made = api.txt2img(prompt="a fox", sampler_name="DPM++ 2M Karras", seed=1, **SMALL)
    assert parse_parameters(made.info["infotexts"][0])[2]["Schedule type"] == "Karras"
    response = server.call("POST", "/sdapi/v1/txt2img", json={"sampler_name": "Nonsense"})
    assert (response.status_code, response.json()["detail"]) == (404, "Sampler not found")


def test_eta_is_that_of_the_body_or_of_the_options_and_ignored_by_samplers_without_one(api, server) -> None:
    def drawn(sampler: str, **body) -> tuple[str, dict, list]:
        made = server.post(
            "/sdapi/v1/txt2img", {"prompt": "a fox", "seed": 1, "sampler_name": sampler} | body | SMALL
        )
        info = json.loads(made["info"])
        return made["images"][0], parse_parameters(info["infotexts"][0])[2], info["comments"]

    plain, fields, _ = drawn("Euler a")
    assert "Eta" not in fields and drawn("Euler a", eta=1)[0] == plain
    half, fields, _ = drawn("Euler a", eta=0.5)
    assert fields["Eta"] == "0.5" and half != plain
    assert drawn("Euler a", override_settings={"eta_ancestral": 0.5})[0] == half
    assert drawn("DDIM", eta=0.5)[1]["Eta DDIM"] == "0.5"
    assert "Eta" not in drawn("DPM fast")[1] and drawn("DPM fast", eta=0)[1]["Eta"] == "0"
    _, fields, comments = drawn("Euler", eta=0.5, s_churn=2, s_noise=1)
    assert "Eta" not in fields and comments == ["s_churn 2 is not applied"]
    api.set_options({"eta_ddim": 1, "eta_ancestral": 0.5})
    try:
        assert drawn("Euler a")[0] == half and drawn("DDIM")[1]["Eta DDIM"] == "1"
    finally:
        api.set_options({"eta_ddim": 0, "eta_ancestral": 1})


def test_hires_variations_tiling_and_clip_skip_are_applied(api) -> None:
    made = api.txt2img(
        prompt="a fox", seed=1, enable_hr=True, hr_scale=1.5, hr_upscaler=webuiapi.HiResUpscaler.Latent,
        denoising_strength=0.5, subseed=5, subseed_strength=0.3, tiling=True, **SMALL,
        override_settings={"CLIP_stop_at_last_layers": 2},
    )  # fmt: skip
    assert made.image.size == (192, 192)
    fields = parse_parameters(made.info["infotexts"][0])[2]
    wanted = {
        "Hires upscale": "1.5",
        "Variation seed": "5",
        "Variation seed strength": "0.3",
        "Clip skip": "2",
    }
    assert wanted.items() <= fields.items()


@pytest.mark.parametrize("mode", range(4))
def test_img2img_resizes_by_its_modes(api, taxi, mode) -> None:
    made = api.img2img(
        images=[taxi],
        prompt="a blue taxi",
        seed=1,
        resize_mode=mode,
        **SMALL | {"width": 192},
        denoising_strength=0.4,
    )
    assert made.image.size == (192, 128)
    assert made.parameters["init_images"] is None


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", range(4))
def test_inpainting_leaves_what_is_not_masked(api, taxi, only_masked, fill) -> None:
    mask = Image.new("L", taxi.size)
    ImageDraw.Draw(mask).rectangle((32, 32, 95, 95), fill=255)
    made = api.img2img(
        images=[taxi], mask_image=mask, prompt="a fox", seed=1, inpainting_fill=fill, inpaint_full_res=only_masked,
        denoising_strength=0.8, **SMALL,
    ).image  # fmt: skip
    assert made.size == taxi.size
    assert made.crop((0, 0, 128, 32)).tobytes() == taxi.crop((0, 0, 128, 32)).tobytes()
    assert made.crop((48, 48, 80, 80)).tobytes() != taxi.crop((48, 48, 80, 80)).tobytes()


def test_an_inverted_mask_draws_the_rest(api, taxi) -> None:
    mask = Image.new("L", taxi.size)
    ImageDraw.Draw(mask).rectangle((0, 0, 127, 63), fill=255)
    made = api.img2img(
        images=[taxi],
        mask_image=mask,
        prompt="a fox",
        seed=1,
        inpainting_mask_invert=1,
        inpaint_full_res=False,
        **SMALL,
    ).image
    assert made.crop((0, 0, 128, 64)).tobytes() == taxi.crop((0, 0, 128, 64)).tobytes()


def test_everything_that_can_be_listed(api) -> None:
    assert [sampler["name"] for sampler in api.get_samplers()] == list(SAMPLER_NAMES.values())
    assert {"name", "label", "aliases", "default_rho", "need_inner_model"} <= api.get_schedulers()[0].keys()
    models = api.get_sd_models()
    assert {"title", "model_name", "hash", "sha256", "filename", "config"} <= models[0].keys()
    assert "None" in [upscaler["name"] for upscaler in api.get_upscalers()]
    assert next(mode["name"] for mode in api.get_latent_upscale_modes()) == "Latent"
    assert api.get_prompt_styles()[0]["name"] == "ink"
    assert api.get_embeddings().keys() == {"loaded", "skipped"}
    assert api.get_scripts() == {key: ["controlnet", "controlnet m2m"] for key in ("txt2img", "img2img")}
    assert api.get_memory()["ram"]["total"] > 0
    for listed in (
        api.get_loras, api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models, api.get_sd_vae,
    ):  # fmt: skip
        assert isinstance(listed(), list)
    assert api.get_cmd_flags() == {}
    api.refresh_checkpoints()
    assert api.util_get_sampler_names()
    assert api.util_get_scheduler_names()


def test_the_model_is_switched_by_title_and_by_a_near_name(api) -> None:
    titles = api.util_get_model_names()
    api.util_set_model("mini-inpaint")
    try:
        assert api.util_get_current_model().startswith("mini-inpainting")
        made = api.txt2img(
            prompt="a fox", seed=1, override_settings={"sd_model_checkpoint": titles[-1]}, **SMALL
        )
        assert made.info["sd_model_name"] in titles[-1]
    finally:
        api.set_options({"sd_model_checkpoint": "mini"})
    assert api.util_get_current_model().startswith("mini")
    api.util_wait_for_ready(0.1)


def test_png_info_and_extras(api, taxi) -> None:
    told = api.png_info(taxi)
    assert told.info == taxi.info["parameters"]
    assert told.parameters["Seed"] == "7"
    larger = api.extra_single_image(taxi, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
    assert larger.image.size == (256, 256)
    both = api.extra_batch_images(
        [taxi, taxi], upscaler_1="Nearest", resize_mode=1, upscaling_resize_w=64, upscaling_resize_h=32
    )
    assert [image.size for image in both.images] == [(64, 32)] * 2
    with pytest.raises(RuntimeError, match="no such upscaler"):
        api.extra_single_image(taxi, upscaler_1=webuiapi.Upscaler.LDSR)


def test_upscalers_of_the_folder_enlarge_by_their_names_and_by_those_of_clients(api, taxi) -> None:
    assert "RealESRGAN_x4plus" in [upscaler["name"] for upscaler in api.get_upscalers()]
    by_name, by_title = (
        api.extra_single_image(taxi, upscaler_1=name, upscaling_resize=3).image
        for name in ("RealESRGAN_x4plus", webuiapi.Upscaler.ESRGAN_4x)
    )
    assert by_name.size == (384, 384) and by_name.tobytes() == by_title.tobytes()
    plain = api.extra_single_image(taxi, upscaler_1="Lanczos", upscaling_resize=3).image
    assert plain.tobytes() != by_name.tobytes()


def test_a_second_pass_by_an_upscaler_of_the_folder_and_by_no_other_file(api, server) -> None:
    options = {
        "prompt": "a fox",
        "seed": 1,
        "steps": 2,
        "width": 64,
        "height": 64,
        "enable_hr": True,
        "hr_scale": 2,
        "denoising_strength": 0.5,
    }
    drawn = api.txt2img(**options, hr_upscaler="R-ESRGAN 4x+")
    assert drawn.image.size == (128, 128)
    assert "Hires upscaler: RealESRGAN_x4plus" in drawn.info["infotexts"][0]
    file = next(server.state.parent.rglob("RealESRGAN_x4plus.safetensors"))
    for name in (str(file), "../x.pth", "nothing", "no.pth"):
        with pytest.raises(RuntimeError, match="no such upscaler"):
            api.txt2img(**options, hr_upscaler=name)


def test_interrupt_ends_what_runs_and_progress_tells_of_it(api) -> None:
    assert api.get_progress()["state"]["job_count"] == 0
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(api.txt2img, prompt="a fox", steps=400, width=128, height=128)
        seen = []
        while not (seen and seen[-1]["current_image"]):
            seen.append(api.get_progress())
            time.sleep(0.05)
        begun = time.monotonic()
        api.interrupt()
        assert drawing.result().images == []
        assert time.monotonic() - begun < 5
    shares = [told["progress"] for told in seen]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1
    assert seen[-1]["state"]["sampling_steps"] == 400
    images = [told["current_image"] for told in seen if told["current_image"]]
    Image.open(BytesIO(base64.b64decode(images[-1]))).load()
    assert api.get_progress()["progress"] == 0


def test_a_client_that_goes_away_frees_the_machine(server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/sdapi/v1/txt2img",
            json={"prompt": "x", "steps": 400} | SMALL | {"steps": 400},
            timeout=1,
        )
    begun = time.monotonic()
    while server.get("/sdapi/v1/progress")["state"]["job_count"]:
        assert time.monotonic() - begun < 5
        time.sleep(0.05)
    assert time.monotonic() - begun < 2


SILLY_TAVERN = {
    "prompt": "a fox", "negative_prompt": "", "sampler_name": "Euler a", "scheduler": "Automatic", "steps": 2,
    "cfg_scale": 7, "width": 128, "height": 128, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
    "hr_scale": 2, "denoising_strength": 0.7, "hr_second_pass_steps": 0, "override_settings":
    {"CLIP_stop_at_last_layers": 1, "sd_vae": ""}, "override_settings_restore_afterwards": True, "clip_skip": 1,
    "save_images": True, "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False, "url":
    "http://localhost:7860", "auth": "",
}  # fmt: skip


def test_a_request_of_silly_tavern(server) -> None:
    answer = server.post("/sdapi/v1/txt2img", SILLY_TAVERN)
    assert Image.open(BytesIO(base64.b64decode(answer["images"][0]))).size == (128, 128)
    assert answer["parameters"]["cfg_scale"] == 7


def test_requests_of_open_webui(server) -> None:
    """It reads the options, sends them all back with one changed, and an empty `authorization`."""
    headers = {"authorization": ""}
    options = httpx.get(f"{server.url}/sdapi/v1/options", headers=headers).raise_for_status().json()
    options["sd_model_checkpoint"] = server.get("/sdapi/v1/sd-models")[0]["title"]
    httpx.post(
        f"{server.url}/sdapi/v1/options", json=options | {"unknown": [1]}, headers=headers
    ).raise_for_status()
    body = {"prompt": "a fox", "batch_size": 1, "width": 128, "height": 128, "steps": 2}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, headers=headers, timeout=60).json()
    assert json.loads(answer["info"])["steps"] == 2


def test_an_infotext_fills_what_is_not_given(server, taxi) -> None:
    answer = server.post("/sdapi/v1/txt2img", {"infotext": taxi.info["parameters"], "cfg_scale": 3})
    fields = parse_parameters(json.loads(answer["info"])["infotexts"][0])[2]
    assert (fields["Seed"], fields["Size"], fields["CFG scale"]) == ("7", "128x128", "3")


def test_what_is_asked_for_and_not_there_is_refused(server, taxi) -> None:
    for body, status in (
        ({"restore_faces": True}, 422), ({"script_name": "x/y/z plot"}, 422), ({"n_iter": 1000}, 422),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422), ({"steps": "many"}, 422),
        ({"override_settings": {"sd_model_checkpoint": "nonsense"}}, 404),
    ):  # fmt: skip
        response = server.call("POST", "/sdapi/v1/txt2img", json=body)
        assert response.status_code == status, response.text
        assert response.json().keys() == {"error", "detail", "body", "errors"}
    assert server.call("POST", "/sdapi/v1/img2img", json={"prompt": "x"}).status_code == 404
    assert server.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"ADetailer": {"args": [False]}}} | SMALL)[
        "images"
    ]
