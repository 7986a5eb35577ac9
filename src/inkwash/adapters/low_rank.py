"""LoRA and its kin on a model: read, attached, detached, baked in."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inkwash.adapters.change import Change
from inkwash.adapters.kinds import change_of
from inkwash.adapters.names import Target, adapter_names, networks, split, targets, underscored
from inkwash.adapters.numbered import is_numbered, named
from inkwash.adapters.peft import Settings
from inkwash.files import ModelFileError
from inkwash.weights.bytes.tensor_file import TensorFile, read_tensors
from inkwash.weights.checkpoint import Parts, check_finite
from inkwash.weights.names.keymap import UnknownKeys

log = logging.getLogger(__name__)
BUNDLED = "bundle_emb."  # LyCORIS' embeddings inside a LoRA
BUNDLED_TENSOR = re.compile(r"\.(string_to_param\.\*|emb_params|emp_params|clip_[lgh]|text_encoders_\d)$")


@dataclass(frozen=True)
class Adapter:
    """A table of changes, and what else its file holds."""

    changes: Mapping[Target, Change]
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by name, then as in a file
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Hooking(Protocol):
    """A change of a layer's computation by hooks, at a strength."""

    def hooks(self, layer: nn.Module, strength: float) -> list[RemovableHandle]: ...


