"""Descriptions of files and folders, for people and programs to read."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNetConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights.ancestors import ancestors
from inkwash.weights.bytes.tensor_file import TensorFile, read_tensors
from inkwash.weights.checkpoint import Checkpoint, Component, assemble, names_of, probe
from inkwash.weights.detect import detect_unet, family_of
from inkwash.weights.few_steps import FewSteps, few_steps_of
from inkwash.weights.hashes import hash_of, payload_hash
from inkwash.weights.models.component import KINDS as COMPONENTS
from inkwash.weights.models.component import component_kind, component_of, read_component
from inkwash.weights.models.convert import few_steps_of_checkpoint
from inkwash.weights.models.folder import read_folder
from inkwash.weights.models.folder_files import read_weights
from inkwash.weights.models.prior import has_prior, read_prior
from inkwash.weights.models.single import TEXTS, UNET, kind_of_file, sorted_checkpoint
from inkwash.weights.models.single_names import AUTOENCODER, Sorted, sort
from inkwash.weights.names.wrappers import read_model_file
from inkwash.weights.scheduler import read_prediction
from inkwash.weights.upscalers import described, upscaler_of

# width of the context that cross-attention reads -> the family
CONTEXTS = {768: "sd1", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}

XL_CONTROLNETS = {10: "full", 1: "mid", None: "small"}  # by the transformer depth of the middle


def inspect(path: Path) -> dict[str, Any]:
    """kind, family, variant, prediction_type, evidence, components, keys, metadata and hashes.

    Raises ModelFileError where the file can't be read, or is a checkpoint of no family that is known.
    """
    if path.is_dir():
        kind = component_kind(path)
        if has_prior(path) and not (path / "unet").is_dir():
            return inspect_prior(path)
        return inspect_part(path, kind) if kind else inspect_folder(path)
    return inspect_file(path)


def inspect_file(path: Path) -> dict[str, Any]:
    file, stored = read_model_file(path), len(read_tensors(path).tensors)
    kind = kind_of_file(file)
    report = inspect_checkpoint(file) if kind == "checkpoint" else inspect_other(file, kind)
    report["keys"]["dropped"] += stored - len(file.tensors)
    shown = file.metadata if file.format != "ncnn" else {}  # whose are the graph
    plain = {key: value for key, value in shown.items() if key != TEXTS}
    report |= {"metadata": plain, "hashes": hashes(file)}
    if made_of := ancestors(file.metadata):
        report["ancestors"] = made_of
    if kind in ("checkpoint", "unet", "lora"):
        guided = any(name.endswith("cond_proj.weight") for name in file.tensors)
        suggest(report, few_steps_of([path], file.metadata, guidance_input=guided))
    return report


def suggest(report: dict[str, Any], found: FewSteps | None) -> None:
    """Add the settings that suit a distilled model, and what says that it is one."""
    if found:
        report["suggested"] = found.options
        report["evidence"] = [*filter(None, report["evidence"]), f"few steps: {found.why}"]


def inspect_part(path: Path, kind: str) -> dict[str, Any]:
    """A folder of one network."""
    part, digest = read_component(path), hash_of(read_weights(path)[1])
    report: dict[str, Any] = {
        "kind": kind,
        "family": None,
        "variant": None,
        "prediction_type": None,
        "components": {kind: summary(part.tensors)},
        "keys": {"used": len(part.tensors), "dropped": 0, "unknown": []},
        "metadata": {},
        "hashes": {"sha256": digest, "autov2": digest[:10]},
    }
    return report | of_component(part)


def inspect_prior(path: Path) -> dict[str, Any]:
    """A folder that holds a prior, whatever else."""
    parts = read_prior(path)
    digest = hash_of(parts.files)
    networks: dict[str, Component[Any]] = {"prior": parts.prior, "text_encoder": parts.text}
    return {
        "kind": "prior",
        "family": None,
        "variant": None,
        "prediction_type": "x0",
        "evidence": [f"shapes: vectors of {parts.prior.config.vector_dim} numbers"],
        "components": {name: summary(part.tensors) for name, part in networks.items()},
        "keys": {"used": sum(len(part.tensors) for part in networks.values()), "dropped": 0, "unknown": []},
        "metadata": {},
        "hashes": {"sha256": digest, "autov2": digest[:10]},
    }


def inspect_folder(path: Path) -> dict[str, Any]:
    if not any((path / name).is_file() for name in ("model_index.json", "config.json")):
        raise ModelFileError(
            f"{path} is a folder without model_index.json or config.json, so no model; give a file of it"
        )
    checkpoint = read_folder(path)
    digest = hash_of(checkpoint.files)
    config = checkpoint.unet.config
    try:
        family, variant = family_of(config)
        name, evidence = family.name, f"family: unet/config.json is that of {family.name}"
    except ModelFileError:
        name, variant, evidence = None, None, "family: unet/config.json is of none that is published"
        if config.text_dim is not None:  # which has no families, as its networks differ in size alone
            variant = "upscaler" if config.level_embedding else "pixels"
            evidence = "variant: unet/config.json is of Imagen's kind, as DeepFloyd IF's are"
    said = checkpoint.scheduler.get("prediction_type", "epsilon")
    report = {
        "kind": "checkpoint",
        "family": name,
        "variant": variant,
        "prediction_type": None if said is None else read_prediction(checkpoint.scheduler),
        "evidence": [evidence, f"prediction: scheduler_config.json says {said}"],
        "components": components(checkpoint),
        "keys": {"used": num_tensors(checkpoint), "dropped": len(checkpoint.others), "unknown": []},
        "metadata": dict(checkpoint.metadata),
        "hashes": {"sha256": digest, "autov2": digest[:10]},
    }
    if has_prior(path):
        own = inspect_prior(path)
        prior, text = own["components"].values()
        report["components"] |= {"prior": prior, "prior_text_encoder": text}
        report["keys"]["used"] += own["keys"]["used"]
        report["keys"]["dropped"] -= sum(name.startswith("prior") for name in checkpoint.others)
    suggest(report, few_steps_of_checkpoint(checkpoint, [path]))
    return report


def inspect_checkpoint(file: TensorFile) -> dict[str, Any]:
    try:
        found = sort(file.tensors)
        described = TEXTS in file.metadata  # written from a folder, whose files say what it is
        detected = None if described else detect_unet(found.unet, file.tensors, file.metadata)[2]
    except ModelFileError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    parts: dict[str, Mapping[str, Tensor]] = {"unet": found.unet, "vae": found.autoencoder}
    for i, tower in enumerate(found.text.values()):
        parts["text_encoder" + (f"_{i + 1}" if i else "")] = tower
    parts["cond_stage"] = found.cond_stage
    found, missing = without_surplus(file, found)
    report: dict[str, Any] = {"kind": "checkpoint", "family": None, "variant": None, "prediction_type": None}
    if detected is None:
        said = read_prediction(sorted_checkpoint(file, found).scheduler)
        report |= {"prediction_type": said, "evidence": ["written from a folder"]}
    else:
        prediction, evidence = detected.prediction, list(detected.evidence)
        if prediction is None and not found.unknown and not missing:
            made = assemble(sorted_checkpoint(file, found))
            prediction, why = probe(made.unet, made.text_encoders[-1])
            evidence[-1 if not detected.zero_terminal_snr else -2] = f"prediction: {why}"
        report |= {
            "family": detected.family,
            "variant": detected.variant,
            "prediction_type": prediction,
            "evidence": evidence,
        }
    return report | {
        "components": {name: summary(tensors) for name, tensors in parts.items() if tensors},
        "missing": missing,
        "keys": {"used": len(found.used), "dropped": len(found.others), "unknown": sorted(found.unknown)},
    }


def without_surplus(file: TensorFile, found: Sorted) -> tuple[Sorted, list[str]]:
    """The tensors with those that no network takes among the unknown, and what the networks lack."""
    try:
        checkpoint = sorted_checkpoint(file, replace(found, unknown=[]))
    except ModelFileError as error:
        return replace(found, used=[], unknown=[*found.unknown, *found.used]), [str(error)]
    missing, surplus = list(checkpoint.missing), []
    prefixes = {id(checkpoint.unet): UNET, id(checkpoint.autoencoder): AUTOENCODER}
    for network in checkpoint.networks:
        if not network.tensors:
            continue
        prefix, wanted = prefixes.get(id(network), ""), names_of(network)
        missing += [f"{prefix}{name}" for name in sorted(wanted - network.tensors.keys())]
        surplus += [f"{prefix}{name}" for name in sorted(network.tensors.keys() - wanted)]
    left = {name for name in found.used if any(name == s or name.endswith(f".{s}") for s in surplus)}
    return replace(
        found,
        used=[name for name in found.used if name not in left],
        unknown=[*found.unknown, *left],
    ), missing


def inspect_other(file: TensorFile, kind: str) -> dict[str, Any]:
    """A file that is no checkpoint: what it is for is read from the width of its cross-attention, or of its vectors."""
    family, evidence = None, f"kind: {next(iter(file.tensors), 'no tensor')}"
    for name, value in file.tensors.items():
        width = value.shape[-1] if value.ndim else 0
        reads = (
            "attn2" in name
            and "to_k" in name
            and ("down" in name or "lora_A" in name or name.endswith("to_k.weight"))
        )
        if width in CONTEXTS and (reads or kind == "embedding"):
            family, evidence = CONTEXTS[width], f"family: {name} is {width} wide"
            break
    if kind == "embedding" and {"clip_l", "clip_g"} <= file.tensors.keys():
        family, evidence = "sdxl", "family: it has vectors for two text encoders"
    known = kind != "unknown"
    report = {
        "kind": kind,
        "family": family,
        "variant": None,
        "prediction_type": None,
        "evidence": [evidence],
        "components": {kind: summary(file.tensors)},
        "keys": {
            "used": len(file.tensors) if known else 0,
            "dropped": 0,
            "unknown": [] if known else sorted(file.tensors),
        },
    }
    if kind == "upscaler":
        try:
            part, factor = upscaler_of(file)
        except ModelFileError as error:
            return report | {"evidence": [evidence, f"it can't be used: {error}"]}
        report["keys"] = tally(file, part) | {"unknown": []}
        return report | {"variant": f"x{factor:g}", "evidence": [f"shapes: {described(part.config)}"]}
    if kind in COMPONENTS:
        try:
            part = component_of(file)
        except ModelFileError as error:
            return report | {"evidence": [evidence, f"it can't be used: {error}"]}
        report |= of_component(part)
        report["keys"] = tally(file, part) | {"unknown": []}
    return report


def tally(file: TensorFile, part: Component[Any]) -> dict[str, Any]:
    """The numbers of a file's tensors that a network uses, and of the others."""
    used = len(part.tensors)
    return {"used": used, "dropped": max(0, len(file.tensors) - used)}


