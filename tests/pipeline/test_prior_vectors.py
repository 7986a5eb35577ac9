"""A prior's folder against diffusers' and transformers' parts, and its vectors against UnCLIPScheduler's steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from transformers import CLIPTextModelWithProjection

from inkwash.diffusion.noise import mixed
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.prior import Prior, PriorConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.pipeline.prior import TextPrior, open_prior
from inkwash.weights.checkpoint import Component, TextComponent
from inkwash.weights.models.prior import PriorParts, read_prior, write_prior

CONFIG = PriorConfig(vector_dim=8, num_heads=2, head_dim=4, num_layers=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer([])
    text = CLIPText(
        CLIPTextConfig(
            vocab_size=len(tokenizer.vocab), width=8, num_layers=1, num_heads=2, mlp_width=16,
            eos_token=tokenizer.end, projection_dim=8,
        )
    )  # fmt: skip
    prior = Prior(CONFIG)
    random = torch.Generator().manual_seed(0)
    for network in (text, prior):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.4, generator=random)
    text_part = TextComponent(text.config, text.state_dict(), tokenizer)
    write_prior(PriorParts(Component(CONFIG, prior.state_dict()), text_part, 2.0), tmp_path / "prior")
    return tmp_path / "prior"


@torch.no_grad()
def test_vectors_are_those_of_the_published_pipeline(folder: Path) -> None:
    """With diffusers' network and scheduler and transformers' text tower of the folder, and the same noise."""
    prompts, seed = ["a taxi", "a long red rocket"], 5
    made = torch.cat([open_prior(folder)([text], [seed], steps=10, cfg_scale=3.0) for text in prompts])
    network = PriorTransformer.from_pretrained(folder / "prior").eval()
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").eval()
    scheduler = UnCLIPScheduler.from_pretrained(folder / "prior_scheduler")
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    for k, prompt in enumerate(prompts):
        ids = torch.tensor(tokenizer([prompt, ""]))
        mask = torch.arange(77) <= (ids == tokenizer.end).int().argmax(1, keepdim=True)
        read = text(ids)
        random = torch.Generator().manual_seed(mixed(seed, -2))
        x = torch.randn(1, 8, generator=random)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[1] == 888  # whole, as ours need not be
        for i, t in enumerate(scheduler.timesteps):
            args = (read.text_embeds, read.last_hidden_state, mask)
            cond, uncond = network(torch.cat([x, x]), t, *args).predicted_image_embedding.chunk(2)
            then = scheduler.timesteps[i + 1] if i < 9 else None
            x = scheduler.step(
                uncond + 3 * (cond - uncond), t, x, prev_timestep=then, generator=random
            ).prev_sample
        torch.testing.assert_close(made[k : k + 1], network.post_process_latents(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(made[0], made[1])


def test_a_vector_depends_on_its_own_prompt_and_seed(folder: Path) -> None:
    prior = open_prior(folder)
    both = prior(["a taxi", "a book"], [3, 4], steps=4)
    torch.testing.assert_close(both[1:], prior(["a book"], [4], steps=4), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[1:], prior(["a book"], [5], steps=4), rtol=0, atol=1e-6)
    tight = TextPrior(prior.network, prior.text, 0.05)
    assert not torch.allclose(both, tight(["a taxi", "a book"], [3, 4], steps=4), atol=1e-2)  # it is bounded


def test_what_is_missing_or_of_another_kind_is_named(folder: Path) -> None:
    parts = read_prior(folder)
    assert parts.bound == 2.0 and parts.prior.config == CONFIG
    wide = replace(CONFIG, vector_dim=16)
    write_prior(replace(parts, prior=Component(wide, Prior(wide).state_dict())), folder)
    with pytest.raises(ModelFileError, match="text_encoder gives vectors of 8 and 8, and the prior takes 16"):
        read_prior(folder)
    path = folder / "prior_scheduler/scheduler_config.json"
    path.write_text(json.dumps({"prediction_type": "epsilon"}))
    with pytest.raises(ModelFileError, match="prediction_type 'epsilon', and not 'sample'"):
        read_prior(folder)
    (folder / "prior/config.json").unlink()
    with pytest.raises(ModelFileError, match="has no prior/config.json"):
        read_prior(folder)
