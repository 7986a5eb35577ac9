"""The processor: which sets of instructions it has."""

from functools import cache
from pathlib import Path

# what the library is compiled for
NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"})
# flags for what no other processor runs
AMX = {"amx_tile": "-mamx-tile", "amx_bf16": "-mamx-bf16", "amx_int8": "-mamx-int8"}


@cache
def processor() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


@cache
def instructions() -> frozenset[str]:
    """The sets of instructions that this processor has, by Linux's names."""
    return frozenset(processor().get("flags", "").split())


def has_amx() -> bool:
    """Return True if the processor has AMX; torch's products in bfloat16 then use it."""
    return instructions() >= AMX.keys()
