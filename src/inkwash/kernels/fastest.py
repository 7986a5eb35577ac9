"""Choice of the fastest of several ways to compute: measured once for each shape, kept beside the compiled library."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from inkwash.files import write_text
from inkwash.kernels import cpu, library

log = logging.getLogger("inkwash.kernels")
ROUNDS = 3  # in which the ways take turns
GAIN = 0.95  # of the first way's time: what another one must stay under to be taken


def fastest(question: str, ways: Mapping[str, Callable[[], object]]) -> str:
    """The name of the way that took the least time when the question first came up, on this processor, with this torch;
    the first one, unless another was 5 % faster."""
    known = answers()
    if known.get(question) not in ways:
        known |= stored()  # by processes that began after this one read them
    if known.get(question) not in ways:
        taken = dict.fromkeys(ways, math.inf)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                taken[name] = min(taken[name], time.perf_counter() - begin)
        first, best = next(iter(taken)), min(taken, key=taken.__getitem__)
        known[question] = best if taken[best] < GAIN * taken[first] else first
        # the first answer stays, so that a run which goes on in another process computes alike
        known |= {asked: one for asked, one in stored().items() if asked != question or one in ways}
        times = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in taken.items())
        log.info("kernels: %s: %s, so %s", question, times, known[question])
        with suppress(OSError):  # then it is measured again by the next process
            write_text(path(), json.dumps(known, indent=1))
    return known[question]


@cache
def answers() -> dict[str, str]:
    """Answers of earlier measurements, by question."""
    return stored()


def stored() -> dict[str, str]:
    """Answers that the file holds now."""
    try:
        found = json.loads(path().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def path() -> Path:
    """The file of answers, of this library, processor and torch."""
    opened = library.load()
    assert opened is not None
    about = f"{torch.__version__} {cpu.processor().get('model name')}"
    return Path(opened._name).with_suffix(f".{hashlib.sha256(about.encode()).hexdigest()[:8]}.json")
