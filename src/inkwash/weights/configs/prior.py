"""`config.json` of diffusers' PriorTransformer."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.prior import PriorConfig
from inkwash.weights.configs.schema import Json, Layout

PRIOR = Layout(
    "prior",
    ours={
        "embedding_dim": 768,
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "num_layers": 20,
        "num_embeddings": 77,
    },
    fixed={
        "additional_embeddings": 4,
        "time_embed_act_fn": "silu",
        "norm_in_type": None,
        "embedding_proj_norm_type": None,
        "encoder_hid_proj_type": "linear",
        "added_emb_type": "prd",
        "time_embed_dim": None,
        "embedding_proj_dim": None,
        "clip_embed_dim": None,
    },
    free=frozenset({"dropout"}),
)


def prior_json(config: PriorConfig) -> Json:
    """`config.json` of a config."""
    c = config
    return {
        "_class_name": "PriorTransformer",
        "embedding_dim": c.vector_dim,
        "num_attention_heads": c.num_heads,
        "attention_head_dim": c.head_dim,
        "num_layers": c.num_layers,
        "num_embeddings": c.num_tokens,
        **PRIOR.fixed,
    }


def prior_config_from_json(data: Mapping[str, Any]) -> PriorConfig:
    """The config of a `config.json`. Raises ModelFileError naming the field that is not covered, such as Shap-E's."""
    layout, read = PRIOR, PRIOR.read(data)
    names = {
        "vector_dim": "embedding_dim",
        "num_heads": "num_attention_heads",
        "head_dim": "attention_head_dim",
        "num_layers": "num_layers",
        "num_tokens": "num_embeddings",
    }
    return PriorConfig(**{ours: layout.whole(read, theirs) for ours, theirs in names.items()})