def of_component(part: Component[Any]) -> dict[str, Any]:
    """The description, from its config, of a network in a file of its own."""
    config = part.config
    if isinstance(config, ControlNetConfig):
        unet, hint = config.unet, f"a hint of {config.hint_channels} channels"
        size = "" if unet.vector_dim is None else XL_CONTROLNETS.get(unet.transformer_depth_middle, "")
        width = {2816: 2048}.get(unet.vector_dim or 0, unet.context_dim or 0)
        return {
            "family": CONTEXTS.get(width),
            "variant": size or "base",
            "evidence": [f"family: a context of {width}", f"variant: {hint}"],
        }
    if isinstance(config, UNetConfig):
        try:
            family, variant = family_of(config)
        except ModelFileError as error:
            return {"evidence": [str(error)]}
        return {"family": family.name, "variant": variant, "evidence": ["family: the shapes of its tensors"]}
    said = ", ".join(f"{field} {value}" for field, value in vars(config).items() if isinstance(value, int))
    return {"evidence": [f"shapes: {said}"]}


def components(checkpoint: Checkpoint) -> dict[str, Any]:
    texts = {f"text_encoder{f'_{i + 1}' if i else ''}": text for i, text in enumerate(checkpoint.text)}
    networks: dict[str, Component[Any]] = {"unet": checkpoint.unet, "vae": checkpoint.autoencoder, **texts}
    networks |= {"cond_stage": checkpoint.cond_stage} if checkpoint.cond_stage else {}
    return {name: summary(network.tensors) for name, network in networks.items() if network.tensors}


def num_tensors(checkpoint: Checkpoint) -> int:
    return sum(len(part.tensors) for part in checkpoint.networks)


def summary(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Parameters, and the dtype that most of them have."""
    counts: Counter[str] = Counter()
    for value in tensors.values():
        counts[str(value.dtype).removeprefix("torch.")] += value.numel()
    return {"parameters": sum(counts.values()), "dtype": counts.most_common(1)[0][0] if counts else None}


def hashes(file: TensorFile) -> dict[str, str]:
    """sha256, and the short ones that other programs show: AutoV1 of a piece of the file, AutoV2, and of a
    safetensors file AutoV3, which its metadata does not change (kohya's and AUTOMATIC1111's for LoRA)."""
    made = {"sha256": hash_of([file.path])}
    made["autov2"] = made["sha256"][:10]
    made["autov1"] = autov1(file.path)
    if file.format == "safetensors":
        made["autov3"] = payload_hash(file.path)[:12]
    return made


def autov1(path: Path) -> str:
    """The oldest of the short hashes, of a piece of a file."""
    with path.open("rb") as content:
        content.seek(0x100000)
        return hashlib.sha256(content.read(0x10000)).hexdigest()[:8]
