"""Controls at work: their files opened, their pictures fitted, and what they do in each call of the U-Net.

B batch, C channels, H W latent size, f = 8 pixels of a hint a latent pixel, n residuals.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from inkwash.adapters.control import open_controlnet
from inkwash.diffusion.denoiser import ConditionedDenoiser, Conditioning
from inkwash.models.controlnet import ControlNet
from inkwash.nn.attention import Context
from inkwash.pipeline.controls import Control
from inkwash.pipeline.images import in_mode, open_picture, to_mask
from inkwash.pipeline.model import Model
from inkwash.pipeline.request import Request
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import payload_hash

R = TypeVar("R", bound=Request)
f = 8  # a hint's pixels a latent pixel, whatever the first stage's factor
KEY = "control_"  # of what a row of the batch is given for a control: control_0_hint


@dataclass
class Call:
    """A call of the U-Net that is about to be made. context and vector are the U-Net's."""

    x: Tensor
    t: Tensor
    context: Context | None
    vector: Tensor | None
    residuals: list[Tensor] = field(default_factory=list)

    def add(self, residuals: Sequence[Tensor]) -> None:
        """Add to the skip connections and the middle."""
        pairs = zip(self.residuals, residuals, strict=True)
        self.residuals = [a + b for a, b in pairs] if self.residuals else list(residuals)


class Hinted:
    """A ControlNet with its picture."""

    def __init__(self, control: Control, network: ControlNet):
        self.control, self.network = control, network
        # not with the negative prompt
        self.cond_only = control.mode in ("control", "guess") or network.global_pool
        self.see = lru_cache(maxsize=2)(lambda hint: network.see(F.pixel_shuffle(hint[:1], f)))
        self.rows = lru_cache(maxsize=2)(lambda context, rows: Context(context.tokens[list(rows)]))

    def given(self, latent_size: tuple[int, int]) -> dict[str, Tensor]:
        """What each row gets: a hint (f f C, H, W), whose size is x's, so that it is cut as x is."""
        height, width = latent_size
        mode = {1: "L", 3: "RGB"}.get(self.network.hint_channels)
        if mode is None:
            raise ValueError(f"{self.control.name} takes hints of {self.network.hint_channels} channels")
        picture = fit(in_mode(self.control.image, mode), (width * f, height * f), self.control.resize)
        weight = next(self.network.parameters())
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height * f, width * f, -1).permute(2, 0, 1).to(weight) / 255
        return {"hint": F.pixel_unshuffle(pixels, f)}

    def act(self, call: Call, given: Conditioning, rows: list[int]) -> None:
        """Add this control's residuals to the given rows of a call."""
        x, t, context, vector = call.x, call.t, call.context, call.vector
        whole = len(rows) == len(x)
        if not whole:
            x, t = x[rows], t[rows]
            context = None if context is None else self.rows(context, tuple(rows))
            vector = None if vector is None else vector[rows]
        takes_vector = self.network.config.vector_dim is not None
        made = self.network(x, t, self.see(given["hint"]), context, vector if takes_vector else None)
        made = [residual * weight for residual, weight in zip(made, self.weights(len(made)), strict=True)]
        if "region" in given:
            region = given["region"][:1].to(x)
            made = [residual * F.adaptive_avg_pool2d(region, residual.shape[2:]) for residual in made]
        call.add(made if whole else [spread(residual, rows, len(call.x)) for residual in made])

    def weights(self, n: int) -> list[float]:
        """The weight of each residual, the middle block's last.

        mode prompt and control: 0.825^(n - 1 - i) (A1111's soft injection); guess: from 0.1 to 1 on a logarithmic scale
        (Zhang et al. 2023, as in diffusers), but of pooled residuals. Raises ValueError for another number of
        layer_weights.
        """
        c = self.control
        if c.layer_weights and len(c.layer_weights) != n:
            raise ValueError(f"{c.name} has {n} layers, and {len(c.layer_weights)} layer_weights are given")
        layers = list(c.layer_weights) or [1.0] * n
        if c.mode in ("prompt", "control"):
            layers = [w * 0.825 ** (n - 1 - i) for i, w in enumerate(layers)]
        if c.mode == "guess" and not self.network.global_pool:
            layers = [w * s for w, s in zip(layers, torch.logspace(-1, 0, n).tolist(), strict=True)]
        return [w * c.weight for w in layers]


def spread(value: Tensor, rows: list[int], batch: int) -> Tensor:
    """Rows (len(rows), ...) at their places in a batch, zeros elsewhere."""
    whole = value.new_zeros(batch, *value.shape[1:])
    whole[rows] = value
    return whole


