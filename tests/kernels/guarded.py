"""Kernels on arrays that lie against pages which nothing may touch: python guarded.py LIBRARY FUNCTION [TRAP].

Its own process, for reading or writing beyond them ends it. Without torch, so that it starts at once. TRAP: the library
made of trapped_amx.cpp, which does what the processor can't.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable

import numpy as np

PAGE = mmap.PAGESIZE
NONE, READ_WRITE = 0, 3
libc = ctypes.CDLL(None, use_errno=True)


def guarded(rows: int, width: int, at_end: bool) -> np.ndarray:
    """(rows, width) of 16 bits that ends, or begins, at a page that can't be read."""
    size = rows * width * 2
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    return np.frombuffer(memory, np.uint16, rows * width, offset).reshape(rows, width)


def widened(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def filled(rows: int, width: int, at_end: bool, seed: int) -> np.ndarray:
    x = guarded(rows, width, at_end)
    random = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
    x[:] = (random.view(np.uint32) >> 16).astype(np.uint16)
    return x


def error(function: Callable[..., object], T: int, S: int, heads: int, D: int, at_end: bool) -> float:
    width = heads * D
    q, k, v = (filled(rows, width, at_end, T + S + D + n) for n, rows in enumerate((T, S, S)))
    out = guarded(T, width, at_end)
    strides = (ctypes.c_long * 6)(*(n for rows in (T, S, S) for n in (rows * width, width)))
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (q, k, v, out)]
    sizes = [ctypes.c_long(n) for n in (1, heads, T, S, D)]
    function(*pointers, None, strides, *sizes, ctypes.c_int(1))
    exact = np.empty((T, width))
    for head in range(heads):
        of = slice(head * D, (head + 1) * D)
        scores = widened(q[:, of]) @ widened(k[:, of]).T / D**0.5
        weights = np.exp(scores - scores.max(1, keepdims=True))
        exact[:, of] = weights @ widened(v[:, of]) / weights.sum(1, keepdims=True)
    return float(np.linalg.norm(widened(out) - exact) / np.linalg.norm(exact))


def convolution_error(
    function: Callable[..., object],
    height: int,
    width: int,
    channels: int,
    out: int,
    kernel: int,
    at_end: bool,
) -> float:
    pad = kernel // 2
    x = filled(height * width, channels, at_end, height + channels)
    weight, made = filled(out, kernel * kernel * channels, at_end, out), guarded(height * width, out, at_end)
    sizes = (ctypes.c_long * 10)(1, height, width, channels, kernel, 1, pad, height, width, out)
    pointers = [ctypes.c_void_p(one.ctypes.data) for one in (x, weight)]
    function(*pointers, None, None, ctypes.c_void_p(made.ctypes.data), sizes, ctypes.c_int(1))
    padded = np.pad(widened(x).reshape(height, width, channels), ((pad, pad), (pad, pad), (0, 0)))
    taps = [padded[i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
    exact = np.concatenate(taps, -1).reshape(height * width, -1) @ widened(weight).T
    return float(np.linalg.norm(widened(made) - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    library, trap = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[3]) if len(sys.argv) > 3 else None
    if trap:
        trap.trap_instructions()
    library.amx_works()  # which asks for permission
    function = library[sys.argv[2]]
    if sys.argv[2].startswith("convolve"):
        for height, width, channels, out in (
            (1, 1, 32, 16),
            (3, 7, 96, 48),
            (5, 4, 352, 400),
            (23, 24, 32, 16),
        ):
            for kernel in (1, 3):
                for at_end in (True, False):
                    sizes = height, width, channels, out, kernel, at_end
                    if (off := convolution_error(function, *sizes)) > 4e-3:
                        sys.exit(f"{off} off at {sizes}")
        print(trap.num_trapped() if trap else "")
        sys.exit()
    for T, S in ((1, 1), (31, 77), (33, 256), (70, 257), (48, 300)):
        for D in (2, 16, 40, 64, 80, 96, 160):
            for heads in (1, 3):
                for at_end in (True, False):
                    if (off := error(function, T, S, heads, D, at_end)) > 4e-3:
                        sys.exit(f"{off} off at T={T} S={S} D={D} heads={heads}")
    print(trap.num_trapped() if trap else "")
