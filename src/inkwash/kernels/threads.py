"""Small products by one thread, whose sums then don't depend on how many there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

LOCK = Lock()  # the number of threads is the whole process's
FEW_ROWS, FEW_PIXELS = 256, 64
SMALL = 1 << 22  # weights: above, more threads are worth more than the order


@contextmanager
def fixed_order(x: Tensor, weight: Tensor, num_outputs: int, few: int) -> Iterator[None]:
    """Compute on one thread within the context where libraries would split long sums for few outputs among threads.

    num_outputs: rows or pixels. On the processor, in float32, without gradients; elsewhere nothing changes.
    """
    if (
        torch.compiler.is_compiling()
        or torch.get_num_threads() == 1
        or num_outputs > few
        or weight.numel() > SMALL
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
    ):
        yield
        return
    with LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
