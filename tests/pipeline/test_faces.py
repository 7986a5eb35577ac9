"""IP-Adapter FaceID draws what diffusers draws by the same vectors of faces, its file's low-rank changes among it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import inkwash
from inkwash.adapters.image_projections import FacePlusProjection, FaceProjection
from inkwash.adapters.ip_adapter import IPAdapter, Layer, LowRank, attentions, open_ip_adapter
from inkwash.cli import main
from inkwash.files import ModelFileError
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control, read_control
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import again, recorded
from tests.models.test_unet import randomise
from tests.pipeline.test_control_parity import EYE, OURS, PROMPTS, SEED, SIZE, THEIRS, matters, psnr
from tests.support.peers import their_pipeline
from tests.support.small_controls import first, picture, scaled, write_model

diffusers = pytest.importorskip("diffusers")
FACE, TOKENS = 16, 4
FACES = np.random.default_rng(3).normal(size=(1, FACE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    write_model("sd1", module_path)
    return module_path


@pytest.fixture(scope="module")
def model(folder: Path) -> Pipeline:
    return inkwash.load(folder / "sd1")


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return lambda **parts: their_pipeline(monkeypatch, folder / "sd1", "StableDiffusionPipeline", [], **parts)


def adapter(model: Pipeline, plus: bool, lora: bool, shortcut: bool = False) -> IPAdapter:
    width = model.unet.config.context_dim or 0
    project = FaceProjection(FACE, 2 * FACE, width, TOKENS)
    if plus:
        asking = {"seen": EYE["hidden_size"], "hidden": width, "width": width, "inner": 64, "depth": 4}
        project = FacePlusProjection(FACE, 2 * FACE, width, TOKENS, asking | {"feed": 4 * width}, shortcut)
    layers: dict[str, torch.nn.Module] = {}
    for i, (own, cross) in enumerate(
        zip(attentions(model.unet, "attn1"), attentions(model.unet), strict=True)
    ):
        layers[str(2 * i)] = torch.nn.Module()
        layers[str(2 * i + 1)] = Layer(width, cross.to_q.out_features)
        for number, each in ((2 * i, own), (2 * i + 1, cross)) if lora else ():
            linears = {"to_q": each.to_q, "to_k": each.to_k, "to_v": each.to_v, "to_out": each.to_out[0]}
            for name, linear in linears.items():
                change = LowRank(linear.in_features, 4, linear.out_features)
                layers[str(number)].add_module(f"{name}_lora", change)
    made = scaled(IPAdapter(project, layers), 8)
    return made  # type: ignore[return-value]


def write(network: IPAdapter, path: Path) -> dict[str, torch.Tensor]:
    tensors = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
    if path.suffix == ".bin":
        parts = {
            part: {
                key[len(part) + 1 :]: value for key, value in tensors.items() if key.startswith(part + ".")
            }
            for part in ("image_proj", "ip_adapter")
        }
        torch.save(parts, path)
    else:
        save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_face_id(
    folder: Path, model: Pipeline, theirs: Callable, tmp_path: Path, lora: bool, suffix: str
) -> None:
    if lora:
        pytest.importorskip("peft")
    path = tmp_path / f"ip-adapter-faceid{suffix}"
    tensors = write(adapter(model, plus=False, lora=lora), path)
    opened = open_ip_adapter(path, model).state_dict()
    assert opened.keys() == tensors.keys()  # to the last key
    pipe = theirs()
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=path.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    seen = torch.from_numpy(FACES)[None]
    embeds = torch.cat([torch.zeros_like(seen), seen])
    wanted = pipe(**THEIRS, **SIZE, ip_adapter_image_embeds=[embeds], latents=first(SEED)).images[0]
    made = model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=path, face=FACES, weight=0.6)])[0]
    assert psnr(made, wanted) >= 60
    assert matters(model, made)


@pytest.mark.parametrize("shortcut", [False, True])
def test_face_id_plus(
    folder: Path, model: Pipeline, theirs: Callable, tmp_path: Path, shortcut: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / f"ip-adapter-faceid-{'plusv2' if shortcut else 'plus'}_sd15.safetensors"
    write(adapter(model, plus=True, lora=False, shortcut=shortcut), path)
    vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**EYE))
    randomise(vision, seed=2)
    vision.eval().save_pretrained(tmp_path / "image_encoder")
    eye = {"do_resize": True, "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    extractor = transformers.CLIPImageProcessor(**eye)
    pipe = theirs(image_encoder=vision, feature_extractor=extractor)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=path.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    pixels = extractor(picture(), return_tensors="pt").pixel_values
    with torch.no_grad():
        patches = [
            vision(each, output_hidden_states=True).hidden_states[-2]
            for each in (torch.zeros_like(pixels), pixels)
        ]
    projection.clip_embeds, projection.shortcut = torch.cat(patches)[:, None], shortcut
    seen = torch.from_numpy(FACES)[None]
    embeds = torch.cat([torch.zeros_like(seen), seen])
    wanted = pipe(**THEIRS, **SIZE, ip_adapter_image_embeds=[embeds], latents=first(SEED)).images[0]
    control = Control(file=path, image=picture(), face=FACES, weight=0.6)
    made = model.text_to_image(**PROMPTS, **OURS, controls=[control])[0]
    assert psnr(made, wanted) >= 60
    assert matters(model, made)
    with pytest.raises(ValueError, match="has no picture"):
        model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=path, face=FACES)])


def test_laws(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "faceid.safetensors"
    write(adapter(model, plus=False, lora=True), path)

    def draw(*controls: Control, **options: Any) -> bytes:
        return model.text_to_image(**PROMPTS, **OURS | options, controls=controls)[0].tobytes()

    without, control = draw(), Control(file=path, face=FACES)
    steered = draw(control)
    assert steered != without and draw() == without and draw(control) == steered
    assert draw(Control(file=path, face=FACES, weight=0)) == without
    assert draw(Control(file=path, face=FACES, end=0.01)) == without
    half = Control(file=path, face=FACES, end=0.5, mode="control")
    assert draw(half) not in (without, steered)  # and the prompt's keys are its own again afterwards
    two = Control(file=path, face=np.concatenate([FACES, -FACES]))
    assert draw(two) not in (without, steered)
    batch = model.text_to_image(**PROMPTS, **OURS, controls=[half], batch_size=2)[1]
    alone = model.text_to_image(**PROMPTS, **OURS | {"seed": SEED + 1}, controls=[half])[0]
    assert psnr(batch, alone) >= 60


def test_vectors_of_every_form_are_one(model: Pipeline, tmp_path: Path) -> None:
    np.save(tmp_path / "me.npy", FACES[0].astype(np.float64))
    save_file({"embedding": torch.from_numpy(FACES)[None]}, tmp_path / "me.safetensors")
    made = [
        Control(file="a", face=face)
        for face in (
            FACES,
            FACES[0].tolist(),
            torch.from_numpy(FACES),
            tmp_path / "me.npy",
            tmp_path / "me.safetensors",
        )
    ]
    made.append(Control.model_validate(read_control(f"a:0.5:face={tmp_path / 'me.npy'}")))
    texts = {each.face for each in made}
    assert len(texts) == 1 and Control(file="a", face=texts.pop()).face == made[0].face


@pytest.mark.parametrize(
    ("face", "problem"),
    [
        ("me.npy", "is not base64 of vectors"),
        ("QUJD", "face holds 3 bytes, which are not 32-bit floats"),
        (Path("none.npy"), "face none.npy is not an array"),
        (np.zeros((2, 2, 2)), "has shape (2, 2, 2)"),
        (np.array([1.0, np.nan]), "holds values that are not finite"),
        ({"a": 1}, "holds no vector"),
    ],
)
def test_bad_vectors(face: Any, problem: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  its text is checked
        Control(file="a", face=face)
    assert problem in str(error.value)


def test_what_does_not_fit(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "faceid.safetensors"
    tensors = write(adapter(model, plus=False, lora=True), path)
    for values, problem in (
        ({"image": picture()}, "faceid.safetensors sees vectors of faces; give face=FILE"),
        ({"face": np.zeros(20)}, "face holds 20 numbers, and faceid.safetensors takes 16 a face"),
        ({"face": FACES, "encoder": "x"}, "faceid.safetensors takes no encoder"),
    ):
        with pytest.raises((ValueError, ModelFileError), match=problem):
            model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=path, **values)])
    for change, problem in (
        ({"ip_adapter.0.to_q_lora.up.weight": torch.zeros(7, 4)}, "a low-rank change does not fit"),
        ({"ip_adapter.1.to_x.weight": torch.zeros(2, 2)}, "has a tensor that nothing takes"),
        ({"ip_adapter.0.to_q_lora.up.weight": torch.full((64, 4), torch.nan)}, "not finite"),
    ):
        save_file(tensors | change, tmp_path / "bad.safetensors")
        with pytest.raises(ModelFileError, match=problem):
            open_ip_adapter(tmp_path / "bad.safetensors", model)


def test_a_recipe_holds_the_vectors(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "faceid.safetensors"
    write(adapter(model, plus=False, lora=False), path)
    image = model.text_to_image(**PROMPTS, **OURS, controls=[Control(file=path, face=FACES)])[0]
    known = recorded({RECIPE: json.loads(image.info[RECIPE])})
    controls = tuple(each.model_copy(update={"file": str(path)}) for each in known.request.controls)
    known = known._replace(request=known.request.model_copy(update={"controls": controls}))
    assert again(model, known, {}).tobytes() == image.tobytes()


def test_the_command_line_draws_and_replays(
    model: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe holds the face's vector, so replay needs the adapter's file alone."""
    monkeypatch.chdir(tmp_path)
    write(adapter(model, plus=False, lora=False), tmp_path / "faceid.safetensors")
    np.save("me.npy", FACES)
    used = ["--model", f"{folder}/sd1", "--control"]
    short = ["--steps", "2", "--seed", "1", "--output", "a.png"]
    assert main(["generate", "a taxi", *used, "faceid.safetensors:face=me.npy", *short]) == 0
    assert main(["replay", "a.png", *used, "faceid.safetensors", "--output", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
