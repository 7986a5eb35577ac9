"""A model as its file holds it: configs and tensors, under this library's names, before any network is made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inkwash.diffusion.schedules import NoiseSchedule
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
    VectorConfig,
    VectorStatistics,
)
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from inkwash.models.hed import HED, HEDConfig
from inkwash.models.prior import Prior, PriorConfig
from inkwash.models.rrdb import RRDBConfig, RRDBNet
from inkwash.models.swinir import SwinIR, SwinIRConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.t5 import T5, T5Config
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.bytes.tensor_file import release
from inkwash.weights.hashes import hash_of as hash_of  # names of 0.1, until 0.3
from inkwash.weights.hashes import payload_hash as payload_hash
from inkwash.weights.inputs import Inputs, inputs_of
from inkwash.weights.scheduler import read_prediction, read_schedule
from inkwash.weights.scheduler import scheduler_json as scheduler_json

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)
Json = dict[str, Any]
NETWORKS: dict[type, type[nn.Module]] = {  # by the type of their config
    UNetConfig: UNet,
    ControlNetConfig: ControlNet,
    ControlNetUnionConfig: ControlNetUnion,
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
    VectorConfig: VectorStatistics,
    CLIPVisionConfig: CLIPVision,
    PriorConfig: Prior,
    RRDBConfig: RRDBNet,
    CompactConfig: SRVGGNetCompact,
    SwinIRConfig: SwinIR,
    HEDConfig: HED,
}
KEPT = "inkwash_kept"  # what a folder has no place for: a file of that name, and the layers that SD2's folders lack
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FULL_SIZE = 200_000_000  # parameters of a U-Net


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
    """The contents of a single file or a folder."""

    unet: Component[UNetConfig]
    autoencoder: Component[Any]  # KL, VQ, tiny, or none: pixels
    text: tuple[TextComponent, ...]  # none of a model that sees no text
    scheduler: (
        Json  # in diffusers' fields; prediction_type is None where only a probe of the network can say it
    )
    default_size: int  # pixels a side
    files: tuple[Path, ...]  # that the model's hash is of: the single file, or the U-Net's files
    sizes: int = 0  # how many sizes the U-Net's vector holds after the pooled text: SDXL 6, its refiner 5
    zero_empty: bool = False  # whether an empty negative prompt is zeros: SDXL's base
    # what conditions it that is no text
    cond_stage: Component[ClassConfig | BERTConfig | SemanticConfig | PictureConfig | VectorConfig] | None = (
        None
    )
    # what has no place in the above: a single file's other tensors by their names, a folder's by "part/file/name"
    others: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)  # a folder's small files, by their paths within it

    @property
    def networks(self) -> tuple[Component[Any], ...]:
        """All that are there."""
        cond_stage = (self.cond_stage,) if self.cond_stage else ()
        return (self.unet, self.autoencoder, *self.text, *cond_stage)

    @cached_property
    def inputs(self) -> Inputs:
        """The network's inputs beside the latent."""
        stage = self.cond_stage.config if self.cond_stage else None
        return inputs_of(self.unet.config, stage, self.autoencoder.config, bool(self.text))

    @property
    def missing(self) -> list[str]:
        """Networks of the family that the file lacks; a model needs them from other files."""
        absent = (
            []
            if self.autoencoder.tensors or isinstance(self.autoencoder.config, PixelConfig)
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
    cond_stage: ClassEmbedder | BERT | SemanticRescaler | PictureEmbedder | VectorStatistics | None = None


def chosen_dtype(dtype: torch.dtype | str, device: str | torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype itself, or the one of this name; for auto, float32 for a small U-Net, and for one of full size the fastest
    without float16's narrow range: bfloat16 where the device computes in it."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return DTYPES[dtype]
    return fastest_dtype(device, sum(tensor.numel() for tensor in checkpoint.unet.tensors.values()))


def fastest_dtype(device: str | torch.device, num_parameters: int) -> torch.dtype:
    """The best dtype for a U-Net of so many parameters: float32 below full size, else the device's fast half type."""
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
    """The kind of network that a config describes."""
    quantizes = isinstance(config, AutoencoderConfig) and config.codebook_size
    return AutoencoderVQ if quantizes else NETWORKS[type(config)]


def build(
    component: Component[Any],
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
    wanted = {key: tuple(value.shape) for key, value in module.named_parameters(remove_duplicate=False)}
    for key, shape in wanted.items():
        if key not in tensors:
            raise ModelFileError(f"{where} lacks {key}")
        if tuple(tensors[key].shape) != shape:
            raise ModelFileError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, {shape} is wanted")
    if surplus := [key for key in tensors if key not in wanted]:
        raise ModelFileError(f"{where} has a tensor that nothing takes: {surplus[0]}")
    parts = dict(module.named_modules())
    for key, value in tensors.items():  # as load_state_dict would, in a third of its time
        owner, _, name = key.rpartition(".")
        setattr(parts[owner], name, nn.Parameter(value, requires_grad=False))
    return module.eval()


def undrawn(config: Any) -> Any:
    """The network of a config, without weights and their memory."""
    with torch.device("meta"), Undrawn():
        return network_of(config)(config)


def names_of(component: Component[Any]) -> set[str]:
    """Names of the tensors that a component's network takes."""
    return set(undrawn(component.config).state_dict())


def check_component(component: Component[Any]) -> None:
    """Check that a component's tensors fit its network; raise ModelFileError naming the first that is missing, does not
    fit, or is not finite."""
    network = network_of(component.config)
    fill(partial(network, component.config), component.tensors, network.__name__)
    check_finite(component.tensors, network.__name__)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that all values are finite; raise ModelFileError naming the first tensor with one that is not."""
    for key, value in tensors.items():
        if value.is_meta or not value.is_floating_point() or not value.numel():
            continue
        # eight-bit floats have no order of their own
        wide = value if value.dtype.itemsize > 1 else value.float()
        # one pass that makes nothing: tens of times faster than torch.isfinite; it hands on a NaN
        if not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(wide)):
            raise ModelFileError(f"{where}: {key} holds values that are not finite")


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
