"""What a training holds and computes, by the network's own shapes and operations; nothing is computed.

`python benchmarks/plan.py [--batch 1]`: GB of weights, gradients, moments, average and activations, and TFLOP of a picture.

Weights of a full training are float32, of a LoRA bfloat16; AdamW's two moments and the average are float32 and of what
learns. Activations are what autograd keeps of a U-Net in bfloat16 from forward to backward, each storage once, weights not;
with checkpointing without what the block that is computed again keeps meanwhile. Autocast keeps norms in float32, and so
more. A LoRA of rank 8 is of the attentions' matrices; that its layers need no gradient of W is not taken off.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from cyclopts import run as command
from torch.utils.flop_counter import FlopCounterMode

from inkwash.adapters.trainable import found
from inkwash.models.unet import UNet, UNetConfig
from inkwash.training.checkpointing import checkpoint_activations
from inkwash.weights.families import FAMILIES

SIDES = {"sd1": (256, 512), "sd2": (512,), "sdxl": (512, 1024)}
RANK, GB = 8, 1e9
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Measure:
    """teraflops: of a forward pass of a picture. kept, kept_checkpointed: bytes of a batch, from forward to backward."""

    teraflops: float
    kept: int
    kept_checkpointed: int


def measured(config: UNetConfig, side: int, batch: int) -> Measure:
    """Run the U-Net on tensors without memory."""
    with torch.device("meta"):
        unet = UNet(config).to(torch.bfloat16)
        x = torch.empty(batch, config.in_channels, side // 8, side // 8, dtype=torch.bfloat16)
        given: list[Any] = [
            x,
            torch.empty(batch),
            torch.empty(batch, 77, config.context_dim or 0, dtype=x.dtype),
        ]
        if config.vector_dim:
            given.append(torch.empty(batch, config.vector_dim, dtype=x.dtype))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(*given)
    kept = kept_by(unet, given)
    checkpoint_activations(unet)
    return Measure(counter.get_total_flops() / batch / 1e12, kept, kept_by(unet, given))


def kept_by(unet: UNet, given: list[Any]) -> int:
    """Bytes that autograd keeps, beside the weights."""
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = unet.train()(*given)
    size = sum(storage.nbytes() for storage in storages.values())
    del out
    return size


def lora_parameters(unet: UNet) -> int:
    parts: Any = SimpleNamespace(unet=unet, text_encoders=())
    targets = found(parts, ATTENTION, False, ("unet",))
    return sum(RANK * sum(unet.get_parameter(f"{target.path}.weight").shape[:2]) for target in targets)


def main(*, batch: int = 1) -> None:
    """Print the table. batch: pictures a process computes at once."""
    print(
        "| training | weights | gradients | moments | average | activations | checkpointed | forward, TFLOP a picture |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, sides in SIDES.items():
        config = FAMILIES[name].unet
        with torch.device("meta"):
            unet = UNet(config)
        whole, small = sum(p.numel() for p in unet.parameters()), lora_parameters(unet)
        for side in sides:
            m = measured(config, side, batch)
            for what, learning, width in (("full", whole, 4), ("LoRA", small, 2)):
                states = [
                    width * whole,
                    4 * learning,
                    8 * learning,
                    4 * learning,
                    m.kept,
                    m.kept_checkpointed,
                ]
                row = " | ".join(f"{value / GB:.2f}" for value in states)
                print(f"| {name} {what}, {side}x{side} | {row} | {m.teraflops:.2f} |", flush=True)


if __name__ == "__main__":
    command(main)
