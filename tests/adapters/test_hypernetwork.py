"""A1111's hypernetworks: as its own layers compute, nothing at strength 0, and nothing once detached."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inkwash
from inkwash.adapters.hypernetwork import ACTIVATIONS, prepare_hypernetwork, read_hypernetwork
from inkwash.files import ModelFileError
from inkwash.nn.attention import Context, CrossAttention
from inkwash.pipeline.api import Pipeline
from tests.adapters.test_low_rank import randn, seen

WIDTH = 8  # of the tiny model's tokens, of the picture and of the text


@pytest.fixture
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def layers(structure: list[float], activation: str, norm: bool, dropout: bool, last: bool) -> nn.Sequential:
    """In the order of A1111's module, whose numbers count activations and dropout too."""
    made: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(structure)):
        made.append(nn.Linear(int(WIDTH * a), int(WIDTH * b)))
        if activation != "linear" and (last or i < len(structure) - 2):
            made.append(ACTIVATIONS[activation]())
        if norm:
            made.append(nn.LayerNorm(int(WIDTH * b)))
        if dropout and i < len(structure) - 2:
            made.append(nn.Dropout(0.3))
    network = nn.Sequential(*made).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def save(path: Path, pair: tuple[nn.Sequential, nn.Sequential], **about: Any) -> Path:
    states = tuple({f"linear.{key}": value for key, value in one.state_dict().items()} for one in pair)
    torch.save({WIDTH: states, "step": 5, "name": "odd", "sd_checkpoint": None, **about}, path)
    return path


@pytest.mark.parametrize(
    ("structure", "activation", "norm", "dropout", "last"),
    [
        ([1, 2, 1], "linear", False, False, False),
        ([1, 2, 2, 1], "relu", True, True, False),
        ([1, 0.5, 1], "swish", False, False, True),
        ([1, 1.5, 1], "mish", True, False, True),
    ],
)
def test_it_is_a1111_s(model: Pipeline, tmp_path: Path, structure, activation, norm, dropout, last) -> None:
    torch.manual_seed(3)
    pair = tuple(layers(structure, activation, norm, dropout, last) for _ in range(2))
    path = save(
        tmp_path / "a.pt",
        pair,
        layer_structure=structure,
        activation_func=activation,
        is_layer_norm=norm,
        use_dropout=dropout,
        activate_output=last,
    )
    found = read_hypernetwork(path, model)
    attention = next(module for module in model.unet.modules() if isinstance(module, CrossAttention))
    x, tokens = randn(1, 5, 8), randn(1, 7, 8)
    inputs: dict[str, Tensor] = {}
    for name in ("to_k", "to_v"):
        getattr(attention, name).register_forward_hook(
            lambda layer, args, out, name=name: inputs.update({name: args[0]})
        )
    with torch.no_grad(), prepare_hypernetwork(model, found, 0.7):
        attention(x, Context(tokens))
        for name, network in zip(("to_k", "to_v"), pair, strict=True):
            torch.testing.assert_close(inputs[name], tokens + 0.7 * network(tokens))
        attention(x)
        torch.testing.assert_close(inputs["to_v"], x + 0.7 * pair[1](x))


def test_detached_or_at_0_it_is_nothing_bitwise(model: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", tuple(layers([1, 2, 1], "linear", False, False, False) for _ in range(2)))
    found, before = read_hypernetwork(path, model), seen(model)
    with prepare_hypernetwork(model, found, 0.0):
        assert all(map(torch.equal, seen(model), before))
    with prepare_hypernetwork(model, found, 0.5):
        assert (seen(model)[1] - before[1]).abs().max() > 0.01
    assert all(map(torch.equal, seen(model), before))
    assert not any(layer._forward_pre_hooks for layer in model.unet.modules())


def test_files_of_the_first_days(model: Pipeline, tmp_path: Path) -> None:
    old, new = {}, {}
    for i in (1, 2):
        shape = (16, 8) if i == 1 else (8, 16)
        old |= {f"linear{i}.weight": randn(*shape), f"linear{i}.bias": randn(shape[0])}
        new |= {f"linear.{i - 1}.{kind}": old[f"linear{i}.{kind}"] for kind in ("weight", "bias")}
    torch.save({WIDTH: (old, old)}, tmp_path / "old.pt")
    torch.save({WIDTH: (new, new)}, tmp_path / "new.pt")
    made = []
    for name in ("old.pt", "new.pt"):
        with prepare_hypernetwork(model, read_hypernetwork(tmp_path / name, model)):
            made.append(seen(model)[1])
    assert torch.equal(*made)


def test_prompts_name_them(tiny: Path, tmp_path: Path) -> None:
    save(tmp_path / "odd.pt", tuple(layers([1, 2, 1], "relu", True, False, False) for _ in range(2)))
    model = inkwash.load(tiny, hypernetworks=tmp_path)
    options: dict[str, Any] = {"steps": 2, "seed": 1}
    plain, none, some = (
        model.text_to_image(f"a taxi{tag}", **options)[0]
        for tag in ("", "<hypernet:odd:0>", "<hypernet:odd:0.8>")
    )
    assert plain.tobytes() == none.tobytes() != some.tobytes()
    assert 'Hypernet hashes: "odd: ' in some.info["parameters"]
    with pytest.raises(ValueError, match="there is no hypernetwork 'od'; near: odd"):
        model.text_to_image("a taxi<hypernet:od>", **options)


def good() -> dict[str, Tensor]:
    return {"linear.0.weight": randn(8, 8), "linear.0.bias": randn(8)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({768: (good(), good())}, "it changes tokens 768 wide; the model's attentions see 8"),
        (
            {WIDTH: (good(), good()), "activation_func": "magic"},
            "activation_func 'magic' is not one of linear,",
        ),
        ({WIDTH: (good(), good()), "activation_func": 3}, "activation_func '3' is not one of"),
        ({WIDTH: (good(), {"linear.0.weight": randn(8, 8)})}, "8's linear.0 does not fit tokens 8 wide"),
        ({WIDTH: (good(), {})}, "8's layers give tokens 8 wide"),
        ({WIDTH: (good(), good() | {"linear.0.weight": randn(9, 8)})}, "8's linear.0 does not fit"),
        ({WIDTH: (good(), good() | {"linear.1.weight": randn(9)})}, "8's linear.1 does not fit"),
        ({WIDTH: (good(), good() | {"linear.x.weight": randn(8)})}, "linear.x.weight is not a tensor of"),
        ({WIDTH: (good(), good(), good())}, "8.2.linear.0.weight is not a tensor of a hypernetwork"),
        ({WIDTH: (good(), {"linear.0.weight": randn(8, 8) / 0, "linear.0.bias": randn(8)})}, "not finite"),
        ({"taxi": randn(8)}, "taxi is not a tensor of a hypernetwork"),
    ],
)
def test_what_does_not_fit_is_said(model: Pipeline, tmp_path: Path, content: dict, message: str) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ModelFileError) as caught:
        read_hypernetwork(tmp_path / "bad.pt", model)
    assert message in str(caught.value) and "bad.pt" in str(caught.value)
