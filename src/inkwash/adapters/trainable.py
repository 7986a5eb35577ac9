"""LoRA to be trained: fresh matrices beside the layers of a model that stays as it is."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from inkwash.adapters.changes import LoRA
from inkwash.adapters.low_rank import Adapter, Attachment, layer_of
from inkwash.adapters.names import Target, networks
from inkwash.weights.checkpoint import Parts

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MAX_RANK = 1024


class TrainableLoRA(nn.Module):
    """Matrices for layers of a model (Hu et al. 2021, section 4.1), float32 whatever the model's dtype.

    `down` starts Kaiming-uniform and `up` at zero, so that the model is at first what it was. targets: ends of module
    paths, such as "to_q", of the U-Net and, where they have such, of the text encoders ("q_proj"). alpha: None is the
    rank. Raises ValueError for a rank outside 1 to 1024, an alpha that is not positive, and an end that names no layer.

    with lora.attached():
        loss(model.unet(...)).backward()  # gradients for `lora.parameters()` alone
    write_adapter(path, lora.adapter, model)
    """

    def __init__(
        self,
        parts: Parts,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = ATTENTION,
        seed: int = 0,
    ):
        super().__init__()
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank {rank} is not in 1 to {MAX_RANK}")
        alpha = float(rank if alpha is None else alpha)
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha {alpha} is not a positive number")
        self.parts, self.alpha = parts, alpha
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.targets = {"_".join(target).replace(".", "_"): target for target in found(parts, targets)}
        random = torch.Generator().manual_seed(seed)
        for name, target in self.targets.items():
            weight = layer_of(parts, target).weight
            (out, *shape), ones = weight.shape, [1] * (weight.ndim - 2)
            bound = math.prod(shape) ** -0.5  # Kaiming-uniform with a = sqrt(5)
            down = torch.empty(rank, *shape).uniform_(-bound, bound, generator=random)
            self.down[name] = nn.Parameter(down.to(weight.device))
            self.up[name] = nn.Parameter(torch.zeros(out, rank, *ones, device=weight.device))

    @property
    def adapter(self) -> Adapter:
        """The same as a table of changes, which share the parameters."""
        made = {
            target: LoRA(lora_down=self.down[name], lora_up=self.up[name], alpha=self.alpha)
            for name, target in self.targets.items()
        }
        return Adapter(made)

    def attached(self) -> Attachment:
        """At strength 1, from now on or by `with`; steps of an optimizer are seen."""
        changes = self.adapter.changes.items()
        return Attachment(
            [(layer_of(self.parts, target), change, 1.0) for target, change in changes]
        ).attach()


def found(parts: Parts, ends: Sequence[str]) -> Iterator[Target]:
    """The matrices and convolutions whose paths end so."""
    layers = [
        Target(part, path)
        for part, network in networks(parts).items()
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    for end in ends:
        if not any(f".{target.path}".endswith(f".{end}") for target in layers):
            raise ValueError(f"no layer's path ends in {end!r}; such are {', '.join(ATTENTION)}")
    yield from (target for target in layers if any(f".{target.path}".endswith(f".{end}") for end in ends))