class Attachment:
    """An adapter that fits a model: attached and detached as often as wanted, also by `with`.

    Hooks add the change's part to what a matrix or a convolution puts out, and give a norm other parameters while it is
    called. So the model's own weights are never touched, and detached it computes what it did before, bitwise.
    """

    def __init__(self, changes: Sequence[tuple[nn.Module, Hooking, float]] = ()):
        self.changes = list(changes)
        self.hooks: list[Any] = []

    def attach(self) -> Self:
        if not self.hooks:
            for layer, change, by in self.changes:
                self.hooks += change.hooks(layer, by)
        return self

    def detach(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def __add__(self, other: "Attachment") -> "Attachment":
        """Both at once."""
        return Attachment([*self.changes, *other.changes])

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()


def attach(
    parts: Parts, adapter: Adapter, strength: float = 1.0, text_strength: float | None = None
) -> Attachment:
    """Attach an adapter to a model until it is detached; strength: of the U-Net, and of the text unless that is given.

    with attach(model, read_adapter("style.safetensors", model), 0.8):
        model.text_to_image("a castle")
    """
    return prepare(parts, adapter, strength, text_strength).attach()


def prepare(
    parts: Parts, adapter: Adapter, strength: float = 1.0, text_strength: float | None = None
) -> Attachment:
    """Prepare an adapter for a model without attaching it; tensors are on the layers' device, in their dtype."""
    made = []
    for layer, change, by in placed(parts, adapter, strength, text_strength):
        weight = layer.weight
        made.append((layer, change.to(weight.device, weight.dtype), by))
    return Attachment(made)


@torch.no_grad()
def bake(parts: Parts, adapter: Adapter, strength: float = 1.0, text_strength: float | None = None) -> None:
    """Change the model's own weights for good, so that it draws what it does with the adapter attached, faster."""
    for layer, change, by in placed(parts, adapter, strength, text_strength):
        weight, bias = layer.weight, layer.bias if hasattr(layer, "bias") else None
        change = change.to(weight.device, torch.float32)
        weight += change.delta(weight.float(), by).to(weight.dtype)
        if change.diff_b is not None:
            assert bias is not None  # `check_fit`
            bias += by * change.diff_b.to(bias.dtype)


def placed(
    parts: Parts, adapter: Adapter, strength: float, text_strength: float | None
) -> Iterator[tuple[Any, Change, float]]:
    """Layers with their changes and strengths, but for strengths of 0."""
    for target, change in adapter.changes.items():
        by = strength if target.part == "unet" or text_strength is None else text_strength
        if by:
            yield layer_of(parts, target), change, by


def layer_of(parts: Parts, target: Target) -> Any:
    return networks(parts)[target.part].get_submodule(target.path)


def read_adapter(path: Path | str, parts: Parts) -> Adapter:
    """Read a LoRA, LoCon, LoHa, LoKr, GLoRA, DoRA, (IA)^3, OFT, BOFT or full difference for a model, in any dialect.

    peft's `adapter_config.json` beside the file is read with it. Raises ModelFileError, in UnknownKeys' lines where tensors
    change nothing that the model has, and naming the tensor that does not fit or holds values that are not finite. What a
    trainer left behind without effect is passed over with a log line; nothing else is left out.
    """
    path = Path(path)
    file = read_tensors(path)
    try:
        return adapter_of(file, parts, Settings.beside(path, file.metadata))
    except ModelFileError as error:
        raise ModelFileError(f"{path} does not fit the model: {error}") from error


def adapter_of(file: TensorFile, parts: Parts, settings: Settings | None = None) -> Adapter:
    """The adapter of a file's tensors; see `read_adapter`."""
    settings = settings or Settings.inside(file.metadata)
    known = targets(parts)
    grouped: dict[Target, dict[str, Any]] = {}
    modules: dict[Target, str] = {}  # as the file names them
    embeddings: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    check_finite(file.tensors, "the file")
    if is_numbered(file.tensors):
        tensors, words = named(file.tensors, parts)
        file = replace(file, tensors=tensors)
        embeddings |= {word: {"emb_params": vector} for word, vector in words.items()}
    if len(several := adapter_names(file.tensors)) > 1:
        raise ModelFileError(f"it holds the adapters {', '.join(sorted(several))}; save one of them alone")
    for key, tensor in without_leftovers(file.tensors).items():
        if key.startswith(BUNDLED):
            name, rest = bundled(key)
            embeddings.setdefault(name, {})[rest] = tensor
        elif (found := split(key)) is None or (target := known.get(underscored(found[0]))) is None:
            unknown.append(key)
        else:
            module, name = found
            if name in grouped.setdefault(target, {}):
                raise ModelFileError(f"{key} is there twice, by another name")
            grouped[target][name] = value_of(name, tensor, key)
            modules[target] = module
    if unknown:
        raise UnknownKeys("not known", unknown, known)
    if not grouped:
        raise ModelFileError("it changes nothing")
    changes = {}
    for target, tensors in grouped.items():
        with naming(target):
            layer = layer_of(parts, target)
            changes[target] = change_of(settings.applied(tensors, target.part, modules[target], layer))
            check_fit(changes[target], layer)
    return Adapter(changes, embeddings, file.metadata)


def without_leftovers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors but for those that have no effect: empty ones, and an alpha whose module has nothing else."""
    kept = {key: value for key, value in tensors.items() if value.numel()}
    found = {key: split(key) for key in kept}
    busy = {name[0] for name in found.values() if name and name[1] != "alpha"}
    kept = {
        key: value
        for key, value in kept.items()
        if not (name := found[key]) or name[1] != "alpha" or name[0] in busy
    }
    if passed_over := [key for key in tensors if key not in kept]:
        more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
        log.warning("passed over, since it has no effect: %s%s", passed_over[0], more)
    return kept


def bundled(key: str) -> tuple[str, str]:
    """The name of an embedding inside a LoRA, which may have dots, and that of its tensor."""
    rest = key.removeprefix(BUNDLED)
    match = BUNDLED_TENSOR.search(rest)
    name, _, tensor = (rest[: match.start()], "", match[1]) if match else rest.partition(".")
    return name, tensor


def value_of(name: str, tensor: Tensor, key: str) -> Any:
    """Numbers as numbers, magnitudes of rows as a vector, and everything else as it is."""
    if name in ("alpha", "on_input"):
        if tensor.numel() != 1:
            raise ModelFileError(f"{key} has shape {tuple(tensor.shape)}, one number is wanted")
        return float(tensor) if name == "alpha" else bool(tensor)
    if "lora_magnitude_vector" in key:
        return tensor.flatten()
    return tensor


@contextmanager
def naming(target: Target) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        raise ModelFileError(f"{target.part}'s {target.path}: {' '.join(str(error).split())}") from error


def check_fit(change: Change, layer: Any) -> None:
    """Check that a change fits a layer, by shapes alone; raise ValueError or RuntimeError otherwise."""
    shape = layer.weight.shape
    if not change.fits_shape(shape):
        raise ValueError(f"its {type(change).__name__} does not fit a weight of shape {tuple(shape)}")
    bias = getattr(layer, "bias", None)
    if change.diff_b is not None and (bias is None or change.diff_b.shape != bias.shape):
        has = "none" if bias is None else f"one of shape {tuple(bias.shape)}"
        raise ValueError(
            f"the change of the bias has shape {tuple(change.diff_b.shape)}, the layer has {has}"
        )
