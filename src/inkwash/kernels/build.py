"""The compiled library of kernels: built once with the system's compiler, kept in the user's cache folder."""

import atexit
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("inkwash.kernels")
FLAGS = ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-fopenmp", "-shared", "-fPIC")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"})
AMX = {"amx_tile": "-mamx-tile", "amx_bf16": "-mamx-bf16"}  # flags for what no other processor runs
SOURCES = Path(__file__).parent / "native"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # as the library's functions end


@dataclass(frozen=True)
class Kernel:
    """A fast path beside its twin in plain torch; calling it takes the fast one where it can be had.

    plain: the twin. fast: the same of the library and contiguous-enough arguments. fits: whether these arguments
    are what `fast` takes, and faster there. example: arguments that fit, on which the two are compared before the
    first use; 2 % off, and the twin is used from then on. gradient: the same with gradients by the first `inputs`
    arguments alone, for layers that are not trained; it is given the kernel, then the arguments.
    """

    plain: Callable[..., Tensor]
    fast: Callable[..., Tensor]
    fits: Callable[..., bool]
    example: Callable[[], tuple[Any, ...]]
    gradient: type[torch.autograd.Function] | None = None
    inputs: int = 1

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        # other devices, autocast and compiled graphs are torch's
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return self.plain(x, *more)
        taught = (
            [i for i, one in enumerate((x, *more)) if isinstance(one, Tensor) and one.requires_grad]
            if torch.is_grad_enabled()
            else []
        )
        if taught and (self.gradient is None or taught[-1] >= self.inputs):
            return self.plain(x, *more)
        if not self.fits(x, *more) or not self.works:
            return self.plain(x, *more)
        return self.gradient.apply(self, x, *more) if self.gradient and taught else self.fast(x, *more)

    @cached_property
    def works(self) -> bool:
        if library() is None:
            return False
        given = self.example()
        wanted = self.plain(*given)
        if torch.allclose(self.fast(*given), wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item()):
            return True
        log.warning("the kernel %s fails its self-check; torch does its work", self.plain.__name__)
        return False


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or can't be had. One log line says which."""
    if os.environ.get("INKWASH_KERNELS", "1") == "0":
        log.info("kernels: off, by INKWASH_KERNELS=0")
        return None
    if missing := NEEDED - instructions():
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
    """Whether the library has products by AMX, and they are right here. Where not, a log line says it."""
    opened = library() if has_amx() else None
    if opened is None:
        return False
    if opened.amx_works():
        return True
    log.info("kernels: no AMX; the compiler doesn't know it, the system forbids it, or its sums are wrong")
    return False


def left_to_torch(*given: Tensor) -> bool:
    """Whether torch's products, which use AMX where the processor has it, are to do this: in bfloat16, where ours can't
    use it, and where something learns, as our gradients don't."""
    if given[0].dtype != torch.bfloat16 or not has_amx():
        return False
    return not amx() or torch.is_grad_enabled() and any(x.requires_grad for x in given)


def has_amx() -> bool:
    """Whether the processor has it; torch's products in bfloat16 then use it."""
    return instructions() >= AMX.keys()


def built() -> Path:
    """The library's file, compiled now where there is none of these sources, flags and compiler."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler")
    sources = sorted(SOURCES.glob("*.cpp"))
    flags = (*FLAGS, *AMX.values()) if has_amx() else FLAGS
    about = [compiler, str(os.stat(compiler).st_mtime_ns), *flags]
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
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inkwash"
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
    """Whether a library in the cache is whole: loading a truncated one would end the process."""
    try:
        return (
            hashlib.sha256(path.read_bytes()).hexdigest().encode() == path.with_suffix(".sha256").read_bytes()
        )
    except OSError:
        return False


def compiled(compiler: str, flags: Sequence[str], sources: Iterable[Path], to: Path) -> None:
    command = [compiler, *flags, *map(str, sources), "-o", str(to)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


@cache
def processor() -> dict[str, str]:
    """What Linux says of the first processor."""
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


def call(name: str, *arguments: Tensor | ctypes.Array | ctypes.Structure | float | None) -> None:
    """A function of the library: tensors as pointers, whole numbers as long; the number of threads comes last."""
    given = library()
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