class Controls:
    """All controls of a request on a model, for a run over sigmas (n+1,) and pictures of a latent size (H, W)."""

    def __init__(self, model: Model, request: Request, sigmas: Tensor, latent_size: tuple[int, int]):
        # in one order, whatever the request's, so that sums are rounded alike
        used = sorted(filter(lambda control: control.weight, request.controls), key=key_of)
        self.acting = [Hinted(control, opened(model, control)) for control in used]
        self.spans = [span(control, sigmas) for control in used]
        self.latent_size, self.batch, self.device = latent_size, request.batch_size, model.device

    @property
    def networks(self) -> list[torch.nn.Module]:
        return [one.network for one in self.acting]

    def given(self, negative: bool) -> dict[str, Tensor]:
        """What the rows of the batch are given, with the prompt or with the negative one."""
        found = {}
        for i, one in enumerate(self.acting):
            rows = one.given(self.latent_size)
            if one.control.mask is not None:
                height, width = self.latent_size
                region = to_mask(in_mode(one.control.mask, "L").resize((width, height)))[0]
                rows["region"] = region.to(self.device)
            # kept on the CPU, where it is read
            rows["amount"] = torch.tensor(0.0 if negative and one.cond_only else 1.0)
            for name, value in rows.items():
                found[f"{KEY}{i}_{name}"] = value.expand(self.batch, *value.shape)
        return found

    def beside(
        self, extra_cond: Conditioning, extra_uncond: Conditioning | None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Both with what the controls are given."""
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
    def __call__(
        self, x: Tensor, t: Tensor, context: Context | None, cond: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Within, the controls act on a call of the U-Net; gives the keywords of that call."""
        call = Call(x, t, context, cond.get("vector"))
        for i, one in enumerate(self.acting):
            prefix = f"{KEY}{i}_"
            given = {name[len(prefix) :]: value for name, value in cond.items() if name.startswith(prefix)}
            if given:
                rows = given["amount"].nonzero().flatten().tolist()
                one.act(call, given, rows)
        rest = {name: value for name, value in cond.items() if not name.startswith(KEY)}
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
    """What tells controls apart."""
    pixels = [picture.tobytes() for picture in (control.image, control.mask) if picture is not None]
    return control.model_dump_json(), hashlib.sha256(b"".join(pixels)).hexdigest()


def opened(model: Model, control: Control) -> ControlNet:
    """A control's network, which the model keeps."""
    path = model_path(control.file)
    found = path.stat()
    key = (path, found.st_size, found.st_mtime_ns)
    if key not in model.controls:
        network = open_controlnet(path, model)
        if model.offload:
            model.offload.add([network])
        model.controls[key] = network
    return model.controls[key]


def with_pictures(request: R, image: Image.Image | None) -> R:
    """The request with its controls' pictures opened; one without takes the picture that the task changes.

    Raises ValueError for a picture that can't be read, or that there is none of.
    """
    made = []
    for control in request.controls:
        picture = image if control.image is None else picture_of(control.image)
        if picture is None:
            raise ValueError(f"the control {control.name} has no picture; write {control.file}=IMAGE")
        mask = None if control.mask is None else picture_of(control.mask, "L")
        made.append(control.model_copy(update={"image": picture, "mask": mask}))
    return request.model_copy(update={"controls": tuple(made)}) if made else request


def picture_of(given: Any, mode: str = "RGB") -> Image.Image:
    """A picture, or that of a path."""
    return given if isinstance(given, Image.Image) else open_picture(Path(given), mode)


def fit(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """A picture of (width, height): scaled to it (just), filling it and cut (crop), or within it (fill).

    What fill leaves free has the median colour of the picture's border.
    """
    if image.size == size:
        return image
    kind = Image.Resampling.LANCZOS
    if how == "just":
        return image.resize(size, kind)
    if how == "crop":
        return ImageOps.fit(image, size, kind)
    return ImageOps.pad(image, size, kind, color=border_colour(image))


def border_colour(image: Image.Image) -> Any:
    """The median colour of a picture's outermost pixels."""
    w, h = image.size
    sides = [(0, 0, w, 1), (0, h - 1, w, h), (0, 0, 1, h), (w - 1, 0, w, h)]
    pixels = np.concatenate([np.asarray(image.crop(box)).reshape(-1, len(image.getbands())) for box in sides])
    median = tuple(int(value) for value in np.median(pixels, axis=0))
    return median if image.mode == "RGB" else int(median[-1])


def hashes_of(request: Request) -> dict[str, str]:
    """The short hashes of the controls' files, by name."""
    found = {}
    for control in request.controls:
        path = model_path(control.file)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        found[control.name] = payload_hash(files[0])[:12] if files else ""
    return found
