"""A model as its file holds it: configs and tensors, under this library's names, before any network is made."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inkwash.diffusion.denoiser import EDM
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas, linear_betas, sqrt_linear_betas
from inkwash.files import ModelFileError
from inkwash.kernels.cpu import instructions
from inkwash.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderKL,
    AutoencoderVQ,
    FirstStage,
    PixelConfig,
    Pixels,
)
from inkwash.models.bert import BERT, BERTConfig
from inkwash.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from inkwash.models.compact import CompactConfig, SRVGGNetCompact
from inkwash.models.conditions import (
    ClassConfig,
    ClassEmbedder,
    PictureConfig,
    PictureEmbedder,
    SemanticConfig,
    SemanticRescaler,
)
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.hed import HED, HEDConfig
from inkwash.models.rrdb import RRDBConfig, RRDBNet
from inkwash.models.swinir import SwinIR, SwinIRConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.t5 import T5, T5Config
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.bytes.tensor_file import release
from inkwash.weights.inputs import Inputs, inputs_of

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)
Json = dict[str, Any]
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # diffusers' names and ours
EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "edm_v"}  # with a scheduler of EDM's
PREDICTION_TYPES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
NETWORKS: dict[type, type[nn.Module]] = {  # by the type of their config
    UNetConfig: UNet,
    ControlNetConfig: ControlNet,
    T2IAdapterConfig: T2IAdapter,
    AutoencoderConfig: AutoencoderKL,
    TinyAutoencoderConfig: TinyAutoencoder,
    PixelConfig: Pixels,
    CLIPTextConfig: CLIPText,
    BERTConfig: BERT,
    T5Config: T5,
    ClassConfig: ClassEmbedder,
    SemanticConfig: SemanticRescaler,
    PictureConfig: PictureEmbedder,
    CLIPVisionConfig: CLIPVision,
    RRDBConfig: RRDBNet,
    CompactConfig: SRVGGNetCompact,
    SwinIRConfig: SwinIR,
    HEDConfig: HED,
}
KEPT = "inkwash_kept"  # what a folder has no place for: a file of that name, and the layers that SD2's folders lack
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FULL_SIZE = 200_000_000  # parameters of a U-Net
BETAS = {
    "linear": linear_betas,
    "scaled_linear": sqrt_linear_betas,
    "squaredcos_cap_v2": lambda num, *_: cosine_betas(num),  # which has no start and end
}


@dataclass(frozen=True)
class Component(Generic[C]):
    """A network's config and its tensors, which are views of the file wherever that is possible."""

    config: C
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class TextComponent(Component[Any]):
    """A text tower, of a CLIPTextConfig, a BERTConfig or a T5Config, its tokenizer, and what of it is the context."""

    tokenizer: Tokenizer
    skip: int = 1  # the layer from the end: SD2 and SDXL take the penultimate, 2
    final_norm: bool = True  # not in SDXL


@dataclass(frozen=True)
class Checkpoint:
    """What a single file or a folder holds."""

    unet: Component[UNetConfig]
    autoencoder: Component  # KL, VQ, tiny, or none: pixels
    text: tuple[TextComponent, ...]  # none of a model that sees no text
    scheduler: (
        Json  # in diffusers' fields; prediction_type is None where only a probe of the network can say it
    )
    default_size: int  # pixels a side
    files: tuple[Path, ...]  # that the model's hash is of: the single file, or the U-Net's files
    sizes: int = 0  # how many sizes the U-Net's vector holds after the pooled text: SDXL 6, its refiner 5
    zero_empty: bool = False  # whether an empty negative prompt is zeros: SDXL's base
    cond_stage: Component[ClassConfig | BERTConfig | SemanticConfig | PictureConfig] | None = (
        None  # what conditions it that is no text
    )
    # what has no place in the above: a single file's other tensors by their names, a folder's by "part/file/name"
    others: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)  # a folder's small files, by their paths within it

    @property
    def networks(self) -> tuple[Component, ...]:
        """All that are there."""
        cond_stage = (self.cond_stage,) if self.cond_stage else ()
        return (self.unet, self.autoencoder, *self.text, *cond_stage)

    @cached_property
    def inputs(self) -> Inputs:
        """What the network sees beside the latent."""
        stage = self.cond_stage.config if self.cond_stage else None
        return inputs_of(self.unet.config, stage, self.autoencoder.config, bool(self.text))

    @property
    def missing(self) -> list[str]:
        """Networks of the family that the file lacks; a model needs them from other files."""
        absent = (
            []
            if self.autoencoder.tensors or network_of(self.autoencoder.config) is Pixels
            else ["autoencoder"]
        )
        return absent + [f"text encoder {t.config.width} wide" for t in self.text if not t.tensors]


