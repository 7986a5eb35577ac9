"""Options of the methods that change a diffusion model, or learn beside one."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from inkwash.pipeline.controls import Annotators
from inkwash.pipeline.option import option
from inkwash.training.config import (
    DATA,
    LORA,
    MODEL,
    OPTIMIZER,
    STEPS,
    WATCH,
    DiffusionConfig,
    Texts,
    as_numbers,
)

# numbers of parts of paths, by option
PAIRS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "rank_of": ("a rank from 0 to 1024", lambda number: number in range(1025)),
    "alpha_of": ("a number above 0", lambda number: 0 < number <= 10**5),
    "lr_of": ("a number from 0", lambda number: 0 <= number <= 10**5),
}


class LoRAConfig(DiffusionConfig):
    """A low-rank adapter."""

    kind: Literal["lora", "dora", "loha", "lokr", "glora", "ia3", "oft", "boft", "full"] = option(
        "lora", "What each layer learns; lora of convolutions is LoCon.", group=LORA
    )
    rank: int = option(8, "Rank of matrices.", group=LORA, ge=1, le=1024)
    alpha: float | None = option(
        None, "Scales the change by alpha / rank.", unset="the rank", group=LORA, gt=0, le=10**5
    )
    conv_rank: int = option(0, "Rank of 3x3 convolutions; 0 leaves them out.", group=LORA, ge=0, le=1024)
    conv_alpha: float | None = option(
        None, "Alpha of 3x3 convolutions.", unset="alpha", group=LORA, gt=0, le=10**5
    )
    targets: Texts = option(
        ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"),
        "Ends of the paths of layers; 'all' is every matrix. Of text encoders they count with --text-lr.",
        group=LORA,
    )
    rank_of: Texts = option(
        (),
        "Another rank for layers whose path holds a text, as 'middle_block=16'; 0 leaves out; repeatable.",
        group=LORA,
    )
    alpha_of: Texts = option((), "Another alpha for such layers, as 'attn2=4'; repeatable.", group=LORA)
    lr_of: Texts = option(
        (), "The rate times a factor for such layers, as 'input_blocks=0.5'; repeatable.", group=LORA
    )
    text_lr: float = option(
        0.0, "Learning rate of the text encoders; 0 leaves them as they are.", group=LORA, ge=0, le=100
    )
    factor: int = option(
        8, "Of lokr, the size of its small matrix; of oft and boft, of a block.", group=LORA, ge=2, le=1024
    )
    compensated: bool = option(
        False, "Start with both factors random, and their product taken off the weight.", group=LORA
    )
    names: Literal["kohya", "peft"] = option(
        "kohya", "Names in the file: kohya's, which all programs read, or diffusers' and peft's.", group=LORA
    )
    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp16", "Of the file.", group=LORA)

    @field_validator("rank_of", "alpha_of", "lr_of")
    @classmethod
    def check_pairs(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind, allowed = PAIRS[info.field_name or ""]
        for text in value:
            part, _, number = text.rpartition("=")
            try:
                if not part or not allowed(float(number)):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{text!r} is not a path's part and {kind}, as in 'middle_block=16'"
                ) from None
        return value

    @model_validator(mode="after")
    def check_names(self) -> Self:
        if self.names == "peft" and self.kind not in ("lora", "dora"):
            raise ValueError(f"names peft goes with kind lora or dora, not {self.kind}; give names kohya")
        return self


class FinetuneConfig(DiffusionConfig):
    """All weights, or some, of a model."""

    train: Texts = option(
        (),
        "Parts of paths of the U-Net's layers that learn, such as attn2 or input_blocks.0.",
        unset="all",
        group=MODEL,
    )
    text_lr: float = option(
        0.0, "Learning rate of the text encoders; 0 leaves them as they are.", group=OPTIMIZER, ge=0, le=100
    )
    from_scratch: bool = option(False, "Start from random weights of the U-Net.", group=MODEL)
    compile: bool = option(
        False,
        "Compile the U-Net by torch.compile: minutes at the start, then faster steps, for a GPU.",
        group=STEPS,
    )
    layout: Literal["single", "diffusers"] = option(
        "single", "Of the result: one safetensors file, or a folder.", group=WATCH
    )
    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp16", "Of the result.", group=WATCH)


class DreamBoothConfig(LoRAConfig, FinetuneConfig):
    """A subject from a few pictures, with prior preservation (Ruiz et al. 2023)."""

    whole: bool = option(False, "Train all weights of the U-Net in place of a LoRA.", group=MODEL)
    instance_prompt: str = option(
        ..., "Words for the subject, with a rare one, such as 'a sks taxi'.", group=DATA, min_length=1
    )
    class_prompt: str = option(
        "", "Words for its class, such as 'a taxi'; empty does without prior preservation.", group=DATA
    )
    class_data: str = option(
        "",
        "Folder of pictures of the class; missing ones are drawn by the model.",
        unset="in the output's folder",
        group=DATA,
    )
    class_pictures: int = option(100, "Number of pictures of the class.", group=DATA, ge=1, le=10**5)


class TextualInversionConfig(DiffusionConfig):
    """New words for a text encoder (Gal et al. 2023)."""

    token: str = option(..., "The new word, by which prompts name it.", group=MODEL, min_length=1)
    num_vectors: int = option(1, "Vectors of the word, 1 to 75.", group=MODEL, ge=1, le=75)
    init_word: str = option("", "Words whose vectors it starts from.", unset="a random start", group=MODEL)
    template: Literal["captions", "object", "style"] = option(
        "captions",
        "Texts that it is learned in: the pictures' captions, in which the token must stand, or sentences about it.",
        group=DATA,
    )
    lr: float = option(5e-3, "Learning rate.", group=OPTIMIZER, gt=0, le=100)
    weight_decay: float = option(0.0, "Decoupled weight decay.", group=OPTIMIZER, ge=0, le=10)

    @field_validator("token")
    @classmethod
    def check_token(cls, value: str) -> str:
        if set(value) & set("/\\\0"):
            raise ValueError(f"{value!r} holds a slash, and is the name of a file")
        return value


class HypernetworkConfig(DiffusionConfig):
    """Networks before the keys and values of every attention, as AUTOMATIC1111 has them."""

    layer_structure: Annotated[tuple[float, ...], BeforeValidator(as_numbers)] = option(
        (1.0, 2.0, 1.0), "Widths of the layers, as multiples of the tokens' width.", group=MODEL, min_length=2
    )
    activation: str = option("linear", "Activation between the layers, by AUTOMATIC1111's name.", group=MODEL)
    layer_norm: bool = option(False, "A norm after each layer.", group=MODEL)
    lr: float = option(1e-5, "Learning rate.", group=OPTIMIZER, gt=0, le=100)


class InpaintingConfig(FinetuneConfig):
    """A U-Net that sees a mask and the rest of the picture. Masks are random, or the pictures' own."""


