"""`text_encoder/config.json` and `image_encoder/config.json`."""

from collections.abc import Mapping
from typing import Any

from inkwash.kernels.linear import ACTIVATIONS
from inkwash.models.clip import CLIPTextConfig, CLIPVisionConfig
from inkwash.weights.configs.schema import Json, Layout

CLIP_FREE = frozenset(
    {
        "attention_dropout",
        "dropout",
        "dtype",
        "initializer_factor",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
    }
)
CLIP_OURS: Json = {
    "architectures": ...,
    "hidden_size": ...,
    "intermediate_size": ...,
    "num_hidden_layers": ...,
    "num_attention_heads": ...,
    "hidden_act": "quick_gelu",
    "projection_dim": None,
}
CLIP_TEXT = Layout(
    "text_encoder",
    ours={**CLIP_OURS, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    fixed={"model_type": "clip_text_model", "layer_norm_eps": 1e-5},
    free=CLIP_FREE | {"bos_token_id", "pad_token_id"},
)
CLIP_VISION = Layout(
    "image_encoder",
    ours={**CLIP_OURS, "image_size": 224, "patch_size": ...},
    fixed={"model_type": "clip_vision_model", "layer_norm_eps": 1e-5, "num_channels": 3},
    free=CLIP_FREE,
)


def clip_json(config: CLIPTextConfig | CLIPVisionConfig, layout: Layout, name: str) -> Json:
    projects = config.projection_dim is not None
    return {
        "architectures": [name + "WithProjection" * projects],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": config.activation,
        "projection_dim": config.projection_dim if projects else config.width,  # transformers wants one
        **layout.fixed,
    }


def clip_fields(layout: Layout, read: Json, name: str) -> Json:
    architectures, activation = read["architectures"], read["hidden_act"]
    if architectures not in ([name], [f"{name}WithProjection"]):
        raise layout.refuse("architectures", architectures, f"[{name!r}] or [{name + 'WithProjection'!r}]")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise layout.refuse("hidden_act", activation, " or ".join(ACTIVATIONS))
    if layout.whole(read, "hidden_size") % layout.whole(read, "num_attention_heads"):
        raise layout.refuse("num_attention_heads", read["num_attention_heads"], "a divisor of hidden_size")
    return {
        "width": read["hidden_size"],
        "mlp_width": layout.whole(read, "intermediate_size"),
        "num_layers": layout.whole(read, "num_hidden_layers"),
        "num_heads": read["num_attention_heads"],
        "activation": activation,
        # a tower without projection names a width all the same
        "projection_dim": None if architectures == [name] else layout.whole(read, "projection_dim"),
    }


def clip_text_json(config: CLIPTextConfig) -> Json:
    """`text_encoder/config.json` of a config: a CLIPTextModel, or a CLIPTextModelWithProjection.

    Raises ModelFileError for an eos_token of 2, which readers take for "the greatest id".
    """
    if config.eos_token == 2 != config.vocab_size - 1:
        raise CLIP_TEXT.refuse("eos_token", 2, "any other token")
    return clip_json(config, CLIP_TEXT, "CLIPTextModel") | {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "eos_token_id": config.eos_token,
    }


def clip_text_config_from_json(data: Mapping[str, Any]) -> CLIPTextConfig:
    """The config of a `text_encoder/config.json`. Raises ModelFileError naming the field not covered."""
    layout, read = CLIP_TEXT, CLIP_TEXT.read(data)
    vocab_size, eos = layout.whole(read, "vocab_size"), layout.whole(read, "eos_token_id")
    if eos >= vocab_size:
        raise layout.refuse("eos_token_id", eos, f"a token below vocab_size, {vocab_size}")
    return CLIPTextConfig(
        **clip_fields(layout, read, "CLIPTextModel"),
        vocab_size=vocab_size,
        max_length=layout.whole(read, "max_position_embeddings"),
        # exports of SD1's time say 2, which transformers reads as "the greatest id"
        eos_token=vocab_size - 1 if eos == 2 else eos,
    )


def clip_vision_json(config: CLIPVisionConfig) -> Json:
    """`image_encoder/config.json` of a config: a CLIPVisionModel, or a CLIPVisionModelWithProjection."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return clip_json(config, CLIP_VISION, "CLIPVisionModel") | sizes


def clip_vision_config_from_json(data: Mapping[str, Any]) -> CLIPVisionConfig:
    """The config of an `image_encoder/config.json`. Raises ModelFileError naming the field not covered."""
    layout, read = CLIP_VISION, CLIP_VISION.read(data)
    return CLIPVisionConfig(
        **clip_fields(layout, read, "CLIPVisionModel"),
        image_size=layout.whole(read, "image_size"),
        patch_size=layout.whole(read, "patch_size"),
    )
