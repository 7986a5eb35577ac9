"""The diffusion prior against diffusers' PriorTransformer, at random weights."""

import pytest
import torch
from diffusers import PriorTransformer

from inkwash.files import ModelFileError
from inkwash.models.prior import Prior, PriorConfig
from inkwash.weights.configs import prior_config_from_json, prior_json

SMALL = PriorConfig(vector_dim=12, num_heads=2, head_dim=8, num_layers=2, num_tokens=7)


def pair() -> tuple[Prior, PriorTransformer]:
    torch.manual_seed(0)
    ours = Prior(SMALL).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = PriorTransformer.from_config(prior_json(SMALL)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.no_grad()
def test_it_predicts_what_diffusers_does() -> None:
    ours, theirs = pair()
    x, pooled = torch.randn(2, 3, 12)
    tokens, t = torch.randn(3, 7, 12), torch.tensor([0, 400, 999])
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    wanted = theirs(x, t, pooled, tokens, mask).predicted_image_embedding
    torch.testing.assert_close(ours(x, t, pooled, tokens, mask), wanted, rtol=1e-4, atol=1e-5)
    every = theirs(x, t, pooled, tokens, torch.ones(3, 7).bool()).predicted_image_embedding
    torch.testing.assert_close(ours(x, t, pooled, tokens), every, rtol=1e-4, atol=1e-5)
    cut = theirs(x, t, pooled, tokens, torch.arange(7).expand(3, 7) < 4).predicted_image_embedding
    torch.testing.assert_close(ours(x, t, pooled, tokens[:, :4]), cut, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.unscaled(x), theirs.post_process_latents(x))
    torch.testing.assert_close(ours.scaled(ours.unscaled(x)), x, rtol=1e-3, atol=1e-4)


def test_configs_are_diffusers_own() -> None:
    assert prior_config_from_json(dict(PriorTransformer.from_config(prior_json(SMALL)).config)) == SMALL
    assert prior_config_from_json({"_class_name": "PriorTransformer"}) == PriorConfig()
    with torch.device("meta"):
        assert Prior().state_dict().keys() == PriorTransformer().state_dict().keys()


@pytest.mark.parametrize(
    ("field", "value"), [("norm_in_type", "layer"), ("added_emb_type", None), ("num_layers", 0), ("heads", 2)]
)
def test_what_is_of_another_kind_is_named(field: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=field):
        prior_config_from_json({field: value})


def test_tokens_of_another_number_are_refused() -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match=r"tokens \(1, 8, 12\) should be \(B, 7, 12\)"):
        ours(torch.zeros(1, 12), torch.zeros(1), torch.zeros(1, 12), torch.zeros(1, 8, 12))
