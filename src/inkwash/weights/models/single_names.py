"""The tensors of a single file sorted by the networks that they belong to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.weights.models.pictured import from_single
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import Table, UnknownKeys, translate
from inkwash.weights.names.wrappers import UNET

AUTOENCODER = "first_stage_model."
COND_STAGE = "cond_stage_model."  # of latent diffusion's zoo
# text towers in the order of a family's, each with its table from the file's names to ours (None: they are ours)
TEXT: dict[str, Table | None] = {
    "cond_stage_model.transformer.": None,  # SD1
    "cond_stage_model.model.": tables.OPEN_CLIP_TEXT,  # SD2
    "conditioner.embedders.0.transformer.": None,  # SDXL
    "conditioner.embedders.0.model.": tables.OPEN_CLIP_TEXT,  # the refiner
    "conditioner.embedders.1.model.": tables.OPEN_CLIP_TEXT,  # SDXL
}
# what training leaves in a file, what marks it for its readers, and what a folder had besides
OTHERS = re.compile(
    r"(model_ema|depth_model|embedder|noise_augmentor|low_scale_model|embedding_manager|first_stage_model\.(loss|model_ema))\."
    r"|(model\.)?(betas|logvar|lvlb_weights|scale_factor|sigmas|log_sigmas|denoiser\.(log_)?sigmas)$"
    r"|(alphas_cumprod|sqrt_|log_one_minus_|posterior_)\w*$"
    r"|(v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.sigma_\w+|global_step)$"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.(transformer\.vision_model|model\.visual|visual_projection)\."
    r"|[\w.]*(position_ids|attn_mask|logit_scale)$"
    # of latent diffusion: a head that only pre-training had a use for, and the first stage once more
    r"|cond_stage_model\.(transformer\.to_logits|encoder|decoder|quantize|quant_conv|post_quant_conv)\."
    r"|.*/"
)


@dataclass
class Sorted:
    """A file's tensors by component: of the networks under our names, the text towers by their prefix.

    cond_stage: latent diffusion's, be it a text tower or something else; the family says which.
    """

    unet: dict[str, Tensor] = field(default_factory=dict)
    autoencoder: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    cond_stage: dict[str, Tensor] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    others: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def sort(tensors: Mapping[str, Tensor]) -> Sorted:
    """Every tensor of a checkpoint in the place where it belongs. Raises ModelFileError for a broken text tower."""
    made = Sorted()
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (UNET, AUTOENCODER, *TEXT, COND_STAGE)}
    for key, tensor in tensors.items():
        prefix = next((p for p in parts if key.startswith(p)), None)
        if OTHERS.match(key):
            made.others[key] = tensor
        elif prefix is None:
            made.unknown.append(key)
        else:
            made.used.append(key)
            parts[prefix][key[len(prefix) :]] = tensor
    made.unet, made.autoencoder, made.cond_stage = parts[UNET], parts[AUTOENCODER], parts[COND_STAGE]
    clip = f"{COND_STAGE}transformer."
    if "token_emb.weight" in parts[clip]:
        made.cond_stage |= {f"transformer.{key}": value for key, value in parts.pop(clip).items()}
        parts[clip] = {}
    visual, layers = from_single(made.others), f"{COND_STAGE}model."
    if visual and not any(name.startswith("transformer.") for name in parts[layers]):
        # image variations: what is left of CLIP's text tower is in no use
        made.others |= {f"{layers}{name}": value for name, value in parts.pop(layers).items()}
        parts[layers] = {}
    made.cond_stage |= visual
    made.text = {prefix: text_tower(parts[prefix], prefix) for prefix in TEXT if parts[prefix]}
    return made


def text_tower(tower: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A tower under our names."""
    table = TEXT[prefix]
    if table is None:
        # the files of SD1's first year have no text_model. in front
        bare = any(key.startswith("embeddings.") for key in tower)
        return {f"text_model.{key}": value for key, value in tower.items()} if bare else tower
    try:
        return translate(tower, table)
    except UnknownKeys as error:
        raise ModelFileError(f"{prefix}*: {error}") from error
