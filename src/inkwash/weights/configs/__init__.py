"""Configs to and from the `config.json` files of a diffusers folder, in diffusers' and transformers' fields.

Writing gives every field that sets the architecture. Reading takes no field on trust: each one either sets
ours, or must have the one value that ours stands for (a missing field has it), or cannot change the network.
Anything else raises ModelFileError with the field's name.
"""

from inkwash.weights.configs.autoencoder import (
    autoencoder_config_from_json,
    autoencoder_json,
    tiny_autoencoder_config_from_json,
    tiny_autoencoder_json,
)
from inkwash.weights.configs.bert import bert_config_from_json, bert_json
from inkwash.weights.configs.clip import (
    clip_text_config_from_json,
    clip_text_json,
    clip_vision_config_from_json,
    clip_vision_json,
)
from inkwash.weights.configs.controlnet import (
    controlnet_config_from_json,
    controlnet_json,
    controlnet_union_config_from_json,
    controlnet_union_json,
)
from inkwash.weights.configs.prior import prior_config_from_json, prior_json
from inkwash.weights.configs.t5 import t5_config_from_json, t5_json
from inkwash.weights.configs.unet import unet_config_from_json, unet_json

__all__ = [
    "autoencoder_config_from_json",
    "autoencoder_json",
    "bert_config_from_json",
    "bert_json",
    "clip_text_config_from_json",
    "clip_text_json",
    "clip_vision_config_from_json",
    "clip_vision_json",
    "controlnet_config_from_json",
    "controlnet_json",
    "controlnet_union_config_from_json",
    "controlnet_union_json",
    "prior_config_from_json",
    "prior_json",
    "t5_config_from_json",
    "t5_json",
    "tiny_autoencoder_config_from_json",
    "tiny_autoencoder_json",
    "unet_config_from_json",
    "unet_json",
]
