"""OpenAI's images dialect, by its Python client as it is."""

import base64
from collections.abc import Iterator
from io import BytesIO

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

MORE = {"num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def picture(text: str | None) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(text or "")))
    image.load()
    return image


def png(image: Image.Image) -> BytesIO:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    buffer.name = "image.png"
    buffer.seek(0)
    return buffer


@pytest.fixture(scope="module")
def taxi(client) -> Image.Image:
    made = client.images.generate(model="mini", prompt="a red taxi", size="128x128", extra_body=MORE)  # type: ignore
    return picture(made.data[0].b64_json)


def test_generate_draws_what_our_own_dialect_does(client, server, taxi) -> None:
    made = client.images.generate(
        model="mini",
        prompt="a red taxi",
        n=2,
        size="128x128",
        extra_body=MORE | {"guidance_scale": 3, "sampler": "euler"},
    )
    assert made.size == "128x128"
    body = {
        "prompt": "a red taxi",
        "width": 128,
        "height": 128,
        "steps": 2,
        "seed": 7,
        "cfg_scale": 3,
        "sampler": "euler",
    }
    job = server.wait(server.job(body | {"batch_size": 2})["id"])
    for ours, theirs in zip(job["pictures"], made.data, strict=True):
        assert server.call("GET", ours["url"]).content == base64.b64decode(theirs.b64_json)


@pytest.mark.parametrize(("kind", "format"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_come_in_the_format_asked_for(client, kind, format) -> None:
    made = client.images.generate(
        model="mini", prompt="a fox", size="auto", output_format=kind, output_compression=80, extra_body=MORE
    )
    assert picture(made.data[0].b64_json).format == format
    assert made.output_format == kind


def test_a_url_leads_to_the_picture(client) -> None:
    made = client.images.generate(model="mini", prompt="a fox", response_format="url", extra_body=MORE)
    answer = httpx.get(made.data[0].url, headers={"Authorization": "Bearer none"})
    assert answer.headers["content-type"] == "image/png"
    Image.open(BytesIO(answer.content)).load()


def test_a_stream_gives_partial_pictures_and_then_the_picture(client) -> None:
    more = {"num_inference_steps": 60, "seed": 7}
    events = list(
        client.images.generate(
            model="mini", prompt="a fox", size="128x128", stream=True, partial_images=2, extra_body=more
        )
    )
    assert [event.type for event in events[-1:]] == ["image_generation.completed"]
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert 1 <= len(partial) <= 2
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert picture(partial[0].b64_json).format == "PNG"
    whole = client.images.generate(model="mini", prompt="a fox", size="128x128", extra_body=more)
    assert events[-1].b64_json == whole.data[0].b64_json


def test_edits_of_one_picture_of_several_and_by_a_mask(client, taxi) -> None:
    more = MORE | {"strength": 0.6}
    one = client.images.edit(model="mini", image=png(taxi), prompt="a blue taxi", extra_body=more)
    assert picture(one.data[0].b64_json).size == (128, 128)
    both = client.images.edit(
        model="mini", image=[png(taxi), png(taxi)], prompt="a blue taxi", extra_body=more
    )
    assert [image.b64_json for image in both.data] == [one.data[0].b64_json] * 2
    mask = Image.new("RGBA", taxi.size, (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((32, 32, 95, 95), fill=(0, 0, 0, 0))
    made = picture(
        client.images.edit(model="mini", image=png(taxi), mask=png(mask), prompt="a fox", extra_body=MORE)
        .data[0]
        .b64_json
    )
    assert made.crop((0, 0, 128, 32)).tobytes() == taxi.crop((0, 0, 128, 32)).tobytes()
    assert made.crop((48, 48, 80, 80)).tobytes() != taxi.crop((48, 48, 80, 80)).tobytes()


def test_a_variation(client, taxi) -> None:
    made = client.images.create_variation(
        model="mini", image=png(taxi), n=2, extra_body=MORE | {"strength": 0.5}
    )
    assert len({image.b64_json for image in made.data}) == 2


def test_models(client) -> None:
    assert {model.id for model in client.models.list()} >= {"mini", "mini-inpainting"}
    assert client.models.retrieve("mini").id == "mini"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonsense")


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "x", "size": "wide"},
        {"prompt": "x", "n": 11},
        {"prompt": "x", "background": "transparent"},
        {"prompt": "x", "extra_body": {"steps": 0}},
        {"prompt": "x", "size": "9999x9999"},
    ],
)
def test_what_is_wrong_is_the_clients_error(client, options) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="mini", **options)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_an_unknown_model_and_a_mask_without_transparency(client, taxi) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="nonsense", prompt="x")
    with pytest.raises(openai.BadRequestError, match="transparen"):
        client.images.edit(model="mini", image=png(taxi), mask=png(taxi), prompt="x")


def test_open_webui_and_silly_tavern_find_it(server, taxi) -> None:
    """SillyTavern asks by OPTIONS whether it is there; Open WebUI sends a field `image` with more beside it."""
    assert server.call("OPTIONS", "/v1/images/generations").status_code == 204
    fields = {
        "prompt": "a fox",
        "response_format": "b64_json",
        "n": "1",
        "size": "128x128",
        "background": "auto",
        "steps": "2",
    }
    answer = httpx.post(
        f"{server.url}/v1/images/edits",
        data=fields,
        files={"image": ("a.png", png(taxi), "image/png")},
        timeout=60,
    )
    assert picture(answer.json()["data"][0]["b64_json"]).size == (128, 128)
