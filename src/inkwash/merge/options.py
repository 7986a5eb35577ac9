"""The options of one merge step, described once: for the command line and over HTTP. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from inkwash.pipeline.option import option

# the keys of methods.METHODS, which imports torch; a test holds them together
MethodName = Literal[
    "weighted_sum", "add_difference", "triple_sum", "sum_twice", "rebasin", "slerp", "average", "geometric_median",
    "model_stock", "task_arithmetic", "ties", "dare", "dare_ties", "della", "cosine_a", "cosine_b", "train_difference",
    "smooth_add", "extract", "tensor", "tensor2", "self", "add", "subtract",
]  # fmt: skip
BLOCKS, RESULT = "Weights of blocks", "Result"


class MergeOptions(BaseModel):
    """Options of a merge in one step."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    models: tuple[str, ...] = option(..., "Models, the leading one first.", min_length=1, max_length=16)
    method: MethodName | None = option(
        None, "Default: weighted_sum of two models, add_difference of three.", unset="by the number of models"
    )
    alpha: float | None = option(None, "How much of the second model; default: the method's own.")
    beta: float | None = option(
        None, "How much of the third, or the method's second number; default: its own."
    )
    gamma: float | None = option(None, "The method's third number.")
    density: float | None = option(None, "Share of a difference that stays: ties, dare, della.")
    shares: tuple[float, ...] = option((), "A weight for each model, in order.", flag="share")
    seed: int = option(0, "Of what the method draws.", ge=0, lt=2**63)
    block_weights: str | None = option(
        None,
        "Alpha of each block: a preset's name, or numbers from IN00 on, with commas.",
        group=BLOCKS,
    )
    block_weights_beta: str | None = option(None, "The same of beta.", group=BLOCKS)
    block_map: Literal["supermerger", "sd-mecha"] = option(
        "supermerger", "Which tool's blocks are meant.", group=BLOCKS
    )
    components: Mapping[str, float] = option(
        {}, "Alpha of whole networks: unet, vae, text_encoder, text_encoder_2.", group=BLOCKS
    )
    rules: tuple[str, ...] = option(
        (), 'BLOCKS:PIECES:ALPHA, such as "IN04-IN08:attn1:0.2".', group=BLOCKS, flag="rule"
    )
    ema: bool = option(False, "Take the averages that the files hold.", group=RESULT)
    vae: str | None = option(None, "A model whose autoencoder the result gets.", group=RESULT)
    dtype: Literal["fp32", "fp16", "bf16"] | None = option(
        None, "Of the result; default: as the first model.", group=RESULT
    )

    def recipe(self) -> dict[str, Any]:
        """The fields of a `recipe.Recipe` of one step."""
        keys = names(len(self.models))
        step: dict[str, Any] = {"models": keys, "shares": self.shares, "seed": self.seed}
        step["method"] = self.method or ("add_difference" if len(keys) == 3 else "weighted_sum")
        for name in ("gamma", "density"):
            step |= {name: value} if (value := getattr(self, name)) is not None else {}
        more = {"alpha": {"rules": self.rules, "components": self.components}, "beta": {}}
        for name, blocks in (("alpha", self.block_weights), ("beta", self.block_weights_beta)):
            base = getattr(self, name)
            if base is not None or blocks is not None or any(more[name].values()):
                step[name] = more[name] | {"blocks": blocks, "block_map": self.block_map}
                step[name] |= {"base": base} if base is not None else {}
        models = dict(zip(keys, self.models, strict=True))
        averages = keys if self.ema else []
        return {"models": models, "steps": [step], "dtype": self.dtype, "vae": self.vae, "ema": averages}


def names(num: int) -> Sequence[str]:
    """a, b, c ... z, then by number."""
    return [chr(ord("a") + i) if i < 26 else f"model{i}" for i in range(num)]
