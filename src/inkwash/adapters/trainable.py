"""Adapters to be trained: fresh tensors beside the layers of a model that stays as it is."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.adapters.change import Change
from inkwash.adapters.kinds import BOFT, IA3, OFT, Full, GLoRA, LoHa, LoKr, LoRA
from inkwash.adapters.low_rank import Adapter, Attachment, layer_of
from inkwash.adapters.names import Target, networks
from inkwash.weights.checkpoint import Parts

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MAX_RANK = 1024
Tensors = dict[str, Any]


class TrainableLoRA(nn.Module):
    """A low-rank adapter for layers of a model, or another of its kind, float32 whatever the model's dtype.

    It starts so that the model is at first what it was. kind: one of KINDS. targets: ends of module paths, such as "to_q",
    of the U-Net and, where they have such, of the text encoders ("q_proj"); "all" is every matrix. conv_rank: of 3x3
    convolutions, 0 leaves them out. alpha: None is the rank. conv_alpha: of 3x3 convolutions, None is alpha. rank_of,
    alpha_of: another one by target, rank 0 for none. factor: of lokr the size of its small matrix, of oft and boft that of
    a block. compensated: both factors start random, and their product is taken off. Raises ValueError for a rank outside 1
    to 1024, an alpha that is not positive, and an end that names no layer.

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
        kind: str = "lora",
        conv_rank: int = 0,
        rank_of: Callable[[Target], int | None] = lambda target: None,
        factor: int = 8,
        compensated: bool = False,
        networks: Sequence[str] = ("unet", "text_encoder", "text_encoder_2"),
        conv_alpha: float | None = None,
        alpha_of: Callable[[Target], float | None] = lambda target: None,
    ):
        super().__init__()
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"rank {rank} is not in 1 to {MAX_RANK}")
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f"alpha {alpha} is not a positive number")
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if compensated and kind != "lora":
            raise ValueError(f"compensated: only lora starts so, and the kind is {kind}")
        self.parts, self.kind, self.compensated = parts, KINDS[kind][0], compensated
        self.learned, self.fixed, self.numbers = nn.ParameterDict(), nn.ParameterDict(), {}
        self.targets: dict[str, Target] = {}
        random = torch.Generator().manual_seed(seed)
        for target in found(parts, targets, conv_rank > 0, networks):
            weight = layer_of(parts, target).weight
            large = weight.ndim == 4 and weight.shape[-1] > 1
            own = rank_of(target)
            own = (conv_rank if large else rank) if own is None else own
            if not own:
                continue
            given = alpha_of(target) or (conv_alpha if large and conv_alpha else alpha)
            name = "_".join(target).replace(".", "_")
            self.targets[name] = target
            # alpha / rank is the same for all ranks where alpha is the rank's
            scale = (float(own) if given is None else given) if kind in SCALED else None
            tensors = KINDS[kind][1](weight.detach().float().cpu(), own, factor, random, target)
            if compensated:
                tensors["lora_up"] = torch.randn(tensors["lora_up"].shape, generator=random) / own
                for field in ("lora_down", "lora_up"):
                    self.fixed[f"{name}:{field}"] = nn.Parameter(
                        tensors[field].clone().to(weight.device), False
                    )
                scale = scale and 2 * scale  # of twice the rank
            self.numbers[name] = {"alpha": scale} | {
                k: v for k, v in tensors.items() if not isinstance(v, Tensor)
            }
            for field, value in tensors.items():
                if isinstance(value, Tensor):
                    self.learned[f"{name}:{field}"] = nn.Parameter(value.contiguous().to(weight.device))
        if not self.targets:
            raise ValueError("every layer's rank is 0, so nothing learns")

    @property
    def adapter(self) -> Adapter:
        """The table of changes, which share the parameters."""
        return self.with_tensors(self.state_dict(keep_vars=True))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """The table of changes with other values of the parameters, by their names, such as an average's."""
        fields: dict[str, Tensors] = {name: dict(numbers) for name, numbers in self.numbers.items()}
        for key, value in tensors.items():
            group, _, rest = key.partition(".")
            name, _, field = rest.partition(":")
            if group == "learned":
                fields[name][field] = value
        for key, value in self.fixed.items() if self.compensated else ():
            name, _, field = key.partition(":")
            both = (fields[name][field], value if field == "lora_down" else -value)
            fields[name][field] = torch.cat(both, dim=0 if field == "lora_down" else 1)
        return Adapter({self.targets[name]: self.kind(**own) for name, own in fields.items()})

    def attached(self) -> Attachment:
        """Attach the adapter at strength 1, from now on or by `with`; it follows the optimizer's steps."""
        return Live(self).attach()


class Live(Attachment):
    """An attachment that reads an adapter's parameters anew each time that it is attached."""

    def __init__(self, lora: TrainableLoRA):
        super().__init__()
        self.lora = lora

    def attach(self) -> "Live":
        if not self.hooks:
            changes = self.lora.adapter.changes.items()
            self.changes = [(layer_of(self.lora.parts, target), change, 1.0) for target, change in changes]
            super().attach()
        return self


