"""`bert/config.json` of diffusers' LDMBertModel."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.bert import BERTConfig
from inkwash.weights.configs.schema import Json, Layout

LDM_BERT = Layout(
    "bert",
    ours={
        "vocab_size": 30522,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_ffn_dim": 5120,
        "encoder_attention_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 77,
    },
    fixed={"activation_function": "gelu", "scale_embedding": False},
    free=frozenset(
        {
            "activation_dropout",
            "architectures",
            "attention_dropout",
            "classifier_dropout",
            "dropout",
            "dtype",
            "encoder_layerdrop",
            "init_std",
            "model_type",
            "num_hidden_layers",  # encoder_layers once more
            "pad_token_id",
            "torch_dtype",
            "transformers_version",
            "use_cache",
        }
    ),
)


def bert_json(config: BERTConfig) -> Json:
    """`bert/config.json` of a config."""
    c = config
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": c.vocab_size,
        "d_model": c.width,
        "encoder_layers": c.num_layers,
        "encoder_ffn_dim": 4 * c.width,
        "encoder_attention_heads": c.num_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_length,
        "pad_token_id": 0,
        **LDM_BERT.fixed,
    }


def bert_config_from_json(data: Mapping[str, Any]) -> BERTConfig:
    """The config of a `bert/config.json`. Raises ModelFileError naming the field that is not covered."""
    layout, read = LDM_BERT, LDM_BERT.read(data)
    width = layout.whole(read, "d_model")
    if read["encoder_ffn_dim"] != 4 * width:
        raise layout.refuse("encoder_ffn_dim", read["encoder_ffn_dim"], f"4 times d_model, {4 * width}")
    return BERTConfig(
        vocab_size=layout.whole(read, "vocab_size"),
        width=width,
        num_layers=layout.whole(read, "encoder_layers"),
        max_length=layout.whole(read, "max_position_embeddings"),
        num_heads=layout.whole(read, "encoder_attention_heads"),
        head_dim=layout.whole(read, "head_dim"),
    )