class DepthConfig(FinetuneConfig):
    """A U-Net that sees depth: a picture of it for each, lighter where nearer, as the role depth."""


class InstructConfig(FinetuneConfig):
    """A U-Net that sees the picture before an edit, as the role before (Brooks et al. 2023)."""


class ControlOptions(DiffusionConfig):
    """A network beside a U-Net that stays as it is."""

    save_dtype: Literal["fp16", "bf16", "fp32"] = option("fp16", "Of the result.", group=WATCH)


class HintedOptions(ControlOptions):
    """Options of methods whose network sees hints."""

    hint: Literal["pictures", Annotators] = option(
        "pictures",
        "What it sees: pictures of the role hint, or what an annotator makes of each training picture.",
        group=DATA,
    )


class ControlNetOptions(HintedOptions):
    """A ControlNet (Zhang et al. 2023)."""

    size: Literal["full", "mid", "small"] = option(
        "full", "Of its attention: the U-Net's, one layer where that has any, or none.", group=MODEL
    )
    layout: Literal["single", "diffusers"] = option(
        "single", "Of the result: one file under the original names, or a folder.", group=WATCH
    )
    lr: float = option(1e-5, "Learning rate.", group=OPTIMIZER, gt=0, le=100)


class T2IAdapterOptions(HintedOptions):
    """A T2I-Adapter (Mou et al. 2023)."""

    light: bool = option(False, "Blocks at a quarter of the width.", group=MODEL)
    lr: float = option(1e-5, "Learning rate.", group=OPTIMIZER, gt=0, le=100)


class LLLiteOptions(HintedOptions):
    """A ControlNet-LLLite (kohya's)."""

    hint_width: int = option(32, "Channels of the hint's embedding.", group=MODEL, ge=2, le=1024)
    rank: int = option(64, "Width of each layer's network.", group=MODEL, ge=1, le=1024)
    lr: float = option(2e-4, "Learning rate.", group=OPTIMIZER, gt=0, le=100)


class IPAdapterOptions(ControlOptions):
    """An IP-Adapter (Ye et al. 2023)."""

    encoder: str = option(
        ..., "The CLIP vision tower that it sees by: a folder, also of a whole CLIP, or a file.", group=MODEL
    )
    num_tokens: int = option(4, "Tokens that a picture becomes.", group=MODEL, ge=1, le=1024)
    picture_dropout: float = option(
        0.1, "How often the picture is left out, 0 to 1; keeps guidance trained.", group=DATA, ge=0, le=1
    )