def layers(parts: Parts) -> dict[Target, nn.Module]:
    """All matrices and convolutions of a model."""
    return {
        Target(part, path): module
        for part, network in networks(parts).items()
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def found(
    parts: Parts, ends: Sequence[str], convolutions: bool, part_names: Sequence[str]
) -> Iterator[Target]:
    """The matrices whose paths end so, and, where wanted, the 3x3 convolutions. Raises ValueError for an end of none."""
    found = layers(parts)

    def ends_so(target: Target, end: str) -> bool:
        return end == "all" or f".{target.path}".endswith(f".{end}")

    for end in ends:
        if not any(ends_so(target, end) for target in found) and end not in KNOWN_ENDS:
            raise ValueError(f"no layer's path ends in {end!r}; such are {', '.join(ATTENTION)}")
    for target, module in found.items():
        large = isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1
        named = any(ends_so(target, end) for end in ends if not (large and end == "all"))
        if target.part in part_names and (named or (large and convolutions and target.part == "unet")):
            yield target


KNOWN_ENDS = {*ATTENTION, "q_proj", "k_proj", "v_proj", "out_proj"}  # which not every model has


def kaiming(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Kaiming-uniform with a = sqrt(5)."""
    bound = math.prod(shape[1:]) ** -0.5
    return torch.empty(*shape).uniform_(-bound, bound, generator=random)


def lora(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Hu et al. 2021, section 4.1: `down` random and `up` zero."""
    ones = [1] * (weight.ndim - 2)
    return {
        "lora_down": kaiming((rank, *weight.shape[1:]), random),
        "lora_up": torch.zeros(weight.shape[0], rank, *ones),
    }


def dora(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Liu et al. 2024: a LoRA of the directions, and the magnitudes of the rows."""
    norm = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    return lora(weight, rank, factor, random, target) | {"dora_scale": norm}


def loha(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Hyeon-Woo et al. 2022, with LyCORIS' start."""
    out, size = weight.shape[0], weight[0].numel()
    return {
        "hada_w1_a": 0.1 * torch.randn(out, rank, generator=random),
        "hada_w1_b": torch.randn(rank, size, generator=random),
        "hada_w2_a": torch.zeros(out, rank),
        "hada_w2_b": torch.randn(rank, size, generator=random),
    }


def lokr(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Yeh et al. 2024, section 3.2: a small matrix times a large one, of two factors where those are smaller."""
    (out, size), kernel = weight.shape[:2], weight.shape[2:]
    small = [largest_divisor(side, factor) for side in (out, size)]
    large = [out // small[0], size // small[1]]
    tensors = {"lokr_w1": kaiming(small, random)}
    if rank * (large[0] + large[1] * math.prod(kernel)) < large[0] * large[1] * math.prod(kernel):
        down = kaiming((rank, large[1] * math.prod(kernel)), random)
        return tensors | {"lokr_w2_a": torch.zeros(large[0], rank), "lokr_w2_b": down}
    return tensors | {"lokr_w2": torch.zeros(*large, *kernel)}


def glora(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Chavan et al. 2023."""
    (out, size), full = weight.shape[:2], weight[0].numel()
    return {
        "a1": torch.zeros(size, rank),
        "a2": kaiming((rank, size), random),
        "b1": torch.zeros(out, rank),
        "b2": kaiming((rank, full), random),
    }


def ia3(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """(IA)^3: factors of keys, values and feed-forward outputs (Liu et al. 2022, section 3.3)."""
    on_input = target.path.endswith(("ff.net.2", "fc2"))
    return {"weight": torch.zeros(weight.shape[1 if on_input else 0]), "on_input": on_input}


def oft(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Qiu et al. 2023: no turn."""
    size = largest_divisor(weight.shape[0], factor)
    return {"oft_blocks": torch.zeros(weight.shape[0] // size, size, size)}


def boft(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """Liu et al. 2024, section 4: no turn, in as many stages as the number of blocks has factors of 2."""
    out, size = weight.shape[0], largest_divisor(weight.shape[0], factor)
    while size % 2 and size > 1:
        size = largest_divisor(out, size - 1)
    stages = max(1, (out // size & -(out // size)).bit_length())
    return {"oft_blocks": torch.zeros(stages, out // size, size, size)}


def full(weight: Tensor, rank: int, factor: int, random: torch.Generator, target: Target) -> Tensors:
    """The change itself."""
    return {"diff": torch.zeros_like(weight)}


def largest_divisor(number: int, most: int) -> int:
    return next(k for k in range(min(number, most), 0, -1) if number % k == 0)


# a kind's class, and how it starts: (weight, rank, factor, random, target) -> its tensors
KINDS: Mapping[str, tuple[type[Change], Callable[..., Tensors]]] = {
    "lora": (LoRA, lora),
    "dora": (LoRA, dora),
    "loha": (LoHa, loha),
    "lokr": (LoKr, lokr),
    "glora": (GLoRA, glora),
    "ia3": (IA3, ia3),
    "oft": (OFT, oft),
    "boft": (BOFT, boft),
    "full": (Full, full),
}
SCALED = {"lora", "dora", "loha", "lokr", "glora"}  # kinds whose change alpha / rank scales
