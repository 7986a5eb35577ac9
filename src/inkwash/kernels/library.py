"""The compiled library of kernels: built once with the system's compiler, kept in the user's cache folder."""

import atexit
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkwash.files import user_cache
from inkwash.kernels import cpu

log = logging.getLogger("inkwash.kernels")
FLAGS = ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-fopenmp", "-shared", "-fPIC")
LINKED = "-lstdc++"  # which C compilers leave out: CXX=gcc
SOURCES = Path(__file__).parent / "native"


@cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or can't be had. One log line says which."""
    if os.environ.get("INKWASH_KERNELS", "1") == "0":
        log.info("kernels: off, by INKWASH_KERNELS=0")
        return None
    if missing := cpu.NEEDED - cpu.instructions():
        log.info("kernels: off, this processor lacks %s", ", ".join(sorted(missing)))
        return None
    try:
        path = built()
        opened = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("kernels: off, they can't be built: %s", said.strip().splitlines()[0])
        return None
    log.info("kernels: on, %s", path)
    return opened


@cache
def amx() -> bool:
    """Return True if the library's AMX products work on this processor; a log line says if they don't."""
    opened = load() if cpu.has_amx() else None
    if opened is None:
        return False
    if opened.amx_works():
        return True
    log.info("kernels: no AMX; the compiler doesn't know it, the system forbids it, or its sums are wrong")
    return False


def call(name: str, *arguments: Tensor | ctypes.Array[Any] | ctypes.Structure | float | None) -> None:
    """A function of the library: tensors as pointers, whole numbers as long; the number of threads comes last."""
    given = load()
    assert given is not None
    passed = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_long(value)
        if isinstance(value, int)
        else ctypes.c_double(value)
        if isinstance(value, float)
        else value
        for value in arguments
    ]
    given[name](*passed, ctypes.c_int(torch.get_num_threads()))


def built() -> Path:
    """The library's file, compiled now where there is none of these sources, flags and compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler")
    sources = sorted(SOURCES.glob("*.cpp"))
    flags = (*FLAGS, *cpu.AMX.values()) if cpu.has_amx() else FLAGS
    about = [compiler, str(os.stat(compiler).st_mtime_ns), *flags, LINKED]
    about += [path.read_text() for path in (*sources, *sorted(SOURCES.glob("*.h")))]
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    path = cache_folder() / f"kernels-{key}.so"
    folder = path.parent
    if not intact(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            whole = Path(scratch) / path.name
            try:
                compiled(compiler, flags, sources, whole)
            except subprocess.CalledProcessError:
                if flags == FLAGS:
                    raise
                compiled(compiler, FLAGS, sources, whole)  # the compiler or its assembler is older than AMX
            digest = hashlib.sha256(whole.read_bytes()).hexdigest()
            whole.replace(path)
        whole = folder / f".{path.name}.{os.getpid()}.sha256"
        whole.write_text(digest)
        whole.replace(path.with_suffix(".sha256"))
    return path


def cache_folder() -> Path:
    """The user's folder for compiled kernels, or one for this process where that can't be made or written in."""
    folder = user_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="inkwash-kernels-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        log.warning(
            "kernels: %s can't be used (%s), so they are built again at each start", folder, error.strerror
        )
        return temporary
    return folder


def intact(path: Path) -> bool:
    """Return True if a cached library matches its checksum: loading a truncated one would end the process."""
    try:
        return (
            hashlib.sha256(path.read_bytes()).hexdigest().encode() == path.with_suffix(".sha256").read_bytes()
        )
    except OSError:
        return False


def compiled(compiler: str, flags: Sequence[str], sources: Iterable[Path], to: Path) -> None:
    command = [compiler, *flags, *map(str, sources), LINKED, "-o", str(to)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
