"""What a program does with its own process, and a library leaves alone. Imports no torch, which takes a second."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import torch, and what imports it, without looking for garbage, then or ever: there is none, and it takes a third
    of a second. Nothing is done where it was imported before."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_memory() -> None:
    """Have the allocator keep what is freed: by default glibc hands large blocks back to the system and asks for them
    again, and every page of them is cleared, some thousand times a picture."""
    mmap_max, trim_threshold = -4, -1
    if sys.platform == "linux" and hasattr(allocator := ctypes.CDLL(None), "mallopt"):
        allocator.mallopt(mmap_max, 0)
        allocator.mallopt(trim_threshold, 2**31 - 1)
