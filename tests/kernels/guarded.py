"""Kernels on arrays that lie against pages which nothing may touch: python guarded.py LIBRARY FUNCTION [TRAP].

Its own process, for reading or writing beyond them ends it. Without torch, so that it starts at once. TRAP: the library
made of trapped_amx.cpp, which does what the processor can't.
"""

import ctypes
import math
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
    sizes = [ctypes.c_long(n) for n in (1, heads, T, S, D, 0)]
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


def rounded(rows: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights (rows, k) of whole numbers in panels of 64 rows, as int8.pack orders them; those, their scales and sums."""
    whole = np.random.default_rng(seed).integers(-127, 128, (rows, k), np.int8)
    wide = np.zeros((-(-rows // 64) * 64, k), np.int8)
    wide[:rows] = whole
    words = wide.reshape(-1, 64, k // 4, 4).transpose(0, 2, 1, 3)
    packed = guarded(1, words.size // 2, True)
    packed[:] = np.ascontiguousarray(words).view(np.uint16).reshape(packed.shape)
    scale = np.linspace(0.5, 1.5, rows, dtype=np.float32)
    return whole, packed, scale, whole.sum(1, dtype=np.int32)


def linear_error(
    function: Callable[..., object], in_int8: bool, rows: int, k: int, out: int, gated: bool, at_end: bool
) -> float:
    x, channels = filled(rows, k, at_end, rows + k), out * (1 + gated)
    made = guarded(rows, out, at_end)
    shape = (ctypes.c_long * 5)(rows, k, out, gated, 0)
    if in_int8:
        weight, packed, scale, sums = rounded(channels, k, out)
        step = np.abs(widened(x)).max(1, keepdims=True) / 127
        exact = (np.rint(widened(x) / step) * step) @ weight.T.astype(float) * scale
        given: tuple[np.ndarray | None, ...] = (x, packed, scale, sums, None, None, made)
    else:
        weight = filled(channels, k, at_end, out)
        exact, given = widened(x) @ widened(weight).T, (x, weight, None, None, made)
    if gated:
        gates = exact[:, out:]
        exact = exact[:, :out] * gates * 0.5 * (1 + np.vectorize(math.erf)(gates / 2**0.5))
    function(
        *(None if one is None else ctypes.c_void_p(one.ctypes.data) for one in given), shape, ctypes.c_int(1)
    )
    return float(np.linalg.norm(widened(made) - exact) / np.linalg.norm(exact))


def int8_convolution_error(
    function: Callable[..., object], height: int, width: int, channels: int, out: int, at_end: bool
) -> float:
    x, made = filled(height * width, channels, at_end, width), guarded(height * width, out, at_end)
    weight, packed, scale, sums = rounded(out, 9 * channels, out)
    sizes = (ctypes.c_long * 5)(1, height, width, channels, out)
    given = (x, packed, scale, sums, None, made)
    function(
        *(None if one is None else ctypes.c_void_p(one.ctypes.data) for one in given), sizes, ctypes.c_int(1)
    )
    step = (widened(x).max() - widened(x).min()) / 254
    whole = np.rint(widened(x) / step).reshape(height, width, channels) * step
    padded = np.pad(whole, ((1, 1), (1, 1), (0, 0)))
    taps = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    exact = np.concatenate(taps, -1).reshape(height * width, -1) @ weight.T.astype(float) * scale
    return float(np.linalg.norm(widened(made) - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    library, trap = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(sys.argv[3]) if len(sys.argv) > 3 else None
    if trap:
        trap.trap_instructions()
    library.amx_works()  # which asks for permission
    function, in_int8 = library[sys.argv[2]], "int8" in sys.argv[2]
    if sys.argv[2].startswith("linear"):
        for rows, k, out in ((16, 64, 64), (33, 320, 50), (70, 192, 130), (401, 64, 64)):
            for gated in (False, True):
                for at_end in (True, False):
                    out = -(-out // 64) * 64 if gated else out
                    sizes = in_int8, rows, k, out, gated, at_end
                    if (off := linear_error(function, *sizes)) > 6e-3:
                        sys.exit(f"{off} off at {sizes}")
    elif sys.argv[2].startswith("convolve_int8"):
        for sizes in ((1, 1, 64, 16), (3, 7, 64, 70), (2, 40, 128, 64), (16, 16, 64, 33)):
            for at_end in (True, False):
                if (off := int8_convolution_error(function, *sizes, at_end)) > 6e-3:
                    sys.exit(f"{off} off at {sizes}")
    elif sys.argv[2].startswith("convolve"):
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
    else:
        for T, S in ((1, 1), (31, 77), (33, 256), (70, 257), (48, 300)):
            for D in (2, 16, 40, 64, 80, 96, 160):
                for heads in (1, 3):
                    for at_end in (True, False):
                        if (off := error(function, T, S, heads, D, at_end)) > 4e-3:
                            sys.exit(f"{off} off at T={T} S={S} D={D} heads={heads}")
    print(trap.num_trapped() if trap else "")
