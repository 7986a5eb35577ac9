"""Several processes that train one model: each computes its rows of the batch, and gradients are averaged.

Processes are started by torchrun. B global batch.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class World:
    """This process's number among how many. sharded: whether they share one U-Net, so that all must take part in all."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """True in the process that writes the files."""
        return self.rank == 0

    def rows(self, num: int) -> slice:
        """This process's share of a global batch of `num`, which all can divide."""
        share = num // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes."""
        if self.size == 1:
            return
        # those of a U-Net that is spread over the processes are means already
        gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order; gradients find their way back to each."""
        if self.size == 1:
            return rows
        if rows.requires_grad:
            return torch.cat(tuple(all_gather(rows.contiguous())))
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Return True if the flag is set in any process."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor; all of one that is not spread. They share memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def join_world(device: str, sharded: bool = False) -> World:
    """Join the processes that torchrun started; alone where there are none. NCCL on GPUs, gloo else."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World(sharded=sharded)
    if not dist.is_initialized():
        if device == "cuda":  # each process of a machine has its own
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # numbers are compared on the CPU
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return World(dist.get_rank(), dist.get_world_size(), sharded)


def end_joined_process() -> None:
    """End a process that torchrun started; do nothing in any other.

    While Python is torn down, gloo's threads can abort it, and torchrun then ends the others, too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)


def leave_world() -> None:
    """Leave the processes that were joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
