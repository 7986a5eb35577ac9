"""Which block a tensor is in, what presets weigh, and which weights are refused."""

import pytest
import torch
from pydantic import ValidationError

from inkwash.files import ModelFileError
from inkwash.merge.blocks import Rule, Weights, block_names, block_of, component_of, num_inputs
from inkwash.merge.expression import weights
from inkwash.merge.presets import PRESETS
from inkwash.models.unet import UNet
from inkwash.weights.checkpoint import Undrawn
from inkwash.weights.families import FAMILIES

PREFIX = "model.diffusion_model."


def keys(family: str) -> list[str]:
    """Names of a whole U-Net of full size."""
    with torch.device("meta"), Undrawn():
        return [PREFIX + name for name in UNet(FAMILIES[family].unet).state_dict()]


@pytest.mark.parametrize(("family", "inputs", "num"), [("sd1", 12, 26), ("sd2", 12, 26), ("sdxl", 9, 20)])
def test_every_tensor_of_a_full_u_net_is_in_its_block(family: str, inputs: int, num: int) -> None:
    names = keys(family)
    assert num_inputs(names) == inputs
    assert len(block_names(inputs)) == num
    seen = set()
    for name in names:
        word, number = (*name.removeprefix(PREFIX).split("."), "")[:2]
        expected = {
            "input_blocks": f"IN{number:0>2}",
            "output_blocks": f"OUT{number:0>2}",
            "middle_block": "M00",
            "time_embed": "IN00",
            "label_emb": "IN00",
            "out": "OUT08" if family == "sdxl" else "OUT11",
        }[word]
        assert block_of(name, inputs) == expected
        embeds = word in ("time_embed", "label_emb")
        assert block_of(name, inputs, "sd-mecha") == ("BASE" if embeds else expected)
        seen.add(expected)
    assert seen == set(block_names(inputs)) - {"BASE"}


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("first_stage_model.decoder.conv_in.weight", "vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "text_encoder"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "text_encoder"),
        ("conditioner.embedders.1.model.ln_final.weight", "text_encoder_2"),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", None),
        ("model_ema.decay", None),
        ("alphas_cumprod", None),
    ],
)
def test_what_lies_outside_of_the_u_net_is_base(name: str, component: str | None) -> None:
    assert component_of(name) == component
    assert block_of(name, 12) == "BASE"


def test_presets_have_26_weights_and_those_that_tools_share() -> None:
    assert len(PRESETS) == 38
    assert {len(values) for values in PRESETS.values()} == {26}
    known = {  # block: weight, as published
        "GRAD_V": {1: 1, 2: 0.9166666667, 13: 0, 25: 1},
        "GRAD_A": {1: 0, 2: 0.0833333333, 13: 1, 25: 0},
        "WRAP14": {7: 1, 8: 0, 18: 0, 19: 1},
        "MID12_50": {5: 0, 6: 0.5, 19: 0.5, 20: 0},
        "OUT07": {18: 0, 19: 1, 25: 1},
        "OUT12_5": {12: 0, 13: 0.5, 14: 1},
        "RING08_SOFT": {5: 0, 6: 0.5, 7: 1, 9: 1, 10: 0.5, 11: 0, 15: 0, 16: 0.5, 20: 0.5, 21: 0},
        "RING10_3": {6: 0, 7: 1, 11: 1, 12: 0, 14: 0, 15: 1, 19: 1, 20: 0},
        "SMOOTHSTEP": {2: 0.0050636574, 7: 0.15625, 13: 0.5},
        "SMOOTHSTEP*3": {10: 0.94921875, 11: 0.8715277778, 16: 0.0507812500},
        "R_SMOOTHSTEP*4": {10: 0.265625, 13: 1},
        "SMOOTHSTEP/3": {2: 0.04296875, 9: 1, 17: 0},
        "R_SMOOTHSTEP/4": {2: 0.9259259259, 7: 0, 25: 1},
        "COSINE": {1: 1, 2: 0.9957224307, 25: 0},
        "TRUE_CUBIC_HERMITE": {1: 0, 2: 0.1990318769, 13: 0.5208333333, 24: 0.8426347897},
        "FAKE_REVERSE_CUBIC_HERMITE": {2: 0.8424238040, 9: 0.4320987654, 13: 0.5},
        "ALL_B": {0: 1, 25: 1},
    }
    for name, at in known.items():
        for i, value in at.items():
            assert PRESETS[name][i] == pytest.approx(value, abs=1e-9), (name, i)


def test_a_preset_for_sdxl_has_the_first_input_and_output_blocks() -> None:
    values = Weights(blocks="GRAD_V").by_block(9)
    full = PRESETS["GRAD_V"][1:]
    assert list(values.values()) == [0, *full[:9], *full[12:22]]


def test_rules_components_and_maps() -> None:
    names = keys("sd1")
    chosen = Weights(
        base=0.5,
        blocks=tuple(i / 100 for i in range(25)),
        components={"vae": 0.9},
        rules=("IN01-IN02,M00:attn2:0.7", "NOT BASE-OUT10:proj_in:0.8", ":time_embed:0.1"),
    ).of(names)
    at = {
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": 0.7,
        "input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight": 0.01,
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": 0.04,
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": 0.7,
        "output_blocks.11.1.proj_in.weight": 0.8,
        "output_blocks.10.1.proj_in.weight": 0.23,
        "time_embed.0.weight": 0.1,
    }
    assert {name: chosen.at(PREFIX + name) for name in at} == at
    assert chosen.at("first_stage_model.decoder.conv_in.weight") == 0.9
    assert chosen.at("cond_stage_model.transformer.text_model.final_layer_norm.weight") == 0.5


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("GRAD", "neither numbers nor one of GRAD_V"),
        ({"components": {"clip": 1}}, "component 'clip' is not one of unet, vae"),
        (float("nan"), "not a finite number"),
        ({"alpha": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_are_no_weights(value: object, said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        weights(value)


def test_weights_of_another_number_of_blocks() -> None:
    with pytest.raises(
        ModelFileError, match="25 are given; this U-Net takes 19, IN00 to OUT08, or 20 with BASE"
    ):
        Weights(blocks=(0.5,) * 25).of(keys("sdxl"))
    assert Weights(blocks=(0.5,) * 20).of(keys("sdxl")).blocks["BASE"] == 0.5


@pytest.mark.parametrize("rule", ["IN01:attn1", "IN01:attn1:x", "IN12:attn1:0.5", "UP:attn1:0.5"])
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(ValueError, match="rule"):
        Rule.parse(rule, 12)


def test_weights_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Weights().base = 1.0  # type: ignore[misc]
