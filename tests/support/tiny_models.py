"""Every way to draw, with a tiny random model of its kind."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

import inkwash
from inkwash.models.bert import BERT, BERTConfig
from inkwash.models.clip import CLIPVisionConfig
from inkwash.models.conditions import (
    ClassConfig,
    ClassEmbedder,
    PictureConfig,
    PictureEmbedder,
    SemanticConfig,
    SemanticRescaler,
)
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.pipeline.api import Pipeline

Drawn = list[Image.Image]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
SMALL = PICTURE.crop((0, 0, 20, 16))
MASK = Image.new("L", PICTURE.size)
MASK.paste(255, (8, 6, 26, 20))
SOFT = Image.radial_gradient("L").resize(PICTURE.size)
DEPTH = Image.linear_gradient("L").resize(PICTURE.size).convert("F")
LABELS = Image.fromarray((np.arange(32 * 40).reshape(32, 40) // 9 % 7).astype(np.uint8))


class Way(NamedTuple):
    variant: str
    draw: Callable[..., Drawn]  # of a model and options
    pictures: Mapping[str, Image.Image] = {}


BOTH = {"image": PICTURE, "mask": MASK}
WAYS = {
    "text": Way("plain", lambda m, **o: m.text_to_image("a taxi", "rain", **o)),
    "hires": Way("plain", lambda m, **o: m.text_to_image("a taxi", hires=1.5, hires_steps=2, **o)),
    "regions": Way(
        "plain",
        lambda m, **o: m.text_to_image(
            "a taxi", regions=["0,0,0.5,1=a cat", "0.25,0.5,1,1=a (dog:1.2)"], **o
        ),
    ),
    "handed over": Way("refined", lambda m, **o: m.text_to_image("a taxi", refiner_switch_at=0.6, **o)),
    "refined": Way("refined", lambda m, **o: m.text_to_image("a taxi", refiner_strength=0.6, **o)),
    "picture": Way("plain", lambda m, **o: m.image_to_image("a taxi", PICTURE, **o), {"image": PICTURE}),
    "mask": Way("plain", lambda m, **o: m.inpaint("a", PICTURE, MASK, fill="noise", strength=0.9, **o), BOTH),
    "seen mask": Way("inpainting", lambda m, **o: m.inpaint("a", PICTURE, MASK, **o), BOTH),
    "mask alone": Way(
        "plain", lambda m, **o: m.inpaint("a", PICTURE, MASK, only_masked=True, padding=4, **o), BOTH
    ),
    "soft mask": Way(
        "plain",
        lambda m, **o: m.inpaint("a", PICTURE, SOFT, soft_mask=True, **o),
        {"image": PICTURE, "mask": SOFT},
    ),
    "blended mask": Way(
        "plain",
        lambda m, **o: m.inpaint("a", PICTURE, SOFT, blend_mask=True, strength=0.8, **o),
        {"image": PICTURE, "mask": SOFT},
    ),
    "tiles": Way(
        "plain",
        lambda m, **o: m.image_to_image("a", PICTURE, tile=32, tile_padding=8, tile_blending=4, **o),
        {"image": PICTURE},
    ),
    "sides": Way(
        "plain", lambda m, **o: m.outpaint("a", PICTURE, left=6, bottom=10, **o), {"image": PICTURE}
    ),
    "depth": Way(
        "depth",
        lambda m, **o: m.depth_to_image("a taxi", PICTURE, DEPTH, **o),
        {"image": PICTURE, "depth": DEPTH},
    ),
    "instruction": Way(
        "instruct", lambda m, **o: m.instruct("make it red", PICTURE, **o), {"image": PICTURE}
    ),
    "larger": Way(
        "upscaler", lambda m, **o: m.upscale("a taxi", SMALL, noise_level=30, **o), {"image": SMALL}
    ),
    "boxes of words": Way(
        "layout", lambda m, **o: m.layout_to_image(["0,0.5,0.6,1=taxi", "0.5,0,1,1=rocket"], "a", **o)
    ),
    "boxes of categories": Way(
        "categories", lambda m, **o: m.layout_to_image(["0,0.5,0.6,1=7", "0.5,0,1,1=80"], **o)
    ),
    "labels": Way("semantic", lambda m, **o: m.semantic_to_image(LABELS, **o), {"labels": LABELS}),
    "meaning": Way("unclip", lambda m, **o: m.vary(PICTURE, prompt="a taxi", **o), {"image": PICTURE}),
    "meaning of two": Way(
        "variations",
        lambda m, **o: m.vary(PICTURE, SMALL, mix=0.3, **o),
        {"image": PICTURE, "second": SMALL},
    ),
    "class": Way("classes", lambda m, **o: m.text_to_image("", class_label=3, **o)),
    "class beside words": Way("labelled", lambda m, **o: m.text_to_image("a taxi", class_label=3, **o)),
}


def drawn_at_random(network: nn.Module) -> Any:
    random = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=random)
    return network.eval().requires_grad_(False)


def variants(folder: Path) -> dict[str, Pipeline]:
    """Models of each kind, made of the parts of the one in a folder, which draws of words alone."""
    base = inkwash.load(folder)

    def seeing(channels: int = 0, **changes: Any) -> UNet:
        c = base.unet.config
        return drawn_at_random(UNet(replace(c, in_channels=c.in_channels + channels, **changes)))

    silent = replace(base, text_encoders=())
    eye = CLIPVisionConfig(
        width=16, num_layers=1, num_heads=2, mlp_width=16, image_size=16, patch_size=8, projection_dim=8
    )
    boxes = BERTConfig(vocab_size=90, width=8, num_layers=1, max_length=11, num_heads=1, head_dim=8)
    return {
        "plain": base,
        "refined": replace(base, refiner=replace(base, unet=seeing())),
        "inpainting": replace(base, unet=seeing(5)),
        "depth": replace(base, unet=seeing(1)),
        "instruct": replace(base, unet=seeing(4)),
        "upscaler": replace(base, unet=seeing(3, num_classes=1000)),
        "layout": replace(base, unet=seeing(8)),
        "categories": replace(silent, unet=seeing(), cond_stage=drawn_at_random(BERT(boxes))),
        "semantic": replace(
            silent,
            unet=seeing(3, context_dim=None),
            cond_stage=drawn_at_random(SemanticRescaler(SemanticConfig(7, 3))),
        ),
        "unclip": replace(
            base,
            unet=seeing(vector_dim=16, image_vector=True),
            cond_stage=drawn_at_random(PictureEmbedder(PictureConfig(eye))),
        ),
        "variations": replace(
            silent,
            unet=seeing(),
            cond_stage=drawn_at_random(PictureEmbedder(PictureConfig(eye, noised=False))),
        ),
        "classes": replace(
            silent, unet=seeing(), cond_stage=drawn_at_random(ClassEmbedder(ClassConfig(10, 8)))
        ),
        "labelled": replace(base, unet=seeing(num_classes=10)),
    }


def write_clip(folder: Path) -> CLIPModel:
    """Write a small random CLIP of 12 numbers in transformers' folder."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = Tokenizer([])
    text = CLIPTextConfig(
        **size, vocab_size=len(tokenizer.vocab), eos_token_id=tokenizer.end, projection_dim=12
    )
    vision = transformers.CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=12)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model
