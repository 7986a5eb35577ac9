"""Controls at work: opened, gated by their intervals, and called with the U-Net.

B batch, C channels, H W latent size, n steps.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.adapters.control import open_control
from inkwash.adapters.ip_adapter import IPAdapter, open_encoder, open_ip_adapter
from inkwash.adapters.lllite import LLLite, open_lllite
from inkwash.adapters.style import open_style_adapter
from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet
from inkwash.models.controlnet_union import ControlNetUnion
from inkwash.models.style_adapter import StyleAdapter
from inkwash.models.t2i_adapter import T2IAdapter
from inkwash.pipeline.controls import Control, no_picture
from inkwash.pipeline.denoising.annotating import annotator_of
from inkwash.pipeline.denoising.control_kinds import Acting, Call, Featured, Hinted, Layered, United
from inkwash.pipeline.denoising.picture_kinds import Pictured, Styled
from inkwash.pipeline.denoising.reference import Referenced, steer
from inkwash.pipeline.images import in_mode, open_picture, to_mask
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request
from inkwash.weights.bytes.paths import control_path
from inkwash.weights.checkpoint import Parts
from inkwash.weights.hashes import payload_hash
from inkwash.weights.kinds import kind_of
from inkwash.weights.names.wrappers import read_model_file

R = TypeVar("R", bound=Request)
OPENERS = {
    "ip-adapter": open_ip_adapter,
    "controlnet-lllite": open_lllite,
    "style-adapter": open_style_adapter,
}
KEY = "control_"  # of what a row of the batch is given for a control: control_0_hint


class Controls:
    """All controls of a request on a model, for a run over sigmas (n+1,) and pictures of a latent size (H, W).

    imagined: gives the vectors (B, D) that controls without a picture see in its place.
    """

    def __init__(
        self,
        model: Model,
        request: Request,
        sigmas: Tensor,
        latent_size: tuple[int, int],
        imagined: Callable[[], Tensor] | None = None,
    ):
        # in one order, whatever the request's, so that sums are rounded alike
        used = sorted(filter(lambda control: control.weight, request.controls), key=key_of)
        made = acting_of(model, used, request.seeds, imagined and cache(imagined))
        self.acting = sorted(made, key=lambda one: one.order)
        self.spans = [span(one.control, sigmas) for one in self.acting]
        self.latent_size, self.batch, self.device = latent_size, request.batch_size, model.device

    @property
    def networks(self) -> list[nn.Module]:
        return [one.network for one in self.acting if one.network is not None]

    def given(self, negative: bool) -> dict[str, Tensor]:
        """The controls' inputs for the rows of the batch, with the prompt or with the negative one."""
        found = {}
        for i, one in enumerate(self.acting):
            rows = one.given(self.latent_size, negative)
            if one.control.mask is not None:
                height, width = self.latent_size
                region = to_mask(in_mode(one.control.mask, "L").resize((width, height)))[0]
                rows["region"] = region[None].to(self.device)
            # kept on the CPU, where it is read
            rows["amount"] = torch.tensor([one.with_negative if negative else 1.0])
            for name, value in rows.items():
                found[f"{KEY}{i}_{name}"] = value.expand(self.batch, *value.shape[1:])
        return found

    def beside(
        self, extra_cond: Conditioning, extra_uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Both conditions with the controls' inputs."""
        if not self.acting:
            return extra_cond, extra_uncond
        extra_uncond = extra_cond if extra_uncond is None else extra_uncond
        return {**extra_cond, **self.given(False)}, {**extra_uncond, **self.given(True)}

    def gated(self, denoise: ConditionedDenoiser) -> ConditionedDenoiser:
        """The denoiser without the controls whose interval a level lies outside of."""

        def predict(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
            levels, kept = sigma.expand(len(x)).double().cpu(), dict(cond)
            for i, (low, high) in enumerate(self.spans):
                amount = cond[f"{KEY}{i}_amount"] * ((levels > low) & (levels <= high))
                kept[f"{KEY}{i}_amount"] = amount
                if not amount.any():
                    kept = {name: v for name, v in kept.items() if not name.startswith(f"{KEY}{i}_")}
            return denoise(x, sigma, kept)

        return predict if self.acting else denoise

    @contextmanager
    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Let the controls act on a call of the U-Net within the context, which yields the keywords of that call."""
        call = Call(x, t, cond.get("context"), cond.get("vector"), cond.get("time_cond"))
        for i, one in enumerate(self.acting):
            prefix = f"{KEY}{i}_"
            given = {name[len(prefix) :]: value for name, value in cond.items() if name.startswith(prefix)}
            if given:
                rows = given["amount"].nonzero().flatten().tolist()
                one.act(call, given, rows)
        steer(call)
        call.hook()
        rest = {name: value for name, value in cond.items() if not name.startswith(KEY)}
        rest |= {} if call.context is None else {"context": call.context}
        with call.stack:
            yield rest | ({"control": call.residuals} if call.residuals else {})


def span(control: Control, sigmas: Tensor) -> tuple[float, float]:
    """The levels, above the first and up to the second, of the steps that lie between a control's start and end."""
    n = len(sigmas) - 1
    inside = [i for i in range(n) if i / n >= control.start and (i + 1) / n <= control.end]
    if not inside:
        return math.inf, math.inf
    # samplers that look above the first level are steered there too
    return float(sigmas[inside[-1] + 1]), float(sigmas[inside[0]]) if inside[0] else math.inf


def key_of(control: Control) -> tuple[str, str]:
    """A key that is unique to a control."""
    pixels = [picture.tobytes() for picture in (control.image, control.mask) if picture is not None]
    return control.model_dump_json(), hashlib.sha256(b"".join(pixels)).hexdigest()


def acting_of(
    model: Model,
    controls: list[Control],
    seeds: Sequence[int],
    imagined: Callable[[], Tensor] | None = None,
) -> list[Acting]:
    """Controls with their networks, in their order; those of a union that differ in their hints alone act as one.

    Raises ValueError for one without a picture, unless it is an IP-Adapter and something is imagined.
    """
    made: list[Acting] = []
    unions: dict[object, list[Control]] = {}
    for control in controls:
        if control.is_reference:
            without_type(control)
            made.append(Referenced(control, model, seeds))
            continue
        network, *others = opened(model, control)
        sees_nothing = control.image is None and control.face is None
        if sees_nothing and (imagined is None or not isinstance(network, IPAdapter)):
            raise no_picture(control)
        if not isinstance(network, ControlNetUnion):
            without_type(control)
            made.append(acting(model, control, network, others, imagined))
            continue
        alike = control.model_dump_json(exclude={"image", "weight", "resize", "annotator", "type"})
        mask = control.mask and control.mask.tobytes()
        unions.setdefault((id(network), alike, mask), []).append(control)
    networks = {id(network): network for network, *_ in model.controls.values()}
    return made + [United(some, networks[key[0]]) for key, some in unions.items()]  # type: ignore[index]


def without_type(control: Control) -> None:
    """Check that only a union is given a type of hints; raise ModelFileError otherwise."""
    if control.type != "auto":
        raise ModelFileError(f"{control.name} is not a ControlNet union, so it takes no type={control.type}")


def acting(
    model: Model,
    control: Control,
    network: nn.Module,
    others: list[Any],
    imagined: Callable[[], Tensor] | None,
) -> Acting:
    """A control with its network. Raises ModelFileError for an option that is not for it."""
    has = {"encoder": bool(control.encoder), "face": control.face is not None}
    for name, given in has.items():
        if given and not takes(network, name):
            raise ModelFileError(f"{control.name} takes no {name}, so {name}= is not for it")
    if isinstance(network, IPAdapter | StyleAdapter):
        if control.annotator not in ("auto", "none"):
            raise ModelFileError(
                f"{control.name} sees the picture itself, so annotator={control.annotator} is not for it"
            )
        vision = others[0] if others else None
        if isinstance(network, IPAdapter):
            return Pictured(control, network, vision, model.unet, imagined)
        assert vision is not None
        return Styled(control, network, vision)
    if isinstance(network, LLLite):
        return Layered(control, network, model.unet)
    if isinstance(network, T2IAdapter):
        return Featured(control, network, model.unet)
    assert isinstance(network, ControlNet)
    return Hinted(control, network)


def takes(network: nn.Module, name: str) -> bool:
    """Return True if a network takes the option `name`, "encoder" or "face"."""
    if isinstance(network, IPAdapter):
        return network.sees_pictures if name == "encoder" else network.faces is not None
    return isinstance(network, StyleAdapter) and name == "encoder"


def sees_a_map(model: Model, control: Control) -> bool:
    """Return True if a control's picture lies over the one that is drawn; others are seen as a whole."""
    if control.is_reference:
        return False
    return not isinstance(opened(model, control)[0], IPAdapter | StyleAdapter)


def open_network(path: Path, model: Parts) -> nn.Module:
    """The network of a control's file or folder. Raises ModelFileError where it does not fit the model.

    For a model on the meta device it has no weights, and nothing but shapes is read.
    """
    kind = kind_of(read_model_file(path).tensors) if path.is_file() else "folder"
    return OPENERS.get(kind, open_control)(path, model)


def opened(model: Model, control: Control) -> list[nn.Module]:
    """A control's network, and the encoder that it sees by if it has one; the model keeps them."""
    path = control_path(control.file)
    found = path.stat()
    blind = control.image is None and model.prior is not None
    key = (path, found.st_size, found.st_mtime_ns, control.encoder, blind)
    if key not in model.controls:
        network = open_network(path, model)
        networks: list[nn.Module] = [network]
        if takes(network, "encoder") and not blind:
            networks.append(open_encoder(path, control.encoder, model))
        if model.offload:
            model.offload.add(networks)
        model.controls[key] = networks
    return model.controls[key]


def with_pictures(request: R, image: Image.Image | None, has_prior: bool = False) -> R:
    """The request with its controls' pictures opened; one without takes the picture that the task changes.

    has_prior: whether one may do without, which sees what the model's prior makes of the prompt. Raises ValueError for a
    picture that can't be read, or that there is none of.
    """
    made = []
    for control in request.controls:
        picture = image and in_mode(image, "RGB") if control.image is None else picture_of(control.image)
        if picture is None and control.face is None and (control.is_reference or not has_prior):
            raise no_picture(control)
        mask = None if control.mask is None else picture_of(control.mask, "L")
        seen = None if control.is_reference else picture
        kind = annotator_of(control, seen) if seen else control.annotator
        made.append(control.model_copy(update={"image": picture, "mask": mask, "annotator": kind}))
    return request.model_copy(update={"controls": tuple(made)}) if made else request


def picture_of(given: Any, mode: str = "RGB") -> Image.Image:
    """A picture, or that of a path."""
    return given if isinstance(given, Image.Image) else open_picture(Path(given), mode)


def hashes_of(request: Request) -> dict[str, str]:
    """The short hashes of the controls' files, by name."""
    found = {}
    for control in request.controls:
        if control.is_reference:
            continue
        path = control_path(control.file)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        found[control.name] = payload_hash(files[0])[:12] if files else ""
    return found
