"""The table of tasks, and what is made from it."""

import inspect
import subprocess
import sys
from typing import Annotated

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import inkwash
from inkwash.diffusion import schedules
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.pipeline import names
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.memory.tiling import TiledAutoencoder
from inkwash.pipeline.option import extra
from inkwash.pipeline.passes.hires import resized
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.pipeline.tasks import INPUTS, TASKS, draw_functions
from inkwash.prompts.language import LANGUAGES
from tools import methods, reference


def test_the_page_of_options_is_that_of_the_table() -> None:
    page = reference.TARGET.read_text("utf-8")
    assert page == reference.source(), "run make reference"
    for task in TASKS.values():
        for name, field in task.request.model_fields.items():
            assert name == "prompt" or (extra(field, "flag") or name).replace("_", "-") in page, name


def test_the_typed_methods_are_those_of_the_table() -> None:
    assert methods.TARGET.read_text("utf-8") == methods.source(), "run make methods"


def test_each_task_has_a_drawing_function_a_verb_and_a_known_input() -> None:
    assert draw_functions().keys() == TASKS.keys()
    assert len({task.verb for task in TASKS.values()}) == len(TASKS)
    seen = {task.sees for task in TASKS.values()} - {None}
    assert seen | {"vector"} == INPUTS.keys()  # which a prior gives


@pytest.mark.parametrize("name", TASKS)
def test_the_schema_lists_the_choices_that_a_request_takes(name: str) -> None:
    request = TASKS[name].request
    properties = request.model_json_schema()["properties"]
    described = {field: property for field, property in properties.items() if "enum" in property}
    assert {"sampler", "schedule", "prompt_language", "seamless"} <= described.keys()
    for field, property in described.items():
        check = TypeAdapter(Annotated[request.model_fields[field].annotation, request.model_fields[field]])
        assert [check.validate_python(choice) for choice in property["enum"]] == property["enum"]
        with pytest.raises(ValidationError):
            check.validate_python("nothing of the kind")
        assert property.get("titles", {}).keys() <= set(property["enum"])
    assert properties["sampler"]["titles"]["euler_ancestral"] == "Euler a"


@pytest.mark.parametrize("name", TASKS)
def test_help_lists_every_option_with_its_default(name: str) -> None:
    shown = inspect.signature(getattr(Pipeline, name)).parameters
    for field, info in TASKS[name].request.model_fields.items():
        assert field in shown
        if not info.is_required():
            assert shown[field].default == info.default


@pytest.mark.parametrize("name", TASKS)
def test_every_option_is_described(name: str) -> None:
    for field, info in TASKS[name].request.model_fields.items():
        assert info.description and extra(info, "group"), field


def test_the_names_without_torch_are_those_that_compute() -> None:
    assert names.SAMPLER_NAMES.keys() == SAMPLERS.keys()
    assert names.SCHEDULE_NAMES.keys() == {"automatic", *schedules.SCHEDULES}
    signatures = {name: inspect.signature(sampler).parameters for name, sampler in SAMPLERS.items()}
    assert {name: shown["eta"].default for name, shown in signatures.items() if "eta" in shown} == names.ETAS
    assert names.STEP_RULES == schedules.STEP_RULES
    assert {name: language.emphasis for name, language in LANGUAGES.items()} == names.EMPHASES


def test_the_table_needs_no_torch() -> None:
    code = "import sys, inkwash.pipeline.tasks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "numpy", "PIL"} == set()


def test_the_pictures_between_two_passes_are_seamless_where_the_request_is() -> None:
    """Shifting the latent along the seamless axis shifts the decoded pictures, and so the next pass's latent."""
    model = inkwash.load("mini")
    f = model.autoencoder.config.factor
    latent = torch.randn(1, model.autoencoder.config.latent_channels, 8, 8)
    size = (8 * f, 8 * f)
    request = TextToImageRequest(prompt="a", hires_upscaler="nearest", seamless="x")
    with torch.inference_mode():
        seen = [decoded(model, request, latent.roll(k, 3), size) for k in (0, 4)]
    assert torch.allclose(seen[1], seen[0].roll(4 * f, 3), atol=1.01 * 2 / 255)


def decoded(
    model: Pipeline, request: TextToImageRequest, latent: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """The pixels that the second pass encodes."""
    kept = []

    class Watched(TiledAutoencoder):
        def encode(self, pixels: torch.Tensor):
            kept.append(pixels)
            return super().encode(pixels)

    from dataclasses import replace

    resized(replace(model, autoencoder=Watched(model.autoencoder)), request, latent, size)
    return kept[0]
