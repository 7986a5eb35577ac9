"""Evaluation in several processes: each draws and sees its share of the pictures, and all know what all have seen.

Processes are started by torchrun. N pictures, D feature width.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from inkwash.metrics.figures import Watch, seen
from inkwash.metrics.networks import FeatureNetwork, Features
from inkwash.metrics.pictures import PictureSet


def share() -> tuple[int, int]:
    """This process's number among how many."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


@contextmanager
def joined() -> Iterator[bool]:
    """Join torchrun's processes, where there are any. Gives whether this one writes the files."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield True
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait for all processes."""
    if share()[1] > 1:
        dist.barrier()


def seen_by_all(network: FeatureNetwork, pictures: PictureSet, watch: Watch = lambda num: None) -> Features:
    """Features of all pictures, in their order, of which each process has seen every n-th."""
    rank, size = share()
    if size == 1 or len(pictures) < size:
        return seen(network, pictures.batches(), watch)
    own = seen(network, replace(pictures, paths=pictures.paths[rank::size]).batches(), watch)
    shares: list[Features] = [own] * size
    dist.all_gather_object(shares, own)
    parts = ([getattr(one, name) for one in shares] for name in ("pooled", "logits", "spatial"))
    return Features(*(None if each[0] is None else interleaved(each) for each in parts))  # pyright: ignore


def interleaved(shares: Sequence[Tensor]) -> Tensor:
    """Rows (N, D) of which share k holds the k-th and every len(shares)-th after it."""
    rows = torch.empty(sum(map(len, shares)), *shares[0].shape[1:], dtype=shares[0].dtype)
    for rank, each in enumerate(shares):
        rows[rank :: len(shares)] = each
    return rows
