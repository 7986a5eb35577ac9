"""The same random weights in our text encoder and in diffusers' LDMBertModel give the same context."""

import pytest
import torch

from inkwash.models.bert import BERT, BERTConfig
from inkwash.weights.names.keymap import translate
from inkwash.weights.names.tables import bert_table
from tests.models.test_unet import assert_near, randomise

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SMALL = BERTConfig(vocab_size=99, width=48, num_layers=3, max_length=12, num_heads=3, head_dim=8)


@torch.no_grad()
@pytest.mark.parametrize("length", [12, 5])
def test_same_context(length: int) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    c = SMALL
    config = LDMBertConfig(
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        encoder_layers=c.num_layers,
        encoder_ffn_dim=4 * c.width,
        encoder_attention_heads=c.num_heads,
        head_dim=c.head_dim,
        d_model=c.width,
    )
    ours, theirs = BERT(c).eval(), LDMBertModel(config).eval()
    randomise(ours)
    named = translate(ours.state_dict(), bert_table(c))
    left = theirs.load_state_dict(named, strict=False)
    assert left.missing_keys == ["to_logits.weight", "to_logits.bias"] and not left.unexpected_keys
    tokens = torch.randint(99, (2, length), generator=torch.Generator().manual_seed(0))
    context, pooled = ours(tokens)
    assert_near(context, theirs(tokens)[0])
    assert torch.equal(pooled, context[:, 0])
    model = ours.transformer
    penultimate = theirs(tokens, output_hidden_states=True).hidden_states[2]
    assert_near(ours(tokens, skip=2, final_norm=False)[0], penultimate)
    assert_near(ours(tokens, skip=2)[0], model.norm(penultimate))
    back = translate(named, bert_table(c), inverse=True, expected=ours.state_dict())
    assert all(torch.equal(back[key], value) for key, value in ours.state_dict().items())


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens are more than the 12"):
        BERT(SMALL)(torch.zeros(1, 13, dtype=torch.long))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="skip 4 is not in 1 to 3"):
        BERT(SMALL)(torch.zeros(1, 2, dtype=torch.long), skip=4)
