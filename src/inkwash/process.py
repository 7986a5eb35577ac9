"""Settings of its own process that a program makes, and a library leaves alone, and its memory. Imports no torch at first,
which takes a second."""

import ctypes
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importing() -> Iterator[None]:
    """Import torch, and what imports it, without looking for garbage, then or ever: there is none, and it takes a third
    of a second. Nothing is done where it was imported before.

    Ctrl-C is answered at the end: packages that are imported by half can't be imported again.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        with interrupts_held():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C until the block has ended; KeyboardInterrupt is raised then."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if heard:
        raise KeyboardInterrupt


def free_memory(device: str = "cpu") -> int:
    """Memory of a device that is free, in bytes; 0 where the system does not say."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return proc_bytes("/proc/meminfo").get("MemAvailable", 0)


def peak_memory(device: str = "cpu") -> int:
    """The most memory that this process has had on a device, in bytes; 0 where the system does not say."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return proc_bytes("/proc/self/status").get("VmHWM", 0)


def proc_bytes(path: str) -> dict[str, int]:
    """The sizes that a file of Linux's /proc gives, in bytes by name; empty on other systems."""
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    parts = [line.split() for line in lines]
    return {part[0].rstrip(":"): int(part[1]) * 1024 for part in parts if len(part) == 3 and part[2] == "kB"}


def keep_memory() -> None:
    """Make the allocator keep freed memory: by default glibc hands large blocks back to the system and asks for them
    again, and every page of them is cleared, some thousand times a picture."""
    mmap_max, trim_threshold = -4, -1
    if sys.platform == "linux" and hasattr(allocator := ctypes.CDLL(None), "mallopt"):
        allocator.mallopt(mmap_max, 0)
        allocator.mallopt(trim_threshold, 2**31 - 1)
