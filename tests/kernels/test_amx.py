"""Attention, convolutions and linear layers by AMX's tiles, on an emulation that refuses all that the processor would."""

import ctypes
import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from inkwash.kernels import (
    activated_linear,
    attention,
    conv2d,
    conv2d_int8,
    convolve_int8,
    cpu,
    geglu_int8,
    geglu_linear,
    int8,
    kernel,
    library,
    linear,
    linear_int8,
)
from inkwash.nn.int8 import Int8Conv2d, Int8Linear
from inkwash.nn.layers import Conv2d, Linear
from tests.kernels.test_kernels import BF16, check, few, needs_kernels, random, sizes

HERE = Path(__file__).parent
FINE, REFUSED, ILLEGAL, WRONG = range(4)  # what emulated_amx.h can let go wrong
# modules whose names are also what is in them
forward = importlib.import_module("inkwash.kernels.attention").forward
bench = importlib.import_module("inkwash.bench.kernels")
pytestmark = needs_kernels
SOURCES = [
    library.SOURCES / f"{name}.cpp"
    for name in ("amx", "attention", "convolve", "convolve_int8", "geglu", "int8", "linear")
]


def compiled(to: Path, *flags: str, sources: Sequence[Path] = SOURCES) -> Path:
    library.compiled(os.environ.get("CXX", "g++"), (*library.FLAGS, *flags), sources, to)
    return to


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("amx") / "emulated.so", "-include", str(HERE / "emulated_amx.h"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of AMX's own instructions, as if the system had permitted them."""
    folder = tmp_path_factory.mktemp("real")
    permitted = folder / "permitted.h"
    permitted.write_text("#include <unistd.h>\n#define syscall(...) 0\n")
    try:
        return compiled(folder / "real.so", *cpu.AMX.values(), "-include", str(permitted))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this compiler has no AMX: {error.stderr.splitlines()[0]}")


@pytest.fixture
def emulated(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The library of a processor with AMX, in place of this one's."""
    opened = ctypes.CDLL(str(emulator))
    monkeypatch.setattr(library, "load", lambda: opened)
    monkeypatch.setattr(cpu, "instructions", lambda: cpu.NEEDED | cpu.AMX.keys())
    monkeypatch.setattr(kernel, "KNOWN", {})
    opened.emulate(FINE)
    library.amx.cache_clear()
    assert library.amx()
    yield opened
    library.amx.cache_clear()


def amid(nothing: float, *shape: int) -> Tensor:
    """Random numbers in the middle of a tensor that is full of `nothing`."""
    batch, rows, width = shape
    whole = torch.full((batch, rows + 2, width + 6), nothing, dtype=BF16)
    inner = whole[:, 1:-1, 2 : 2 + width]
    inner.copy_(random(*shape))
    return inner


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes(1, 2),
    sizes(1, 3),
    sizes(1, 300),
    sizes(1, 300),
    st.sampled_from([2, 16, 40, 64, 72, 80, 96, 128, 160]),
    st.sampled_from([float("nan"), float("inf"), 0.0]),
)
def test_any_shape(
    emulated: ctypes.CDLL, batch: int, heads: int, T: int, S: int, head_dim: int, beside: float
) -> None:
    q, k, v = (amid(beside, batch, rows, heads * head_dim) for rows in (T, S, S))
    before = emulated.num_products()
    check(attention, 2 * q, k, v, heads)
    assert emulated.num_products() > before
    check(attention, q, k, v, heads)


@pytest.mark.parametrize(("T", "S", "head_dim"), [(300, 830, 160), (129, 600, 512), (97, 1030, 40)])
def test_many_keys(emulated: ctypes.CDLL, T: int, S: int, head_dim: int) -> None:
    """Several blocks of keys, whose largest scores grow, and several blocks of queries in a task."""
    q, k, v = (random(1, rows, 2 * head_dim) for rows in (T, S, S))
    growing = torch.linspace(0.1, 3, S)[:, None].to(BF16)
    check(attention, q, k * growing, v, 2)


def test_queries_keys_and_values_that_lie_together(emulated: ctypes.CDLL) -> None:
    q, k, v = random(2, 77, 6 * 40).chunk(3, dim=-1)
    check(attention, q, k, v, 2)


def test_norms(emulated: ctypes.CDLL) -> None:
    q, k, v = (random(2, rows, 3 * 40) for rows in (67, 300, 300))
    norms = torch.empty(2, 3, 67)
    forward(q, k, v, 3, norms)
    wide_q, wide_k = (x.double().unflatten(-1, (3, 40)).transpose(1, 2) for x in (q, k))
    exact = (wide_q @ wide_k.transpose(2, 3) / 40**0.5).logsumexp(-1)
    torch.testing.assert_close(norms.double(), exact, rtol=0, atol=1e-4)


def test_nans_stay_in_their_row(emulated: ctypes.CDLL) -> None:
    q, k, v = random(1, 50, 64), random(1, 300, 64), random(1, 300, 64)
    q[0, 3, 5] = float("nan")
    made = attention.fast(q, k, v, 1)
    assert made[0, 3].isnan().all() and made[0, :3].isfinite().all() and made[0, 4:].isfinite().all()


def test_neither_threads_nor_the_batch_change_anything(emulated: ctypes.CDLL) -> None:
    q, k, v = (random(3, rows, 2 * 40) for rows in (200, 300, 300))
    threads, made = torch.get_num_threads(), []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append(attention.fast(q, k, v, 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    for i in range(3):
        assert torch.equal(attention.fast(q[i : i + 1], k[i : i + 1], v[i : i + 1], 2), made[0][i : i + 1])
    assert torch.equal(attention.fast(q[:, 5:60], k, v, 2), made[0][:, 5:60])


@pytest.mark.parametrize("configured", [True, False])
def test_each_threads_configuration_is_put_back(emulated: ctypes.CDLL, configured: bool) -> None:
    given = bytearray(64)
    if configured:
        given[0] = 1
        for tile in range(3):
            given[16 + 2 * tile], given[48 + tile] = 4 * (tile + 1), 7 - tile
    kept, threads = ctypes.create_string_buffer(2 * 64), torch.get_num_threads()
    q, k, v = (random(3, rows, 2 * 40) for rows in (200, 300, 300))
    try:
        torch.set_num_threads(2)
        emulated.set_configurations(2, bytes(given))
        attention.fast(q, k, v, 2)
        emulated.get_configurations(2, kept)
    finally:
        torch.set_num_threads(threads)
        emulated.set_configurations(2, bytes(64))
    assert kept.raw == 2 * bytes(given)


@pytest.mark.parametrize("fault", [REFUSED, ILLEGAL, WRONG])
def test_what_does_not_work_is_not_used(
    emulated: ctypes.CDLL, fault: int, caplog: pytest.LogCaptureFixture
) -> None:
    args = attention.example()
    assert attention.fits(*args) and emulated.amx_works() == 1
    emulated.emulate(fault)
    library.amx.cache_clear()
    with caplog.at_level(logging.INFO), torch.no_grad():
        assert emulated.amx_works() == 0
        assert not attention.fits(*args)
        made, products = attention(*args), emulated.num_products()
        assert torch.equal(made, attention.plain(*args)) and emulated.num_products() == products
    assert len(caplog.messages) == 1 and "no AMX" in caplog.text


def test_learning_stays_torchs(emulated: ctypes.CDLL) -> None:
    q, k, v, heads = attention.example()
    assert attention.fits(q, k, v, heads) and attention.fits(q.float(), k.float(), v.float(), heads)
    v.requires_grad_()
    assert not attention.fits(q, k, v, heads)
    with torch.no_grad():
        assert attention.fits(q, k, v, heads)
    assert "Gradient" not in type(attention(q, k, v, heads).grad_fn).__name__


def test_bench_says_which_attention_it_is(emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    args = attention.example()
    wide = tuple(one.float() if isinstance(one, Tensor) else one for one in args)
    monkeypatch.setattr(bench, "shapes", lambda: [("attention", "small", args), ("attention", "small", wide)])
    _, ours, exact = bench.table(1)
    assert ours.startswith("attention bfloat16 small, AMX ") and exact.startswith("attention float32 small  ")


def guarded(*given: Path | str) -> str:
    command = [sys.executable, str(HERE / "guarded.py"), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def convolution(
    batch: int, channels: int, out: int, height: int, width: int, kernel: int
) -> tuple[Tensor, ...]:
    x, weight = random(batch, channels, height, width), random(out, channels, kernel, kernel)
    return *(one.contiguous(memory_format=torch.channels_last) for one in (x, weight)), random(out)


@settings(few, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes(1, 3),
    st.sampled_from([32, 96, 352]),
    st.sampled_from([16, 48, 400]),
    sizes(1, 17),
    sizes(1, 17),
    st.sampled_from([(3, 1, 1), (3, 2, 1), (3, 1, 0), (1, 1, 0)]),
)
def test_any_convolution(
    emulated: ctypes.CDLL,
    batch: int,
    channels: int,
    out: int,
    height: int,
    width: int,
    how: tuple[int, int, int],
) -> None:
    kernel, stride, padding = how
    if min(height, width) + 2 * padding < kernel:
        return
    x, weight, bias = convolution(batch, channels, out, height, width, kernel)
    before = emulated.num_products()
    check(conv2d, x, weight, bias, stride, padding)
    assert emulated.num_products() > before
    check(conv2d, x, weight, None, stride, padding)


def test_convolutions_that_are_torchs(emulated: ctypes.CDLL) -> None:
    """Of sizes that are no whole tiles, and those that something learns through."""
    x, weight, bias = convolution(1, 32, 16, 8, 8, 3)
    assert conv2d.fits(x, weight, bias, 1, 1) and conv2d.works
    for channels, out, side in ((34, 16, 8), (16, 16, 8), (32, 21, 8)):
        assert not conv2d.fits(*convolution(1, channels, out, side, side, 3), 1, 1)
    x.requires_grad_()
    assert not conv2d.fits(x, weight, bias, 1, 1)
    made, products = conv2d(x, weight, bias, 1, 1), emulated.num_products()
    made.sum().backward()
    assert x.grad is not None and emulated.num_products() == products


def test_neither_threads_nor_the_batch_change_a_convolution(emulated: ctypes.CDLL) -> None:
    x, weight, bias = convolution(3, 96, 400, 15, 14, 3)
    threads, made = torch.get_num_threads(), []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append(conv2d.fast(x, weight, bias, 1, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    for i in range(3):
        assert torch.equal(conv2d.fast(x[i : i + 1], weight, bias, 1, 1), made[0][i : i + 1])


@settings(few, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes(16, 120), st.sampled_from([32, 96, 416]), sizes(1, 170), st.booleans(), st.booleans(), st.booleans()
)
def test_any_linear_layer(
    emulated: ctypes.CDLL, rows: int, k: int, out: int, biased: bool, residual: bool, gated: bool
) -> None:
    before = emulated.num_products()
    x, bias = random(rows, k), random(2 * out if gated else out) if biased else None
    if gated:
        check(geglu_linear, x, random(2 * out, k) / k**0.5, bias)
    else:
        check(linear, x, random(out, k), bias, 9 * random(rows, out) if residual else None)
    assert emulated.num_products() > before


def test_linear_layers_in_several_parts(emulated: ctypes.CDLL) -> None:
    """Weights that are packed in several groups, rows in several parts; no row knows of the others."""
    x, weight, bias, residual = random(800, 2592), random(90, 2592), random(90), random(800, 90)
    check(linear, x, weight, bias, residual)
    threads, made = torch.get_num_threads(), []
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            made.append(linear.fast(x, weight, bias, residual))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert torch.equal(linear.fast(x[300:], weight, bias, residual[300:]), made[0][300:])
    assert not linear.fits(random(800, 34), random(90, 34), bias)  # no whole tiles


def check_without_amx(emulated: ctypes.CDLL, layer: kernel.Kernel, *given: object) -> None:
    """AMX is used, and not a bit differs without it."""
    before = emulated.num_products()
    made = layer.fast(*given)
    assert emulated.num_products() > before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "amx", lambda: False)
        before = emulated.num_products()
        assert torch.equal(layer.fast(*given), made) and emulated.num_products() == before


@settings(few, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes(1, 900),
    st.sampled_from([64, 320]),
    sizes(1, 150),
    st.booleans(),
    st.booleans(),
    st.sampled_from([BF16, torch.float32]),
)
def test_eight_bits_are_summed_as_without_amx(
    emulated: ctypes.CDLL, rows: int, k: int, out: int, gated: bool, more: bool, dtype: torch.dtype
) -> None:
    """Sums are whole numbers, so not a bit differs."""
    x, weight = random(rows, k, dtype=dtype), random(128 * (1 + out // 64) if gated else out, k)
    bias = random(len(weight), dtype=dtype) if more else None
    residual = () if gated else (random(rows, out, dtype=dtype) if more else None,)
    layer, given = geglu_int8 if gated else linear_int8, (x, int8.pack(weight), bias, *residual)
    check_without_amx(emulated, layer, *given)


@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"),
    [(2, 64, 70, 5, 19), (1, 128, 64, 1, 1), (3, 64, 33, 3, 8), (1, 64, 20, 2, 70), (2, 320, 64, 16, 16)],
)
def test_convolutions_in_eight_bits(
    emulated: ctypes.CDLL, batch: int, channels: int, out: int, height: int, width: int
) -> None:
    x = random(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    given = x, convolve_int8.pack(random(out, channels, 3, 3)), random(out)
    check_without_amx(emulated, conv2d_int8, *given)


class Chosen:
    """An answer in place of a measurement, and what was asked."""

    def __init__(self, way: str):
        self.way = way
        self.asked: list[str] = []

    def __call__(self, question: str, ways: dict[str, object]) -> str:
        self.asked.append(question)
        return self.way if self.way in ways else next(iter(ways))


@pytest.mark.parametrize("way", ["ours", "torch"])
def test_the_faster_of_ours_and_torchs_is_taken(
    emulated: ctypes.CDLL, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As measured once for each shape, whatever the threads and the batch."""
    monkeypatch.setattr(kernel, "fastest", chosen := Chosen(way))
    given: dict[kernel.Kernel, tuple] = {
        linear: (random(1, 64, 96), random(80, 96), random(80), random(1, 64, 80)),
        activated_linear: (random(1, 64, 96), random(80, 96), random(80), "quick_gelu"),
        geglu_linear: (random(1, 64, 96), random(80, 96), random(80)),
        conv2d: (*convolution(1, 32, 16, 36, 36, 3), 1, 1),
        attention: attention.example(),
    }
    threads = torch.get_num_threads()
    with torch.no_grad():
        for one, args in given.items():
            before = emulated.num_products()
            made = one(*args)
            assert (emulated.num_products() > before) == (way == "ours")
            assert torch.equal(made, (one.fast if way == "ours" else one.plain)(*args))
        asked = len(chosen.asked)
        try:
            torch.set_num_threads(3)
            x, weight, bias, residual = given[linear]
            linear(torch.cat([x, x]), weight, bias, torch.cat([residual, residual]))
        finally:
            torch.set_num_threads(threads)
        assert len(chosen.asked) == asked
        linear(random(1, 65, 96), weight, bias, random(1, 65, 80))
        assert len(chosen.asked) == asked + 1


@pytest.mark.parametrize("way", ["int8", "exact"])
def test_eight_bits_stay_off_where_they_are_slower(
    emulated: ctypes.CDLL, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "fastest", chosen := Chosen(way))
    torch.manual_seed(0)
    layers = [(Linear(64, 128).to(BF16), Int8Linear), (Conv2d(64, 32, 3, padding=1).to(BF16), Int8Conv2d)]
    given = [random(2, 40, 64), random(2, 64, 9, 9).contiguous(memory_format=torch.channels_last)]
    with torch.no_grad():
        for (layer, rounded), x in zip(layers, given, strict=True):
            layer.to(memory_format=torch.channels_last)
            made, exact = rounded(layer)(x), layer(x)
            assert torch.equal(made, exact) == (way == "exact")
            assert (made - exact).norm() < 0.02 * exact.norm()
        geglu = Int8Linear(layers[0][0]).geglu(given[0])
        assert torch.equal(geglu, layers[0][0].geglu(given[0])) == (way == "exact")
    assert {question.split(",")[0] for question in chosen.asked} >= {
        "linear_int8",
        "geglu_int8",
        "conv2d_int8",
    }


@pytest.mark.parametrize(
    "function",
    [
        "attention_amx",
        "attention_bfloat16",
        "convolve_amx",
        "convolve_bfloat16",
        "linear_amx",
        "linear_bfloat16",
        "linear_int8_amx_bfloat16",
        "linear_int8_bfloat16",
        "convolve_int8_amx_bfloat16",
        "convolve_int8_bfloat16",
    ],
)
def test_nothing_beyond_the_tensors_is_touched(emulator: Path, function: str) -> None:
    guarded(emulator, function)


@pytest.mark.parametrize(
    "function",
    [
        "attention_amx",
        "convolve_amx",
        "linear_amx",
        "linear_int8_amx_bfloat16",
        "convolve_int8_amx_bfloat16",
    ],
)
def test_the_instructions_themselves(real: Path, tmp_path: Path, function: str) -> None:
    """The compiled instructions: run where the processor and the system have AMX, else trapped and emulated."""
    if library.amx():
        guarded(library.built(), function)  # compares with exact products, between guard pages
        return
    if cpu.has_amx():
        pytest.skip("this processor has AMX and the system forbids it, so nothing can be trapped")
    trap = compiled(tmp_path / "trap.so", sources=[HERE / "trapped_amx.cpp"])
    assert int(guarded(real, function, trap)) > 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({0: 2}, "palette"),
        ({5: 1}, "reserved"),
        ({40: 1}, "reserved"),
        ({16: 65}, "too large"),
        ({16: 0}, "alone"),
    ],
)
def test_the_emulation_is_strict(emulator: Path, changed: dict[int, int], said: str) -> None:
    given = bytearray(64)
    given[0], given[16], given[48] = 1, 64, 16
    for at, value in changed.items():
        given[at] = value
    code = (
        "import ctypes, sys; x = ctypes.CDLL(sys.argv[1]); assert x.amx_works(); "
        "x.set_configurations(1, bytes.fromhex(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(emulator), given.hex()], capture_output=True, text=True
    )
    assert done.returncode < 0 and said in done.stderr


def handler() -> bytes:
    """The address of what handles SIGILL."""
    kept = ctypes.create_string_buffer(256)
    assert ctypes.CDLL(None).sigaction(signal.SIGILL, None, kept) == 0
    return kept.raw[:8]


def test_instructions_that_a_processor_lacks_end_nothing(real: Path) -> None:
    if cpu.has_amx():
        pytest.skip("this processor lacks none")
    before = handler()
    assert not ctypes.CDLL(str(real)).amx_works() and handler() == before


def test_this_processor() -> None:
    opened = library.load()
    assert opened is not None
    assert library.amx() == bool(opened.amx_works()) and (cpu.has_amx() or not library.amx())


@pytest.mark.parametrize("knows", [True, False])
def test_a_compiler_older_than_amx(knows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    refusal = "" if knows else 'case "$*" in *mamx-tile*) echo unknown option >&2; exit 1;; esac; '
    compiler.write_text(f'#!/bin/sh\n{refusal}for last; do :; done; echo "$*" > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "instructions", lambda: cpu.NEEDED | cpu.AMX.keys())
    path = library.built()
    assert ("-mamx-tile -mamx-bf16 -mamx-int8" in path.read_text()) == knows
