"""Options of how a model is opened and run, each described once: no part of a picture's recipe. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from inkwash.pipeline.option import MEMORY, PROMPTS, option


class PlaceFields(BaseModel):
    """Places of the files that prompts name."""

    embeddings: tuple[Path, ...] = option(
        (), "Folder of embeddings, named by their file names.", group=PROMPTS
    )
    loras: tuple[Path, ...] = option(
        (), "Folder of LoRAs, for <lora:name:strength>.", group=PROMPTS, flag="lora-dir"
    )
    hypernetworks: tuple[Path, ...] = option(
        (), "Folder of hypernetworks, for <hypernet:name:strength>.", group=PROMPTS, flag="hypernet-dir"
    )
    wildcards: tuple[Path, ...] = option(
        (), "Folder of text files; __name__ is one of their lines.", group=PROMPTS
    )
    styles: tuple[Path, ...] = option((), "CSV of name, prompt and negative_prompt.", group=PROMPTS)


class MemoryFields(BaseModel):
    """The device that the networks run on, and their memory."""

    device: str = option("cpu", "Device that the networks run on: cpu, cuda, cuda:1, mps.", group=MEMORY)
    vae_tile: int | None = option(
        None,
        "Side in pixels of the tiles that the autoencoder works on; default: the whole picture.",
        group=MEMORY,
    )
    vae_slicing: bool = option(False, "Let the autoencoder take a batch one picture at a time.", group=MEMORY)
    offload: bool = option(False, "Keep only the network in use on --device.", group=MEMORY)


class WeightFields(BaseModel):
    """Choice of the weights that are opened, and of their precision."""

    model: str = option(
        "mini", "`mini`, a file, a folder in the diffusers layout, or an id of the Hugging Face hub."
    )
    variant: str | None = option(None, "Variant of the weights, such as fp16, where a folder has several.")
    offline: bool = option(False, "Open models of the hub from the cache, without the network.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Number type of the networks; auto: fp32 for small ones, else the fastest of this machine."
    )
    int8: bool = option(False, "Compute the U-Net in eight bits: faster on a CPU, coarser.")
    compile: bool = option(False, "Compile the U-Net with torch.compile before drawing; for a GPU.")
    parts: tuple[str, ...] = option(
        (),
        "A U-Net, autoencoder or text encoder in a file of its own, in place of the model's; repeatable.",
        flag="part",
    )
    refiner: str | None = option(
        None, "A second model, such as SDXL's refiner, that takes over near the end."
    )
    prior: str | None = option(
        None,
        "Folder or hub id of a prior, such as Karlo's, for models that see CLIP's vectors; default: their own.",
    )
