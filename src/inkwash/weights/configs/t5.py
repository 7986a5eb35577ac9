"""`text_encoder/config.json` of T5's encoders."""

from collections.abc import Mapping
from typing import Any

from inkwash.models.t5 import T5Config
from inkwash.weights.configs.schema import Json, Layout

# a pattern of names in a whole T5 that its encoder has not: the other half, and the table of tokens once more
T5_UNUSED = r"(decoder|lm_head)\.|encoder\.embed_tokens\."
FORWARD = {True: "gated-gelu", False: "relu"}
T5 = Layout(
    "text_encoder",
    ours={
        "vocab_size": ...,
        "d_model": ...,
        "d_kv": ...,
        "d_ff": ...,
        "num_layers": ...,
        "num_heads": ...,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
    },
    fixed={"model_type": "t5"},
    free=frozenset(
        "architectures bos_token_id classifier_dropout decoder_start_token_id dense_act_fn dropout_rate dtype eos_token_id "
        "id2label initializer_factor is_decoder is_encoder_decoder is_gated_act label2id n_positions num_decoder_layers "
        "output_past scale_decoder_outputs task_specific_params tie_word_embeddings torch_dtype transformers_version "
        "use_cache".split()
    ),
)


def t5_json(config: T5Config) -> Json:
    """`text_encoder/config.json` of a config: a T5EncoderModel."""
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_width,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": FORWARD[config.gated],
        "layer_norm_epsilon": config.eps,
        "pad_token_id": config.pad,
        **T5.fixed,
    }


def t5_config_from_json(data: Mapping[str, Any]) -> T5Config:
    """The config of such a file. Raises ModelFileError naming the field that is not covered."""
    layout, read = T5, T5.read(data)
    kinds = {theirs: gated for gated, theirs in FORWARD.items()}
    if not isinstance(read["feed_forward_proj"], str) or read["feed_forward_proj"] not in kinds:
        raise layout.refuse("feed_forward_proj", read["feed_forward_proj"], " or ".join(kinds))
    eps, num = read["layer_norm_epsilon"], layout.whole(read, "relative_attention_num_buckets")
    if type(eps) is not float or not 0 < eps < 1:
        raise layout.refuse("layer_norm_epsilon", eps, "a number between 0 and 1")
    if num % 4 or layout.whole(read, "relative_attention_max_distance") <= num // 4:
        raise layout.refuse(
            "relative_attention_num_buckets", num, "a multiple of 4, below 4 times the distance"
        )
    if read["pad_token_id"] != 0:
        raise layout.refuse("pad_token_id", read["pad_token_id"], "0")
    return T5Config(
        vocab_size=layout.whole(read, "vocab_size"),
        width=layout.whole(read, "d_model"),
        num_layers=layout.whole(read, "num_layers"),
        num_heads=layout.whole(read, "num_heads"),
        head_dim=layout.whole(read, "d_kv"),
        mlp_width=layout.whole(read, "d_ff"),
        gated=kinds[read["feed_forward_proj"]],
        num_buckets=num,
        max_distance=read["relative_attention_max_distance"],
        eps=eps,
    )
