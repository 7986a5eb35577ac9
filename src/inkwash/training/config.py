"""The options of every training method, each described once: for TOML files, the command line, Python and the documentation.

Imports no torch, so that the command line's help answers at once.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from inkwash.pipeline.option import option

MODEL, DATA, STEPS, OPTIMIZER, NOISE, WATCH = (
    "Model",
    "Data",
    "Steps",
    "Optimizer",
    "Noise and loss",
    "Saving and watching",
)
LORA = "LoRA"


def as_list(value: object) -> object:
    """One text as a list of one."""
    return (value,) if isinstance(value, str) else value


def as_pair(value: object) -> object:
    """One number, or a text such as 512x768, as width and height."""
    if isinstance(value, str):
        value = [int(part) if part.strip().isdecimal() else part for part in value.split("x")]
        return value * 2 if len(value) == 1 else value
    return (value, value) if isinstance(value, int) else value


def as_numbers(value: object) -> object:
    """Numbers, or texts of some between commas, as one list."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return [one for part in parts for one in (part.split(",") if isinstance(part, str) else (part,))]


Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(as_numbers)]
Texts = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Side = Annotated[int, Field(ge=8, le=16384)]
Resolution = Annotated[tuple[Side, Side], BeforeValidator(as_pair)]


class TrainConfig(BaseModel):
    """Options that all methods share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    output: str = option(
        ...,
        "Folder of the run: its result, state, log and samples; a run that is there is resumed.",
        group=WATCH,
    )

    steps: int = option(1000, "Number of optimizer steps.", group=STEPS, ge=1, le=10**9)
    epochs: int = option(
        0, "Times that every picture is seen, in place of --steps; 0 is off.", group=STEPS, ge=0, le=10**6
    )
    batch_size: int = option(1, "Pictures in a step of one process.", group=STEPS, ge=1, le=65536)
    accumulation: int = option(
        1, "Batches whose gradients are summed up for a step.", group=STEPS, ge=1, le=65536
    )
    seed: int = option(0, "Everything random follows from it.", group=STEPS, ge=0, lt=2**63)
    device: str = option("cpu", "cpu, cuda or cuda:1.", group=STEPS)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Of the computation; the weights that learn are fp32. auto: bf16 for full-size models where the device has it.",
        group=STEPS,
    )
    gradient_checkpointing: bool = option(
        False,
        "Compute activations twice in place of keeping them: less memory, about 1.3 times the time.",
        group=STEPS,
    )
    fused_backward: bool = option(
        False,
        "Step each weight as soon as its gradient is there, and free that; needs accumulation 1 and max_grad_norm 0.",
        group=STEPS,
    )
    threads: int = option(0, "CPU threads; 0 is torch's own choice.", group=STEPS, ge=0, le=1024)

    lr: float = option(1e-4, "Learning rate.", group=OPTIMIZER, gt=0, le=100)
    lr_schedule: Literal["constant", "linear", "cosine", "restarts", "polynomial"] = option(
        "constant", "How the rate falls after the warm-up.", group=OPTIMIZER
    )
    warmup: int = option(0, "Steps over which the rate rises from 0.", group=OPTIMIZER, ge=0)
    lr_cycles: int = option(1, "Of the schedule restarts, how many.", group=OPTIMIZER, ge=1, le=1000)
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "muon", "prodigy", "sgd"] = option(
        "adamw",
        "adamw8bit needs torchao, prodigy prodigyopt; muon trains matrices, adamw the rest.",
        group=OPTIMIZER,
    )
    betas: Betas = option((0.9, 0.999), "Of AdamW.", group=OPTIMIZER)
    weight_decay: float = option(0.01, "Decoupled weight decay.", group=OPTIMIZER, ge=0, le=10)
    max_grad_norm: float = option(
        1.0, "Gradients are scaled down to this norm; 0 is off.", group=OPTIMIZER, ge=0
    )
    ema: float = option(
        0.0,
        "Decay of a moving average of the weights, which is then the result; 0 is off, 0.9999 usual.",
        group=OPTIMIZER,
        ge=0,
        lt=1,
    )

    save_every: int = option(
        500, "Steps between saved states; what a crash loses at most.", group=WATCH, ge=1
    )
    log_every: int = option(10, "Steps between lines of log.jsonl.", group=WATCH, ge=1)
    minutes: float = option(0.0, "Stop and save after so long; 0 is never.", group=WATCH, ge=0)
    tensorboard: bool = option(
        False, "Write TensorBoard's files too; needs the package tensorboard.", group=WATCH
    )

    @model_validator(mode="after")
    def check_steps(self) -> Self:
        if self.warmup > self.steps and not self.epochs:
            raise ValueError(f"warmup {self.warmup} is more than the {self.steps} steps")
        return self

    @model_validator(mode="after")
    def check_fused_backward(self) -> Self:
        for name, needed in (("accumulation", 1), ("max_grad_norm", 0)) if self.fused_backward else ():
            if (value := getattr(self, name)) != needed:
                raise ValueError(f"fused_backward true needs {name} {needed}, and it is {value:g}")
        if self.fused_backward and self.optimizer == "prodigy":
            raise ValueError(
                "fused_backward true does not go with optimizer prodigy, which waits for all gradients"
            )
        return self


class DataConfig(TrainConfig):
    """Pictures and their captions."""

    data: Texts = option(
        ...,
        "Folder of pictures with captions beside them, table .jsonl or .csv, webdataset .tar, or kohya's .toml; repeatable.",
        group=DATA,
        min_length=1,
    )
    resolution: Resolution | None = option(
        None,
        "Side in pixels, or WxH; with buckets, the largest area.",
        unset="the model's own",
        group=DATA,
    )
    buckets: bool = option(True, "Keep aspect ratios: pictures of near shapes share a size.", group=DATA)
    bucket_step: int = option(64, "What the sides of buckets are multiples of.", group=DATA, ge=8, le=512)
    bucket_min: int = option(256, "Shortest side of a bucket.", group=DATA, ge=8, le=16384)
    bucket_max: int = option(2048, "Longest side of a bucket.", group=DATA, ge=8, le=16384)
    upscale: bool = option(False, "Enlarge pictures that are smaller than the resolution.", group=DATA)
    flip: bool = option(False, "Mirror pictures at random.", group=DATA)
    random_crop: bool = option(False, "Crop at random and not in the middle.", group=DATA)
    repeats: int = option(1, "Times that a picture is seen in an epoch.", group=DATA, ge=1, le=10**6)
    filter: Texts = option(
        (), "Keep pictures whose column fits, as 'aesthetic>5' or 'width>=512'; repeatable.", group=DATA
    )
    roles: Texts = option(
        (),
        "Folders with other pictures of the same names, as mask=FOLDER, depth=, before= or hint=; repeatable.",
        group=DATA,
    )
    cache: str = option(
        "auto",
        "Folder of encoded pictures; auto is in the output's folder, none encodes every time.",
        group=DATA,
    )
    on_broken: Literal["skip", "stop"] = option(
        "skip", "What to do about a picture that can't be read.", group=DATA
    )
    validation: float = option(
        0.0,
        "Share of the pictures, 0 to 0.5, that measure the loss, as often as samples are drawn or else the state is saved, "
        "and are not trained on.",
        group=DATA,
        ge=0,
        le=0.5,
    )

    @model_validator(mode="after")
    def check_buckets(self) -> Self:
        for side in self.resolution or ():
            if side % 8:
                raise ValueError(
                    f"resolution {side} is not a multiple of 8; near: {side // 8 * 8}, {side // 8 * 8 + 8}"
                )
        if self.bucket_min > self.bucket_max:
            raise ValueError(f"bucket_min {self.bucket_min} is more than bucket_max {self.bucket_max}")
        return self


class CaptionConfig(DataConfig):
    """Options of captions' variation."""

    caption_extension: str = option(
        "", "Of the text files beside the pictures.", unset=".txt, then .caption", group=DATA
    )
    caption_prefix: str = option("", "Words before every caption.", group=DATA)
    shuffle_captions: bool = option(False, "Tags of a caption, between commas, in random order.", group=DATA)
    keep_tokens: int = option(0, "Tags at the start that stay where they are.", group=DATA, ge=0)
    tag_dropout: float = option(0.0, "How often a tag is left out, 0 to 1.", group=DATA, ge=0, le=1)
    caption_dropout: float = option(
        0.0, "How often the caption is empty, 0 to 1; 0.1 keeps guidance trained.", group=DATA, ge=0, le=1
    )
    caption_wildcards: bool = option(False, "{a|b} in captions is one of the two.", group=DATA)
    clip_skip: int | None = option(
        None, "Layer of the text encoder, from its end.", unset="the model's own", group=DATA, ge=1, le=12
    )
    prior_weight: float = option(
        1.0, "Weight of regularisation pictures in the loss.", group=DATA, ge=0, le=100
    )


