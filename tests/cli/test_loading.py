"""Options of how a model is opened are described once, and each way in takes all of them."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import inkwash
from inkwash.cli import app, main
from inkwash.cli.loading import LoadOptions
from inkwash.pipeline.api import open_model
from inkwash.pipeline.loading import MemoryFields, PlaceFields, WeightFields
from inkwash.prompts.folders import Folders

HOW = {**WeightFields.model_fields, **MemoryFields.model_fields}
PYTHON_ONLY = {"prediction": None, "ema": False}


@pytest.mark.parametrize("opens", [inkwash.load, open_model], ids=["load", "open_model"])
def test_python_takes_the_options_with_their_defaults(opens: Any) -> None:
    found = {
        name: one.default
        for name, one in inspect.signature(opens).parameters.items()
        if name not in ("name", "folders")
    }
    assert found == {name: field.default for name, field in HOW.items() if name != "model"} | PYTHON_ONLY


def test_pythons_documentation_names_each_option() -> None:
    text = inspect.getdoc(inkwash.load) or ""
    assert [name for name in HOW.keys() - {"model", "device"} if name not in text] == []
    assert [name for name in PlaceFields.model_fields if name not in text] == []


def test_the_places_are_those_of_the_library() -> None:
    places = [field.name for field in dataclasses.fields(Folders) if field.init]
    assert places == list(PlaceFields.model_fields)


def test_what_the_command_line_gives_is_all_that_python_takes(tmp_path: Path) -> None:
    lora = tmp_path / "a.safetensors"
    given = LoadOptions(lora=(f"{lora}:0.5",), loras=("folder",), parts=("x",), vae_tile=64)
    assert (
        given.how().keys() == HOW.keys() - {"model"}
        and given.places().keys() == PlaceFields.model_fields.keys()
    )
    assert given.places()["loras"] == (lora, "folder") and given.how()["vae_tile"] == 64
    assert given.tags == "<lora:a:0.5>"


@pytest.mark.parametrize("verb", ["generate", "edit", "serve", "explain denoise"])
def test_each_verb_shows_the_options_with_their_descriptions(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main([*verb.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in (*HOW.values(), *PlaceFields.model_fields.values()):
        assert str(field.description).replace("`", "").split(";")[0].rstrip(".") in text.replace("`", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--dtype", "fp8"], "fp8"),
        (["--vae-tile", "2.5"], "whole number"),
        (["--no-offload"], "no-offload"),
    ],
)
def test_a_wrong_value_is_one_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", *line]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and said in message


def test_the_parser_knows_them() -> None:
    names = {name for argument in app["evaluate"].assemble_argument_collection() for name in argument.names}
    assert {"--dtype", "--int8", "--part", "--variant", "--offline"} <= names
