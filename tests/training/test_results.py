"""What a result says of itself: its prediction, its schedule, and what programs of the field read in its metadata."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import inkwash
from inkwash.adapters.embeddings import sources
from inkwash.prompts.conditioning import Reading, text_states
from inkwash.training.metadata import architecture
from inkwash.training.methods import METHODS
from inkwash.training.run import trained
from inkwash.training.trainable.whole import predicting
from inkwash.weights.detect import prediction_of, zero_terminal
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.convert import read_checkpoint
from inkwash.weights.models.folder import write_folder
from tests.weights.test_single_files import SMALL, random_checkpoint

CASES = [("v", False), ("v", True), ("eps", False), ("x0", True), ("edm_v", False)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    place = tmp_path_factory.mktemp("pictures")
    for k in range(2):
        Image.new("RGB", (32, 32), (90 * k, 60, 90)).save(place / f"{k}.png")
    return {"data": str(place), "resolution": 32, "buckets": False, "steps": 1}


@pytest.mark.parametrize("layout", ["single", "diffusers"])
@pytest.mark.parametrize(("prediction", "zero_snr"), CASES)
def test_a_model_says_what_it_has_learnt_to_predict(
    given: dict[str, object], tiny: Path, tmp_path: Path, layout: str, prediction: str, zero_snr: bool
) -> None:
    """And a training that goes on from it does so: as Stable Diffusion 2's stages do from eps to v to zero SNR."""
    more = {"layout": layout, "prediction": prediction, "zero_snr": zero_snr}
    path = trained("text-to-image", model=str(tiny), output=str(tmp_path / "run"), **given | more)
    for k in range(2):
        assert path
        made = inkwash.load(str(path))
        assert made.prediction == prediction
        if prediction != "edm_v":
            assert (float(made.schedule.alphas_cumprod[-1]) < 1e-6) is zero_snr
        output = str(tmp_path / f"again-{k}")
        path = trained("text-to-image", model=str(path), output=output, layout="single", **given)


@pytest.mark.parametrize(("prediction", "zero_snr"), CASES)
def test_a_single_file_says_it_by_markers(tiny: Path, prediction: str, zero_snr: bool) -> None:
    """Where it was written from no folder, whose small files would say it; a further one drops what no longer holds."""
    start = replace(read_checkpoint(tiny), texts={})
    made = predicting(start, prediction, zero_snr)
    said = {"modelspec.prediction_type": {"eps": "epsilon", "x0": "sample"}.get(prediction, prediction)}
    assert prediction_of(FAMILIES["sd1"], {}, made.others, said)[0] == prediction
    assert zero_terminal(made.others)[0] is zero_snr
    assert predicting(made, prediction, zero_snr) is made
    assert "v_pred" not in predicting(made, "x0", zero_snr).others


def test_edm_needs_a_folder(given: dict[str, object], tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prediction edm needs layout diffusers"):
        trained("text-to-image", model=str(tiny), output=str(tmp_path / "run"), prediction="edm", **given)


def metadata(path: Path | None) -> dict[str, str]:
    assert path
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_programs_of_the_field_know_the_family(given: dict[str, object], tiny: Path, tmp_path: Path) -> None:
    """AUTOMATIC1111 goes by ss_v2 and ss_base_model_version, the model spec by the architecture."""
    own = {"output": str(tmp_path / "run"), "rank": 2} | given
    said = metadata(trained("lora", model=str(tiny), **own))
    wanted = {
        "ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "epsilon", "modelspec.resolution": "32x32",
    }  # fmt: skip
    assert {name: said.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("family", "prediction", "method", "wanted"),
    [
        ("sd1", "eps", "text-to-image", "stable-diffusion-v1"),
        ("sd2", "eps", "lora", "stable-diffusion-v2-512/lora"),
        ("sd2", "v", "dreambooth", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "eps", "textual-inversion", "stable-diffusion-xl-v1-base/textual-inversion"),
        ("sdxl-refiner", "eps", "lora", "stable-diffusion-xl-v1-refiner/lora"),
        ("ddpm-cifar10", "eps", "unconditional", ""),
    ],
)
def test_architectures_are_the_model_specs(family: str, prediction: str, method: str, wanted: str) -> None:
    own = FAMILIES[family]
    model = SimpleNamespace(
        sizes=own.sizes, prediction=prediction, text_encoders=own.text, unet=SimpleNamespace(config=own.unet)
    )
    config = METHODS[method].config.model_construct()
    assert architecture(model, config) == wanted  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["small-sd2", "small-sdxl"])
def test_a_new_word_opens_in_diffusers(
    given: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Several vectors from a word's own, for each of SDXL's encoders; both tools encode a prompt with it alike."""
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setitem(FAMILIES, kind, SMALL[kind])
    write_folder(random_checkpoint(SMALL[kind], "eps"), tmp_path / "base")
    own = {"token": "sks", "num_vectors": 3, "init_word": "cat", "template": "object", "lr": 0.1}
    path = trained(
        "textual-inversion", model=str(tmp_path / "base"), output=str(tmp_path / "run"), **given | own
    )
    assert path
    tensors = load_file(path)
    encoders = inkwash.load(tmp_path / "base").text_encoders
    names = ["clip_l", "clip_g"] if len(encoders) == 2 else ["emb_params"]
    assert sorted(tensors) == sorted(names)
    of = diffusers.StableDiffusionXLPipeline if len(encoders) == 2 else diffusers.StableDiffusionPipeline
    pipe = of.from_pretrained(tmp_path / "base", local_files_only=True)
    model = inkwash.load(tmp_path / "base", embeddings=[path])
    for k, name in enumerate(names):
        end = f"_{k + 1}" if k else ""
        tokenizer, theirs = getattr(pipe, f"tokenizer{end}"), getattr(pipe, f"text_encoder{end}")
        start = encoders[k].model.text_model.embeddings.token_embedding.weight[
            encoders[k].tokenizer.encode("cat")[-1]
        ]
        assert tensors[name].shape[0] == 3 and 0.01 < (tensors[name] - start).abs().max() < 0.5
        pipe.load_textual_inversion(tensors[name], token="sks", text_encoder=theirs, tokenizer=tokenizer)
    wanted = pipe.encode_prompt(
        "a sks", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    reading = Reading(embeddings=dict(sources(model.folders.embedding_files())))
    states = text_states(model.text_encoders, ["a sks"], reading)
    torch.testing.assert_close(states["a sks"][0], wanted[0], rtol=1e-4, atol=1e-5)
