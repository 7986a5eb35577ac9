"""Feature networks by file, and what has to be said of the figures over them. B batch, D feature width, K classes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.metrics.fetch import fetched
from inkwash.models.dinov2 import DINOv2
from inkwash.models.efficientnet import EfficientNetLite0, without_norms
from inkwash.models.inception import InceptionV3, resized_as_tensorflow
from inkwash.models.perceptual import (
    PerceptualDistance,
    ShiftTolerantAlexNetFeatures,
    ShiftTolerantVGG16Features,
    Trunk,
    VGG16Features,
)
from inkwash.nn.blocks import channels_last
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.hashes import hash_of
from inkwash.weights.names.keymap import Move, UnknownKeys, translate, unstacked

CHUNK = 8  # pictures whose maps stay in a processor's cache
M = TypeVar("M", bound=nn.Module)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of [0, 1]
DINOV2: dict[str, str | Move] = {  # from our names to transformers'
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    **{f"blocks.{{}}.{name}": f"encoder.layer.{{}}.{name}" for name in ("norm1", "norm2", "mlp")},
    "blocks.{}.attn.proj": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.ls1.gamma": "encoder.layer.{}.layer_scale1.lambda1",
    "blocks.{}.ls2.gamma": "encoder.layer.{}.layer_scale2.lambda1",
    **{
        f"blocks.{{}}.attn.qkv.{kind}": unstacked(
            *(f"encoder.layer.{{}}.attention.attention.{name}.{kind}" for name in ("query", "key", "value"))
        )
        for kind in ("weight", "bias")
    },
}
TRUNKS = {"alex": ShiftTolerantAlexNetFeatures, "vgg": ShiftTolerantVGG16Features}


@dataclass(frozen=True)
class Features:
    """Features that a network sees in pictures. logits, spatial: where it has them."""

    pooled: Tensor  # (B, D)
    logits: Tensor | None = None  # (B, K), of its classes
    spatial: Tensor | None = None  # (B, S), of which sFID is made


@dataclass(frozen=True)
class Identity:
    """Everything that a figure depends on besides the pictures. Figures compare only where it is equal."""

    name: str
    hash: str  # the first 10 hex digits of the weights' sha256
    preprocessing: str
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name} {self.hash}, {self.preprocessing}, {self.dtype}"


@dataclass(frozen=True)
class FeatureNetwork:
    """A network and what comes before it, on one device."""

    identity: Identity
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [-1, 1] -> its input
    outputs: Callable[..., Features] = field(default=Features)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Features:
        """Features in float32 on the CPU of pixels (B, 3, H, W) in [-1, 1]."""
        weight = next(self.network.parameters())
        found = []
        for some in pixels.split(CHUNK if weight.device.type == "cpu" else len(pixels)):
            x = self.prepare(some.to(weight.device, torch.float32)).to(weight.dtype)
            made = self.network(x.contiguous(memory_format=torch.channels_last))
            found.append([part.float().cpu() for part in (made if isinstance(made, tuple) else (made,))])
        return self.outputs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def resized(pixels: Tensor, side: int) -> Tensor:
    """Bicubic, filtered where it shrinks, within [-1, 1]."""
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def efficientnet_lite0(weights: Path | None = None) -> FeatureNetwork:
    """EfficientNet-Lite0 in its file's names, by default as `inkwash fetch-metrics` brings it."""
    path = weights or fetched("efficientnet-lite0")
    table = {re.sub(r"(^|\.)_", r"\1", name): value for name, value in read_tensors(path).tensors.items()}
    network = filled(EfficientNetLite0(), table, path)
    said = "224x224 bicubic, (x - 127) / 128"
    return FeatureNetwork(
        Identity("efficientnet-lite0", digest(path), said),
        without_norms(network),
        lambda pixels: (resized(pixels, 224) * 127.5 + 0.5) / 128,
    )


def inception(weights: Path | None, tensorflow: bool = False) -> FeatureNetwork:
    """FID's InceptionV3 in pytorch-fid's names. tensorflow: resized and scaled as the first FID and torch-fidelity do."""
    if weights is None:
        raise ModelFileError(
            "inception needs --weights: FID's file, as pytorch-fid and torch-fidelity fetch it"
        )
    network = filled(InceptionV3(), read_tensors(weights).tensors, weights, r"AuxLogits\.")
    name = "inception-tf" if tensorflow else "inception"
    said = (
        "299x299 bilinear by TensorFlow 1's rule, (x - 128) / 128"
        if tensorflow
        else "299x299 bilinear, [-1, 1]"
    )

    def prepare(pixels: Tensor) -> Tensor:
        if tensorflow:
            return (resized_as_tensorflow(pixels * 127.5 + 127.5) - 128) / 128
        return F.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False)

    return FeatureNetwork(Identity(name, digest(weights), said), without_norms(network), prepare)


