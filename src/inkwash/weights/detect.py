"""Detection of models by their contents: family, variant and prediction, and the evidence."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.unet import UNetConfig
from inkwash.weights import shapes
from inkwash.weights.families import FAMILIES, Family
from inkwash.weights.inputs import inputs_of

MODELSPEC = {
    "epsilon": "eps",
    "eps": "eps",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "sample": "x0",
}
DESIGN = "inkwash.design"  # metadata: the family whose network a file's is, at other widths
SD2_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Detected:
    """Facts detected in a file; family, variant and prediction are None where the file does not say them."""

    family: str | None = None
    variant: str | None = None
    prediction: str | None = None
    zero_terminal_snr: bool = False
    evidence: tuple[str, ...] = ()


def family_of(config: UNetConfig, from_shapes: bool = False, design: object = None) -> tuple[Family, str]:
    """The family of a U-Net, and its variant. Raises ModelFileError where it is none that is known.

    from_shapes: the config was read from shapes, so what they do not tell is the family's. design: name of the family whose
    network this is at other widths, as a new model's file says in its metadata.
    """
    families = list(FAMILIES.values())
    if isinstance(design, str) and design in FAMILIES:
        with suppress(ValueError):  # widths that the design can't have
            families.append(narrowed(FAMILIES[design], config))
    for family in families:
        own, given = (
            (shapes.without_unseen_fields(family.unet), shapes.without_unseen_fields(config))
            if from_shapes
            else (family.unet, config)
        )
        if replace(given, in_channels=own.in_channels, time_cond_dim=own.time_cond_dim) == own:
            if given.in_channels == own.in_channels:
                return family, "base"
            if own.in_channels == 4 and (kind := inputs_of(given).kind) != "unknown":
                return family, kind
    width = "no context" if config.context_dim is None else f"a context of {config.context_dim}"
    raise ModelFileError(
        f"the U-Net is of no family that is known ({', '.join(FAMILIES)}): it has {config.in_channels} input channels, "
        f"{config.channels} channels times {config.channel_mult}, transformers {config.transformer_depth}, {width} "
        f"and a vector of {config.vector_dim}"
    )


def narrowed(family: Family, like: UNetConfig) -> Family:
    """A family with the widths, levels and depths of another U-Net."""
    names = ("channels", "channel_mult", "transformer_depth")
    return replace(family, unet=replace(family.unet, **{name: getattr(like, name) for name in names}))


def detect_unet(
    unet: Mapping[str, Tensor], others: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> tuple[UNetConfig, Family, Detected]:
    """Detect a U-Net's config and family from its tensors under our names; others: all tensors as the file names them."""
    config = shapes.unet_config(shapes.of(unet))
    family, variant = family_of(config, True, metadata.get(DESIGN))
    config = replace(family.unet, in_channels=config.in_channels, time_cond_dim=config.time_cond_dim)
    evidence = [
        f"family: {config.channels} channels times {config.channel_mult}, "
        + (f"a context of {config.context_dim}" if config.context_dim else "no context")
        + (f", a vector of {config.vector_dim}" if config.vector_dim else ""),
        f"variant: {config.in_channels} input channels",
    ]
    prediction, why = prediction_of(family, unet, others, metadata)
    terminal, why_terminal = zero_terminal(others)
    evidence += [f"prediction: {why}", *([f"zero terminal SNR: {why_terminal}"] if terminal else [])]
    return config, family, Detected(family.name, variant, prediction, terminal, tuple(evidence))


def prediction_of(
    family: Family, unet: Mapping[str, Tensor], others: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> tuple[str | None, str]:
    """eps, v, x0, edm, or None where only `checkpoint.probe` of the network can say; and what says so."""
    said = metadata.get("modelspec.prediction_type")
    if isinstance(said, str) and said.lower() in MODELSPEC:
        return MODELSPEC[said.lower()], f"modelspec.prediction_type is {said}"
    for marker, prediction in (("edm_mean", "edm"), ("edm_vpred.sigma_max", "edm_v"), ("v_pred", "v")):
        if marker in others:
            return prediction, f"the file has the marker {marker}"
    if family.prediction:
        return family.prediction, f"{family.name} predicts {family.prediction} where nothing else is said"
    if SD2_BIAS in unet:
        spread = unet[SD2_BIAS].float().std().item()
        if abs(spread - 0.09) > 0.01:
            return ("v" if spread > 0.09 else "eps"), f"{SD2_BIAS} has the std {spread:.3f}; above 0.09 is v"
    return None, "nothing in the file says it"


def zero_terminal(others: Mapping[str, Tensor]) -> tuple[bool, str]:
    """Test for a zero terminal SNR, the last noise level being noise alone; and the evidence, "" for none."""
    if "ztsnr" in others:
        return True, "the file has the marker ztsnr"
    last = others.get("alphas_cumprod")
    if last is not None and last.ndim == 1 and len(last) and float(last[-1]) < 1e-6:
        return True, f"alphas_cumprod ends at {float(last[-1]):g}"
    return False, ""
