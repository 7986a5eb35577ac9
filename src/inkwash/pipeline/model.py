"""A model that is open: its networks, and where and how they run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkwash.models.autoencoder import PixelConfig
from inkwash.nn.attention import Context
from inkwash.nn.int8 import Int8Conv2d, Int8Linear
from inkwash.pipeline.memory.offload import Offload
from inkwash.pipeline.prior import TextPrior
from inkwash.prompts.folders import Folders
from inkwash.weights.checkpoint import Parts
from inkwash.weights.few_steps import FewSteps
from inkwash.weights.hashes import hash_of
from inkwash.weights.inputs import Inputs, inputs_of

# what acts on a call of the U-Net, of x, t and the keywords: within, the keywords for that call
Around = Callable[[Tensor, Tensor, dict[str, Any]], AbstractContextManager[dict[str, Any]]]


@dataclass(frozen=True)
class Model(Parts):
    """The networks of a latent diffusion model, all on one device in one dtype, and how they run."""

    name: str = ""
    parts: tuple[Path, ...] = ()  # files whose networks are in place of the model's own
    refiner: "Model | None" = None  # what goes on where this one stops
    prior: TextPrior | None = None  # what makes the vectors that it sees, of prompts
    few_steps: FewSteps | None = None  # how it was distilled, where its files say it
    offload: Offload | None = None  # where the networks come and go
    folders: Folders = Folders()  # where the files are that prompts name

    @cached_property
    def hash(self) -> str:
        """The first 10 hex digits of the file's sha256, as other programs name a model; of a folder, its U-Net's."""
        return hash_of(self.files)[:10]

    @cached_property
    def part_hashes(self) -> dict[str, str]:
        """The first 10 hex digits of the parts' hashes, by their names."""
        files = {
            path: [path] if path.is_file() else sorted(path.glob("*.safetensors")) for path in self.parts
        }
        return {path.stem: hash_of(each)[:10] for path, each in files.items()}

    @cached_property
    def controls(self) -> dict[Any, Any]:
        """Networks of controls that are open, by file; see `denoising.control`."""
        return {}

    @cached_property
    def upscalers(self) -> dict[Any, Any]:
        """Upscalers of second passes that are open, by file."""
        return {}

    @property
    def device(self) -> torch.device:
        return self.offload.device if self.offload else next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def int8(self) -> bool:
        """True if the U-Net computes in eight bits."""
        return any(isinstance(module, Int8Conv2d | Int8Linear) for module in self.unet.modules())

    @cached_property
    def inputs(self) -> Inputs:
        """The network's inputs beside the latent."""
        stage = self.cond_stage.config if self.cond_stage else None
        return inputs_of(self.unet.config, stage, self.autoencoder.config, bool(self.text_encoders))

    def network(self, around: Around = lambda x, t, cond: nullcontext(cond)) -> Callable[..., Tensor]:
        """The U-Net for samplers, which compute in float32 whatever its own dtype.

        concat: what a variant of the family sees beside x, as channels that are not scaled. around: what acts on each
        call. Variances, if the samplers are to have them, are behind the prediction.
        """
        unet, stage = self.unet.config, self.autoencoder.config
        variances = isinstance(stage, PixelConfig) and stage.variances
        dtype, num = self.dtype, unet.out_channels if variances else unet.predicted_channels
        remembered = lru_cache(maxsize=4)(Context)  # a tensor is looked up by being the same one

        def predict(
            x: Tensor, t: Tensor, concat: Tensor | None = None, context: Tensor | None = None, **cond: Any
        ) -> Tensor:
            if context is not None:
                cond["context"] = remembered(context)
            latent = x.to(dtype).contiguous(memory_format=torch.channels_last)
            with around(latent, t, cond) as given:
                if concat is None:
                    return self.unet(latent, t, **given)[:, :num].float()
                x = torch.cat([x, concat], dim=1).to(dtype).contiguous(memory_format=torch.channels_last)
                return self.unet(x, t, **given)[:, :num].float()

        return predict