@dataclass(frozen=True)
class TextEncoder:
    """A text tower that is built; the fields are those of its component."""

    model: CLIPText | BERT | T5
    tokenizer: Tokenizer
    skip: int = 1
    final_norm: bool = True


@dataclass(frozen=True)
class Parts:
    """A model's networks, built, and what else drawing takes."""

    unet: UNet
    autoencoder: FirstStage
    text_encoders: tuple[
        TextEncoder, ...
    ]  # their contexts are side by side; the last one's pooled text is used
    schedule: NoiseSchedule
    prediction: str  # eps, v or x0
    default_size: int
    files: tuple[Path, ...]
    sizes: int = 0
    zero_empty: bool = False
    # what makes its condition of classes or of a layout's tokens, a context, or of a map of labels, channels beside x,
    # or of a picture, a context or a vector
    cond_stage: ClassEmbedder | BERT | SemanticRescaler | PictureEmbedder | None = None


def chosen_dtype(dtype: torch.dtype | str, device: str | torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The type itself, the one of this name, or for auto: float32 for a small U-Net; for one of full size what is
    fastest without float16's narrow range, bfloat16 where the device computes in it."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return DTYPES[dtype]
    return fastest_dtype(device, sum(tensor.numel() for tensor in checkpoint.unet.tensors.values()))


def fastest_dtype(device: str | torch.device, num_parameters: int) -> torch.dtype:
    """What a U-Net of so many parameters is best computed in: float32 below full size, else the device's fast half type."""
    if num_parameters < FULL_SIZE:
        return torch.float32
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if "avx512_bf16" in instructions() else torch.float32


def assemble(
    checkpoint: Checkpoint,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
) -> Parts:
    """Build the networks. prediction: eps, v or x0, in place of what the checkpoint says.

    Raises ModelFileError naming the first tensor that is missing, does not fit, or holds values that are not finite.
    """

    make = partial(build, device=device, dtype=dtype)
    unet = make(checkpoint.unet)
    text_encoders = tuple(
        TextEncoder(make(text), text.tokenizer, text.skip, text.final_norm) for text in checkpoint.text
    )
    said = checkpoint.scheduler.get("prediction_type", "epsilon")
    if prediction is None and said is None:
        prediction, _ = probe(unet, text_encoders[-1])
    return Parts(
        unet=unet,
        autoencoder=make(checkpoint.autoencoder),
        text_encoders=text_encoders,
        schedule=read_schedule(checkpoint.scheduler),
        prediction=prediction or read_prediction(checkpoint.scheduler),
        default_size=checkpoint.default_size,
        files=checkpoint.files,
        sizes=checkpoint.sizes,
        zero_empty=checkpoint.zero_empty,
        cond_stage=make(checkpoint.cond_stage) if checkpoint.cond_stage else None,
    )


def network_of(config: Any) -> type[nn.Module]:
    """What a config is of."""
    quantizes = isinstance(config, AutoencoderConfig) and config.codebook_size
    return AutoencoderVQ if quantizes else NETWORKS[type(config)]


def build(
    component: Component,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The network of a component, filled. Raises ModelFileError naming the first tensor that does not fit."""
    network = network_of(component.config)
    check_finite(component.tensors, network.__name__)
    module = fill(partial(network, component.config), component.tensors, network.__name__)
    for parameter in module.parameters():
        # one after the other, so that what was read of the file and what is made of it are never both there as a whole
        old, order = parameter.data, torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        parameter.data = old.to(device, dtype, memory_format=order)
        if parameter.data_ptr() != old.data_ptr():
            release(old)
    return module


class Undrawn(TorchFunctionMode):
    """Modules made within keep their parameters as they are, undrawn.

    They are about to be filled, and drawing on the meta device makes torch import its compiler, for a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (*args, *(kwargs or {}).values())[0]
        return func(*args, **(kwargs or {}))


def fill(make: partial[M], tensors: Mapping[str, Tensor], where: str) -> M:
    """A module made without memory, its parameters then taken from `tensors`: every one, and no other."""
    with torch.device("meta"), Undrawn():
        module = make()
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key, shape in wanted.items():
        if key not in tensors:
            raise ModelFileError(f"{where} lacks {key}")
        if tuple(tensors[key].shape) != shape:
            raise ModelFileError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, {shape} is wanted")
    if surplus := [key for key in tensors if key not in wanted]:
        raise ModelFileError(f"{where} has a tensor that nothing takes: {surplus[0]}")
    module.load_state_dict(dict(tensors), assign=True)
    return module.eval().requires_grad_(False)


def names_of(component: Component) -> set[str]:
    """Names of the tensors that a component's network takes."""
    with torch.device("meta"), Undrawn():
        return set(network_of(component.config)(component.config).state_dict())


def check_component(component: Component) -> None:
    """Raises ModelFileError naming the first tensor that is missing, does not fit, or is not finite."""
    network = network_of(component.config)
    fill(partial(network, component.config), component.tensors, network.__name__)
    check_finite(component.tensors, network.__name__)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ModelFileError naming a tensor with a value that is not finite."""
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.numel():
            continue
        # eight-bit floats have no order of their own
        wide = value if value.dtype.itemsize > 1 else value.float()
        # one pass that makes nothing: tens of times faster than torch.isfinite; it hands on a NaN
        if not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(wide)):
            raise ModelFileError(f"{where}: {key} holds values that are not finite")


def is_edm(scheduler: Mapping[str, Any]) -> bool:
    return str(scheduler.get("_class_name", "")).startswith("EDM")


def read_schedule(scheduler: Mapping[str, Any]) -> NoiseSchedule:
    if is_edm(scheduler):
        low, high = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
        if {type(low), type(high)} - {int, float} or not 0 < low < high < 1e6:
            raise ModelFileError(f"sigma_min {low!r} and sigma_max {high!r} are no rising levels above 0")
        return NoiseSchedule.log_uniform(low, high)
    kind, num = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps", 1000)
    if not isinstance(kind, str) or kind not in BETAS:
        raise ModelFileError(f"beta_schedule {kind!r} is not one of {', '.join(BETAS)}")
    if type(num) is not int or not 2 <= num <= 100_000:
        raise ModelFileError(f"num_train_timesteps {num!r} is not a whole number in 2 to 100,000")
    start, end = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    for name, beta in (("beta_start", start), ("beta_end", end)):
        if type(beta) not in (int, float) or not 0 < beta < 1:
            raise ModelFileError(f"{name} {beta!r} is not a number between 0 and 1")
    try:
        schedule = NoiseSchedule.from_betas(BETAS[kind](num, start, end))
    except ValueError as error:
        raise ModelFileError(f"{num} betas from {start} to {end}: {error}") from error
    return schedule.zero_terminal_snr() if scheduler.get("rescale_betas_zero_snr") else schedule


def read_prediction(scheduler: Mapping[str, Any]) -> str:
    """What the network gives, under our name."""
    name, edm = scheduler.get("prediction_type", "epsilon"), is_edm(scheduler)
    known = EDM_PREDICTIONS if edm else PREDICTIONS
    if not isinstance(name, str) or name not in known:
        raise ModelFileError(f"prediction_type {name!r} is not one of {', '.join(known)}")
    std = scheduler.get("sigma_data", 0.5)
    if edm and std != EDM[known[name]][0]:
        raise ModelFileError(f"sigma_data {std!r} is not covered with {name}: {EDM[known[name]][0]} is")
    return known[name]


def scheduler_json(
    prediction: str | None,
    betas: tuple[float, float] = (0.00085, 0.012),
    zero_terminal_snr: bool = False,
    beta_schedule: str = "scaled_linear",
) -> Json:
    """`scheduler/scheduler_config.json` of 1000 steps. prediction: eps, v, x0 or None. beta_schedule: one of BETAS."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": beta_schedule,
        "beta_start": betas[0],
        "beta_end": betas[1],
        "prediction_type": PREDICTION_TYPES.get(prediction or "", prediction),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    } | ({"rescale_betas_zero_snr": True} if zero_terminal_snr else {})


def edm_scheduler_json(prediction: str, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Json:
    """The same of a network that is preconditioned as EDM. prediction: edm or edm_v."""
    names = {ours: theirs for theirs, ours in EDM_PREDICTIONS.items()}
    return {
        "_class_name": "EDMEulerScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": names[prediction],
        "sigma_data": EDM[prediction][0],
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
    }


@torch.inference_mode()
def probe(unet: UNet, text: TextEncoder) -> tuple[str, str]:
    """eps or v, by what a network of SD2 makes of its noisiest level; and what says so.

    An eps network gives back what it sees there, a v network the negative of the picture, about 0: of a latent
    that is 0.5 everywhere, the one differs little in the mean and the other by far.
    """
    weight = next(unet.parameters())
    tokens = torch.tensor(text.tokenizer([""]), device=weight.device)
    context = text.model(tokens, text.skip, text.final_norm)[0]
    c = unet.config
    x = torch.full((1, c.in_channels, 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    made = unet(x, torch.full((1,), 999.0, device=weight.device), context)
    difference = (made - x[:, : c.out_channels]).float().mean().item()
    said = f"probed: the network moves a grey latent by {difference:.2f}, where below -1 is v"
    return ("v" if difference < -1 else "eps"), said


def payload_hash(path: Path) -> str:
    """The sha256 of a safetensors file without its header, which metadata don't change, and of other files whole."""
    found = path.stat()
    return _payload_hash(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _payload_hash(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(8 + int.from_bytes(start[:8], "little") if start[8:] == b"{" else 0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(files: Iterable[Path]) -> str:
    """The sha256, in hex, of a file, or of several files' own ones."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
