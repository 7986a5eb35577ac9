"""Each kernel beside its twin."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from inkwash.kernels import KERNELS, convolve_int8, int8, library


def shapes() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """A kernel, what it is given, and that: guided calls of SD1 at 512x512, batch 2."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        draw = lambda *shape: torch.randn(shape, generator=random).to(dtype)  # noqa: E731, B023
        last = lambda x: x.contiguous(memory_format=torch.channels_last)  # noqa: E731
        for T, S, C in ((4096, 4096, 320), (4096, 77, 320), (1024, 1024, 640), (256, 256, 1280)):
            yield (
                "attention",
                f"{T}x{S}, 8 heads of {C // 8}",
                (draw(2, T, C), draw(2, S, C), draw(2, S, C), 8),
            )
        many = (
            ((320, 320, 64), (640, 640, 32)) if dtype == torch.bfloat16 else ()
        )  # of so many pixels torch's else
        for C, out, side in (*many, (1280, 1280, 16), (1280, 1280, 8), (2560, 1280, 8)):
            x, weight = last(draw(2, C, side, side)), last(draw(out, C, 3, 3))
            yield "conv2d", f"{C} to {out} of {side}x{side}", (x, weight, draw(out), 1, 1)
        for rows, C, out in ((8192, 320, 320), (2048, 1280, 1280), (512, 5120, 1280)):
            args = draw(rows, C), draw(out, C), draw(out), draw(rows, out)
            yield "linear", f"{rows}x{C} to {out}, residual", args
            x, weight, *more = args
            yield "linear_int8", f"{rows}x{C} to {out}, residual", (x, int8.pack(weight), *more)
        for C, side in ((320, 64), (640, 32), (1280, 16)):
            x, weight = last(draw(2, C, side, side)), last(draw(C, C, 3, 3))
            yield "conv2d_int8", f"{C} of {side}x{side}", (x, convolve_int8.pack(weight), draw(C))
        if dtype == torch.bfloat16:
            yield "geglu_linear", "8192x320 to 1280", (draw(8192, 320), draw(2560, 320), draw(2560))
            yield "geglu", "8192x2560", (draw(8192, 2560),)
            yield (
                "group_norm",
                "320 of 64x64, SiLU",
                (last(draw(2, 320, 64, 64)), 32, draw(320), draw(320), 1e-5, True),
            )


def table(runs: int) -> Iterator[str]:
    """Lines: milliseconds of both, their ratio, and the kernel's distance from the twin."""
    if library.load() is None:
        yield "there are no kernels here; python -c says why: logging at INFO, inkwash.kernels.library.load()"
        return
    yield f"{'milliseconds, medians':48} {'kernel':>8} {'torch':>8} {'ratio':>6} {'distance':>9}"
    with torch.inference_mode():
        for name, what, args in shapes():
            kernel = KERNELS[name]
            kernel = kernel.frozen if kernel.frozen and kernel.frozen.fits(*args) else kernel
            fast, plain = medians([lambda: kernel.fast(*args), lambda: kernel.plain(*args)], runs)  # noqa: B023
            made, wanted = kernel.fast(*args).float(), kernel.plain(*args).float()
            distance = ((made - wanted).norm() / wanted.norm()).item()
            dtype = str(args[0].dtype).removeprefix("torch.")
            amx = library.amx() and ((kernel.amx and dtype == "bfloat16") or "int8" in name)
            title = f"{name} {dtype} {what}{', AMX' if amx else ''}"
            yield f"{title:48} {fast:8.2f} {plain:8.2f} {fast / plain:6.2f} {distance:9.1e}"


def medians(calls: list[Callable[[], Tensor]], runs: int) -> list[float]:
    """Milliseconds of each, which take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):
        for call, some in zip(calls, taken, strict=True):
            begin = time.perf_counter()
            call()
            some.append(1000 * (time.perf_counter() - begin))
    return [sorted(some[1:])[runs // 2] for some in taken]