class DiffusionConfig(CaptionConfig):
    """The diffusion objective."""

    model: str = option(
        "mini", "Model to train: `mini`, a file, a folder, or an id of the Hugging Face hub.", group=MODEL
    )
    variant: str | None = option(
        None, "Of the weights, where a folder has several, such as fp16.", group=MODEL
    )
    offline: bool = option(False, "Take hub ids from the cache alone.", group=MODEL)
    prediction: Literal["auto", "eps", "v", "x0", "edm", "edm_v"] = option(
        "auto", "What the network gives; auto: as the model says of itself.", group=NOISE
    )
    zero_snr: bool = option(
        False, "End the schedule in pure noise (Lin et al. 2024); needs v or x0.", group=NOISE
    )
    loss: Literal["l2", "l1", "huber"] = option("l2", "Of the prediction's error.", group=NOISE)
    huber_delta: float = option(
        0.1, "Of huber, the error from which on it counts linearly.", group=NOISE, gt=0, le=100
    )
    weighting: Literal["none", "min-snr", "snr+1", "p2", "debiased"] = option(
        "none",
        "Of noise levels: Hang et al. 2023; Salimans and Ho 2022; Choi et al. 2022; Yu et al. 2024.",
        group=NOISE,
    )
    snr_gamma: float = option(
        5.0, "The bound of min-snr and snr+1, the exponent of p2.", group=NOISE, gt=0, le=100
    )
    timesteps: Literal["uniform", "stratified", "logit-normal", "noisy"] = option(
        "stratified",
        "Law of noise levels: stratified is uniform, spread over a batch; noisy prefers high ones, logit-normal middle ones",
        group=NOISE,
    )
    min_timestep: int = option(0, "Lowest of the 1000 timesteps that is trained.", group=NOISE, ge=0, le=999)
    max_timestep: int = option(999, "Highest of them.", group=NOISE, ge=0, le=999)
    noise_offset: float = option(
        0.0, "Noise that a whole channel shares; 0.05 to 0.1 trains dark and light.", group=NOISE, ge=0, le=1
    )
    pyramid_noise: float = option(
        0.0,
        "Noise of coarser grids, each this times the finer one's; 0.8 is usual, 0 off.",
        group=NOISE,
        ge=0,
        le=1,
    )
    input_perturbation: float = option(
        0.0,
        "More noise on the input than the target says (Ning et al. 2023); 0.1 is usual.",
        group=NOISE,
        ge=0,
        le=1,
    )
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp",
        "What several processes hold: ddp the whole U-Net each, fsdp a share of it, its gradients and moments.",
        group=STEPS,
    )
    block_swap: int = option(
        0,
        "Blocks of a U-Net that stays as it is whose weights are in main memory while they do not compute; takes time.",
        group=STEPS,
        ge=0,
        le=1000,
    )
    cache_text: bool = option(
        False,
        "Encode captions once, into the folder of the cache, and keep no text encoder in memory; captions must not vary.",
        group=DATA,
    )
    masked_loss: bool = option(False, "Count errors where the picture's mask is white alone.", group=NOISE)
    sample_every: int = option(0, "Steps between sheets of sample pictures; 0 is off.", group=WATCH, ge=0)
    sample_prompts: Texts = option(
        (),
        "Prompts of the samples, of networks that see nothing else; repeatable.",
        unset="some captions",
        group=WATCH,
    )
    sample_steps: int = option(20, "Steps of a sample picture.", group=WATCH, ge=1, le=1000)
    sample_cfg_scale: float = option(5.0, "Guidance of a sample picture.", group=WATCH, ge=0, le=100)

    @model_validator(mode="after")
    def check_timesteps(self) -> Self:
        if self.min_timestep > self.max_timestep:
            raise ValueError(
                f"min_timestep {self.min_timestep} is more than max_timestep {self.max_timestep}"
            )
        return self

    @model_validator(mode="after")
    def check_parallel(self) -> Self:
        if self.parallel == "fsdp":
            if self.optimizer not in ("adamw", "sgd"):
                raise ValueError(f"parallel fsdp goes with optimizer adamw or sgd, not {self.optimizer}")
            for name in ("fused_backward", "block_swap", "sample_every"):
                if value := getattr(self, name):
                    raise ValueError(f"parallel fsdp does not go with {name} {value}")
        return self

    @model_validator(mode="after")
    def check_cache_text(self) -> Self:
        if self.cache_text and self.cache == "none":
            raise ValueError("cache_text true needs a folder, and cache is none")
        return self
