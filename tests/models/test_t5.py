"""T5's encoder is that of transformers, and its tokenizer that of SentencePiece."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkwash.models.t5 import T5, T5Config, buckets
from inkwash.models.unigram import Unigram
from inkwash.weights.configs import t5_config_from_json
from tests.models.test_unet import assert_near, randomise

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

GATED = T5Config(vocab_size=60, width=32, num_layers=3, num_heads=4, head_dim=16, mlp_width=48, max_length=9)
CONFIGS = {
    "1.1": GATED,
    "first": replace(GATED, gated=False),
    "near": replace(GATED, num_buckets=8, max_distance=6),
}
TEXT = """A red taxi drives through the rain. Two small rockets stand beside a blue book, and a cat looks at them.
The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs! 0123456789 What is it?
Vexed wizards quickly jot down rhymes (some of them twice): "yes", "no", 'maybe' - and nothing else."""


def theirs(config: T5Config) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.mlp_width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            feed_forward_proj="gated-gelu" if config.gated else "relu",
        )
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoder_is_that_of_transformers(name: str) -> None:
    ours = T5(CONFIGS[name]).eval()
    randomise(ours)
    peer = theirs(CONFIGS[name])
    peer.load_state_dict(ours.state_dict() | {"encoder.embed_tokens.weight": ours.shared.weight})
    tokens = torch.randint(2, 60, (3, 40), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((40, 7, 1)):
        tokens[row, length - 1], tokens[row, length:] = 1, 0
    wanted = peer(tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True)
    assert_near(ours(tokens)[0], wanted.last_hidden_state)
    assert_near(ours(tokens, skip=2, final_norm=False)[0], wanted.hidden_states[-2])


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = T5(GATED).eval()
    randomise(model)
    short, long = torch.tensor([[5, 9, 1]]), torch.tensor([[5, 9, 1, 0, 0, 0]])
    torch.testing.assert_close(model(long)[0][:, :3], model(short)[0])
    torch.testing.assert_close(model(long)[1], model(short)[1])


@torch.no_grad()
def test_half_precision_stays_finite_where_sums_leave_its_range() -> None:
    model = T5(GATED).eval()
    randomise(model)
    for name, parameter in model.named_parameters():
        if name.endswith("DenseReluDense.wo.weight"):
            parameter.mul_(30_000)
    tokens = torch.tensor([[5, 9, 33, 1]])
    wanted = model(tokens)[0]
    made = model.half()(tokens)[0]
    assert made.isfinite().all()
    assert (made.float() - wanted).norm() / wanted.norm() < 0.02


# of the published checkpoints: width, MLP, layers, heads; the small ones' heads together are narrower than the tokens
PUBLISHED = {
    "t5-v1_1-xxl": T5Config(),
    "flan-t5-small": T5Config(width=512, mlp_width=1024, num_layers=8, num_heads=6),
    "flan-t5-xl": T5Config(width=2048, mlp_width=5120, num_layers=24, num_heads=32),
    "t5-base": T5Config(width=768, mlp_width=3072, num_layers=12, num_heads=12, gated=False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_read_as_transformers_writes_them(name: str, tmp_path: Path) -> None:
    c = PUBLISHED[name]
    published = transformers.T5Config(
        d_model=c.width, d_ff=c.mlp_width, num_layers=c.num_layers, num_heads=c.num_heads, d_kv=64,
        feed_forward_proj="gated-gelu" if c.gated else "relu", tie_word_embeddings=not c.gated,
        architectures=["T5ForConditionalGeneration"], n_positions=512, output_past=True,
    )  # fmt: skip
    published.save_pretrained(tmp_path)
    assert t5_config_from_json(json.loads((tmp_path / "config.json").read_text())) == c
    with torch.device("meta"):
        ours, peer = T5(c).state_dict(), transformers.T5EncoderModel(published).state_dict()
    assert ours.keys() | {"encoder.embed_tokens.weight"} == peer.keys() | {"encoder.embed_tokens.weight"}
    assert all(ours[key].shape == peer[key].shape for key in ours)


def test_buckets_are_those_of_transformers() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    positions = torch.arange(300)
    wanted = T5Attention._relative_position_bucket(positions[None] - positions[:, None], True, 32, 128)
    assert torch.equal(buckets(300, 32, 128), wanted)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "text.txt").write_text("\n".join(TEXT.split(". ") * 4), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def both(spiece: Path) -> tuple[Unigram, object]:
    return Unigram.from_model(spiece.read_bytes()), sentencepiece.SentencePieceProcessor(
        model_file=str(spiece)
    )


WRITTEN = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co", "Cc", "Cf")), max_size=24
)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text("abcdeorstux .,!?", max_size=40), WRITTEN))
def test_token_ids_are_those_of_sentencepiece(both: tuple, text: str) -> None:
    ours, peer = both
    assert ours.encode(text) == peer.encode(text)


def test_rows_are_ended_cut_and_filled(both: tuple) -> None:
    ours, _ = both
    rows = ours(["", "a red taxi", "rain " * 200])
    assert {len(row) for row in rows} == {77}
    assert rows[0] == [1] + [0] * 76 and rows[2][-1] == 1
    assert ours.decode(rows[1]) == "a red taxi"


def test_transformers_reads_what_is_written(both: tuple, tmp_path: Path) -> None:
    ours, _ = both
    for name, content in ours.texts().items():
        (tmp_path / name).write_text(content, "utf-8")
    again = Unigram.from_texts({name: (tmp_path / name).read_text("utf-8") for name in ours.texts()})
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a red taxi", "  two  rockets, (twice)!", "ﬁve ½"):
        assert again.encode(text) == ours.encode(text)
        assert peer(text).input_ids == [*ours.encode(text), 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x0a\xff", "ends too early|has no end"), (b"\x0b", "kind 3"), (b"", "lacks <pad>")],
)
def test_what_is_no_model_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unigram.from_model(content)
    with pytest.raises(ValueError, match="type BPE"):
        Unigram.from_texts({"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {}}})})