def dinov2(weights: Path | None) -> FeatureNetwork:
    """DINOv2 of any width without registers, in its own names or transformers'."""
    if weights is None:
        raise ModelFileError("dinov2 needs --weights: a file such as dinov2_vitb14_pretrain.pth")
    tensors = read_tensors(weights).tensors
    if any(name.startswith("embeddings.") for name in tensors):
        tensors = translate(tensors, DINOV2, inverse=True)
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        positions = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    except (KeyError, ValueError, IndexError) as error:
        raise ModelFileError(f"{weights} is not DINOv2's: there is no {error}") from error
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    network = filled(DINOv2(width, depth, patch, positions), tensors, weights)
    mean, std = torch.tensor(IMAGENET)[:, :, None, None]
    return FeatureNetwork(
        Identity("dinov2", digest(weights), "224x224 bicubic, ImageNet's mean and std"),
        network,
        lambda pixels: ((resized(pixels, 224) + 1) / 2 - mean.to(pixels)) / std.to(pixels),
    )


NETWORKS: Mapping[str, Callable[[Path | None], FeatureNetwork]] = {
    "dinov2": dinov2,
    "efficientnet-lite0": efficientnet_lite0,
    "inception": inception,
    "inception-tf": lambda weights: inception(weights, tensorflow=True),
}


def open_network(
    name: str, weights: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> FeatureNetwork:
    """A feature network of NETWORKS. Raises ValueError for another name, ModelFileError for weights that are not its own."""
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is not one of {', '.join(NETWORKS)}")
    opened = NETWORKS[name](weights)
    identity = Identity(
        opened.identity.name,
        opened.identity.hash,
        opened.identity.preprocessing,
        str(dtype).removeprefix("torch."),
    )
    network = channels_last(opened.network).to(device, dtype).eval().requires_grad_(False)
    return FeatureNetwork(identity, network, opened.prepare, opened.outputs)


def st_lpips(weights: Path | None = None, trunk: str = "alex") -> PerceptualDistance:
    """Shift-tolerant LPIPS, by default of the weights that `inkwash fetch-metrics` brings.

    trunk: alex or vgg. Raises ModelFileError where the file is not of this trunk.
    """
    if trunk not in TRUNKS:
        raise ValueError(f"trunk {trunk!r} is not one of {', '.join(TRUNKS)}")
    path = weights or fetched(f"stlpips-{trunk}")
    table = read_tensors(path).tensors
    features = {re.sub(r"^net\.slice\d", "features", k): v for k, v in table.items() if k.startswith("net.")}
    return with_heads(filled(TRUNKS[trunk](), features, path), table, path)


def lpips(vgg: Path, heads: Path) -> PerceptualDistance:
    """LPIPS from files: VGG16 weights (`features.N.weight`) and the heads (`lin{l}.model.1.weight`).

    Raises ModelFileError where one can't be read, or tensors are missing or of another shape.
    """
    network = filled(VGG16Features(), read_tensors(vgg).tensors, vgg, r"classifier\.")
    return with_heads(network, read_tensors(heads).tensors, heads)


def with_heads(trunk: Trunk, table: Mapping[str, Tensor], path: Path) -> PerceptualDistance:
    names = [f"lin{i}.model.1.weight" for i in range(len(trunk.taps))]
    if missing := [name for name in names if name not in table]:
        raise ModelFileError(f"{path} holds no heads of LPIPS: there is no {missing[0]}")
    return PerceptualDistance(trunk, [table[name] for name in names])


def filled(network: M, tensors: Mapping[str, Tensor], path: Path, dropped: str = "$") -> M:
    """The network with a file's tensors, all of them but those whose names `dropped` matches.

    Raises ModelFileError for a name or shape that is not the network's own.
    """
    wanted = network.state_dict()
    given = {name: value for name, value in tensors.items() if not re.match(dropped, name)}
    counters = {name for name in wanted.keys() - given.keys() if name.endswith("num_batches_tracked")}
    for problem, names, known in (
        ("not known", given.keys() - wanted.keys(), wanted),
        ("missing", wanted.keys() - given.keys() - counters, given),
    ):
        if names:
            first = str(UnknownKeys(problem, names, known)).replace("\n ", "")
            raise ModelFileError(f"{path} is not {type(network).__name__}'s: {first.splitlines()[0]}")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(wanted[name].shape)}"
            raise ModelFileError(f"{path} is not {type(network).__name__}'s: {name} is {shapes}")
    network.load_state_dict({**wanted, **given})
    return network.eval()


def digest(path: Path) -> str:
    return hash_of([path])[:10]
