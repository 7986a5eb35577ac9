"""The same random weights in our CLIP towers and in transformers' give the same vectors."""

import json
from dataclasses import replace

import pytest
import torch

from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from inkwash.weights.configs import (
    clip_text_config_from_json,
    clip_text_json,
    clip_vision_config_from_json,
    clip_vision_json,
)
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import CLIP_TEXT_BARE, CLIP_VISION_BARE
from tests.models.test_unet import assert_near, randomise

transformers = pytest.importorskip("transformers")

TEXT = CLIPTextConfig(
    vocab_size=100, width=32, num_layers=4, num_heads=4, mlp_width=64, max_length=12, eos_token=99
)
TEXTS = {
    "clip-l": TEXT,
    "open clip": replace(TEXT, activation="gelu"),
    "projected": replace(TEXT, activation="gelu", projection_dim=24),
    "eos inside the vocabulary": replace(TEXT, eos_token=60, projection_dim=32),
}
VISION = CLIPVisionConfig(
    width=32, num_layers=3, num_heads=4, mlp_width=64, image_size=12, patch_size=4, projection_dim=24
)
VISIONS = {
    "clip-l": VISION,
    "bare": replace(VISION, projection_dim=None),
    "open clip": replace(VISION, activation="gelu", patch_size=6, num_heads=2),
}


def tokens(config: CLIPTextConfig) -> torch.Tensor:
    """End of text inside, padding by end of text, padding by 0, and no room for padding."""
    eos = config.eos_token
    rows = torch.randint(0, 60, (4, config.max_length), generator=torch.Generator().manual_seed(2))
    rows[0, 5:] = eos
    rows[1, 3] = eos
    rows[1, 4:] = 0
    rows[2, -1] = eos
    rows[3, 1:] = eos
    return rows


def text_pair(config: CLIPTextConfig) -> tuple[CLIPText, torch.nn.Module]:
    ours = CLIPText(config).eval()
    randomise(ours)
    kind = "CLIPTextModel" if config.projection_dim is None else "CLIPTextModelWithProjection"
    data = clip_text_json(config)
    assert data["architectures"] == [kind]
    reference = transformers.CLIPTextConfig(**data, bos_token_id=0, pad_token_id=0)
    theirs = getattr(transformers, kind)(reference).eval()
    fill(ours, theirs, CLIP_TEXT_BARE)
    return ours, theirs


def fill(ours: torch.nn.Module, theirs: torch.nn.Module, bare: dict[str, str | None]) -> None:
    tensors, wanted = ours.state_dict(), theirs.state_dict()
    if not any(key.startswith(("text_model.", "vision_model.")) for key in wanted):
        tensors = translate(tensors, bare)
    theirs.load_state_dict(tensors)


@torch.no_grad()
@pytest.mark.parametrize("config", TEXTS.values(), ids=TEXTS.keys())
def test_text_tower(config):
    ours, theirs = text_pair(config)
    ids = tokens(config)
    expected = theirs(ids, output_hidden_states=True)
    context, pooled = ours(ids)
    assert_near(context, expected.last_hidden_state)
    assert_near(pooled, expected.text_embeds if config.projection_dim else expected.pooler_output)

    norm = ours.text_model.final_layer_norm
    for skip in (1, 2, 4):
        hidden = expected.hidden_states[len(expected.hidden_states) - skip]
        skipped, same = ours(ids, skip=skip, final_norm=False)
        assert_near(skipped, hidden)
        assert torch.equal(same, pooled)  # the pooled vector is the last layer's whatever the skip
        assert_near(ours(ids, skip=skip)[0], norm(hidden))


@torch.no_grad()
def test_short_rows_are_taken_as_they_are():
    ours, theirs = text_pair(TEXT)
    ids = torch.tensor([[1, 5, 99]])
    assert_near(ours(ids)[0], theirs(ids).last_hidden_state)


@torch.no_grad()
def test_text_after_a_token_does_not_change_it():
    ours, _ = text_pair(TEXT)
    ids = tokens(TEXT)[2:3]
    context = ours(ids)[0]
    changed = ours(torch.cat([ids[:, :6], ids[:, 6:].flip(1)], dim=1))[0]
    assert torch.allclose(context[:, :6], changed[:, :6], atol=1e-5)
    assert not torch.allclose(context[:, 6:], changed[:, 6:], atol=1e-2)


