"""inkwash: the whole Stable Diffusion family in one small library.

model = inkwash.load("mini")
model.text_to_image("a taxi, noto style", cfg_scale=2, seed=7)[0].save("taxi.png")
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from inkwash.pipeline.api import Pipeline
    from inkwash.prompts.folders import Places

__version__ = "0.1.0"
__all__ = ["load"]


def load(
    name: "str | Path",
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | str" = "auto",
    *,
    prediction: "str | None" = None,
    ema: bool = False,
    parts: "Iterable[str | Path]" = (),
    variant: "str | None" = None,
    offline: bool = False,
    refiner: "str | Path | None" = None,
    prior: "str | Path | None" = None,
    offload: bool = False,
    vae_tile: "int | None" = None,
    vae_slicing: bool = False,
    compile: bool = False,
    int8: bool = False,
    **folders: "Places",
) -> "Pipeline":
    """Open a model: "mini", which is shipped with the package, a folder in the diffusers layout, a single file, or an
    id of the Hugging Face hub, "owner/name" or "owner/name/file.safetensors", "@revision" behind it or not.

    A file is known by what it contains, never by its name: safetensors, or what torch saved; SD1, SD2, SDXL, its
    refiner and their kin, latent diffusion's zoo and DDPM. dtype: of the networks, a torch type or fp32, bf16, fp16
    or auto: of a U-Net of 200 million parameters or more the type that is fastest on the device, of a smaller one
    float32. prediction: eps, v or x0, in place of what the model says of itself. ema: take the averaged weights
    that some single files hold besides. parts: files or folders of one network each, a U-Net, autoencoder (also a
    tiny one) or text encoder, in place of the model's own. variant: such as "fp16", where a folder has several.
    offline: take hub ids from the cache alone. refiner: a model that goes on where this one stops, such as SDXL's. prior: a
    folder that makes of prompts the vectors which this model sees, such as Karlo's, where the model brings none.
    compile: the U-Net by torch.compile, which pays on a GPU after a minute or more, for pictures of one size. int8: its
    res-blocks' convolutions and transformers' linear layers in eight bits, on a CPU: faster, and a little different.
    folders: embeddings, loras, hypernetworks, wildcards and styles, the places of files that prompts name, see
    `Folders`. For little memory: offload keeps the networks in main memory, and only the one at work on the device;
    vae_tile is how many pixels a side the first stage works on at once, None all; vae_slicing lets it take a batch one
    by one. Raises ModelFileError, one line that names the first problem.
    """
    # imported here, since torch takes longer than `inkwash --help` may
    from inkwash.pipeline.api import open_model
    from inkwash.prompts.folders import Folders

    return open_model(
        name,
        device,
        dtype,
        prediction=prediction,
        ema=ema,
        parts=parts,
        variant=variant,
        offline=offline,
        refiner=refiner,
        prior=prior,
        offload=offload,
        vae_tile=vae_tile,
        vae_slicing=vae_slicing,
        compile=compile,
        int8=int8,
        folders=Folders.of(**folders),
    )