def test_text_input_out_of_range_is_refused():
    model = CLIPText(TEXT)
    for skip in (0, 5):
        with pytest.raises(ValueError, match=f"clip skip {skip} is not in 1 to 4"):
            model(tokens(TEXT), skip=skip)
    with pytest.raises(ValueError, match="13 tokens"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="'relu'"):
        replace(TEXT, activation="relu")


@torch.no_grad()
@pytest.mark.parametrize("config", VISIONS.values(), ids=VISIONS.keys())
def test_vision_tower(config):
    ours = CLIPVision(config).eval()
    randomise(ours)
    kind = "CLIPVisionModel" if config.projection_dim is None else "CLIPVisionModelWithProjection"
    data = clip_vision_json(config)
    assert data["architectures"] == [kind]
    theirs = getattr(transformers, kind)(transformers.CLIPVisionConfig(**data)).eval()
    fill(ours, theirs, CLIP_VISION_BARE)

    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    expected = theirs(pixels, output_hidden_states=True)
    hidden, vector = ours(pixels)
    assert_near(hidden, expected.last_hidden_state)
    assert_near(vector, expected.image_embeds if config.projection_dim else expected.pooler_output)
    assert_near(ours(pixels, skip=2)[0], expected.hidden_states[-2])
    with pytest.raises(ValueError, match="16x12 given, 12x12 wanted"):
        ours(torch.zeros(1, 3, 12, 16))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (CLIPTextConfig(), 123_060_480),
        (
            CLIPTextConfig(
                width=1280,
                num_layers=32,
                num_heads=20,
                mlp_width=5120,
                activation="gelu",
                projection_dim=1280,
            ),
            694_659_840,
        ),
    ],
    ids=["clip-l", "open clip bigG"],
)
def test_published_text_parameter_counts(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPText(config).parameters()) == count


def test_published_vision_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPVision().parameters()) == 303_966_208


@pytest.mark.parametrize("config", TEXTS.values(), ids=TEXTS.keys())
def test_text_config_json_round_trip(config, tmp_path):
    assert clip_text_config_from_json(clip_text_json(config)) == config
    text_pair(config)[1].save_pretrained(tmp_path)
    assert clip_text_config_from_json(json.loads((tmp_path / "config.json").read_text())) == config


@pytest.mark.parametrize("config", VISIONS.values(), ids=VISIONS.keys())
def test_vision_config_json_round_trip(config):
    assert clip_vision_config_from_json(clip_vision_json(config)) == config


def published(**fields) -> dict:
    """`text_encoder/config.json` as Stable Diffusion 1's has it, with its end of text "2"."""
    return {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    } | fields


def test_published_configs():
    assert clip_text_config_from_json(published()) == CLIPTextConfig()
    second = published(architectures=["CLIPTextModelWithProjection"], hidden_act="gelu", projection_dim=1280)
    assert clip_text_config_from_json(second) == CLIPTextConfig(activation="gelu", projection_dim=1280)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["CLIPModel"]),
        ("architectures", None),
        ("hidden_act", "relu"),
        ("hidden_act", ["gelu"]),
        ("layer_norm_eps", 1e-6),
        ("model_type", "clip"),
        ("num_attention_heads", 7),
        ("num_hidden_layers", "12"),
        ("eos_token_id", 49408),
        ("eos_token_id", [1, 2]),
        ("vocab_size", -1),
        ("hidden_sise", 768),
    ],
)
def test_what_ours_does_not_cover_is_refused_by_name(field, value):
    with pytest.raises(ModelFileError, match=field):
        clip_text_config_from_json(published(**{field: value}))


def test_vision_fields_are_refused_by_name():
    with pytest.raises(ModelFileError, match="num_channels"):
        clip_vision_config_from_json(clip_vision_json(VISION) | {"num_channels": 4})
    with pytest.raises(ModelFileError, match="image_size"):
        clip_vision_config_from_json(clip_vision_json(VISION) | {"image_size": [12, 12]})


def test_an_end_of_text_that_readers_misread_is_refused():
    with pytest.raises(ModelFileError, match="eos_token"):
        clip_text_json(replace(TEXT, eos_token=2))
