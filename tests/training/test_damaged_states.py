"""Forty ways to damage a run's newest state: each falls back to the one before it, and says which file and why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inkwash.files import ModelFileError
from inkwash.training.checkpoints import (
    NEWEST,
    NEXT,
    PREVIOUS,
    contents,
    load_newest,
    load_state,
    save_newest,
)
from inkwash.training.config_methods import LoRAConfig
from inkwash.training.distributed import World
from inkwash.training.loop import make_states
from inkwash.training.run import Run, prepare, trained
from inkwash.training.sharding import load_shards, save_shards

Change = Callable[[bytearray, Random], object]


@pytest.fixture(scope="module")
def run(pictures: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A LoRA's run of three steps, whose states are those after the second and the third."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    own = {"model": str(tiny), "data": str(pictures), "output": str(folder), "buckets": False, "steps": 3,
           "save_every": 1, "lr": 1e-3, "rank": 2, "ema": 0.9}  # fmt: skip
    trained("lora", **own)
    made = prepare("lora", LoRAConfig.model_validate(own))
    assert isinstance(made, Run)
    return made


def begin(content: bytearray) -> int:
    """Where the tensors' bytes begin."""
    return 8 + int.from_bytes(content[:8], "little")


def flip(content: bytearray, at: int, random: Random) -> None:
    content[at] ^= 1 << random.randrange(8)


def flip_in_header(word: bytes) -> Change:
    """A bit of what follows a word of the header."""
    return lambda content, random: flip(content, content.index(word) + len(word) + 3, random)


def cut(place: Callable[[bytearray], int]) -> Change:
    def change(content: bytearray, random: Random) -> None:
        del content[place(content) :]

    return change


def put(*found: bytes) -> Change:
    """Another content."""

    def change(content: bytearray, random: Random) -> None:
        content[:] = b"".join(found)

    return change


def insert(place: Callable[[bytearray], int], more: bytes) -> Change:
    def change(content: bytearray, random: Random) -> None:
        at = place(content)
        content[at:at] = more

    return change


def exchange(old: bytes, new: bytes) -> Change:
    """The first place of a word, by one as long."""

    def change(content: bytearray, random: Random) -> None:
        assert len(old) == len(new) and old in content
        at = content.index(old)
        content[at : at + len(old)] = new

    return change


def header_length(number: int) -> Change:
    def change(content: bytearray, random: Random) -> None:
        content[:8] = number.to_bytes(8, "little")

    return change


DAMAGES: dict[str, Change] = {
    **{f"bit {k} of the tensors": lambda c, r: flip(c, r.randrange(begin(c), len(c)), r) for k in range(6)},
    "the tensors' first bit": lambda c, r: flip(c, begin(c), r),
    "the tensors' last bit": lambda c, r: flip(c, len(c) - 1, r),
    **{f"bit of the length, byte {k}": lambda c, r, k=k: flip(c, k, r) for k in (0, 1, 3, 7)},
    "bit of the header's bracket": lambda c, r: flip(c, 8, r),
    "another step": exchange(b'"step":"3"', b'"step":"7"'),
    "bit of a checksum": flip_in_header(b'"crc32"'),
    "bit of the other checksum": flip_in_header(b'"crc32_of_header"'),
    "other numbers": exchange(b'"about":"{', b'"about":"['),
    "no step": exchange(b'"step"', b'"stop"'),
    "no checksum": exchange(b'"crc32"', b'"crc33"'),
    "no numbers": exchange(b'"about"', b'"above"'),
    "another dtype": exchange(b'"F32"', b'"I32"'),
    "a tensor of another name": exchange(b'"modules/', b'"models//'),
    "an average of another name": exchange(b'"emas/', b'"emus/'),
    "cut to nothing": cut(lambda c: 0),
    "cut within the length": cut(lambda c: 5),
    "cut after the length": cut(lambda c: 8),
    "cut within the header": cut(lambda c: begin(c) // 2),
    "cut after the header": cut(begin),
    "cut within the tensors": cut(lambda c: (begin(c) + len(c)) // 2),
    "cut by a byte": cut(lambda c: len(c) - 1),
    "a byte more at the end": insert(len, b"\0"),
    "a block more at the end": insert(len, bytes(4096)),
    "a byte more between": insert(begin, b"\0"),
    "a block of zeros": lambda c, r: c.__setitem__(slice(-512, None), bytes(512)),
    "a block of noise": lambda c, r: c.__setitem__(slice(-64, None), r.randbytes(64)),
    "a header of no end": header_length(2**63),
    "a header of no length": header_length(0),
    "all zeros": lambda c, r: put(bytes(len(c)))(c, r),
    "text": put(b"no state"),
    "a pickle": put(b"\x80\x04N."),
    "an archive": put(b"PK\x03\x04", bytes(64)),
}
ELSE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "of another training": lambda path: save_file(
        {"modules/other/weight": torch.zeros(2)}, path, about(path)
    ),
    "without a tensor": lambda path: save_file(dict(list(load_file(path).items())[1:]), path, about(path)),
}


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_there_are_forty() -> None:
    assert len(DAMAGES) + len(ELSE) >= 40


@pytest.mark.parametrize("name", [*DAMAGES, *ELSE])
def test_a_damaged_state_falls_back_and_is_named(
    name: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(run.config.output)
    for one in (NEWEST, PREVIOUS):
        shutil.copy(folder / one, tmp_path / one)
    newest = tmp_path / NEWEST
    if name in ELSE:
        ELSE[name](newest)
    else:
        content = bytearray(newest.read_bytes())
        DAMAGES[name](content, Random(name))
        assert content != newest.read_bytes()
        newest.write_bytes(content)
    states = make_states(run.task, run.loop)
    assert load_newest(tmp_path, states) == 2
    [said] = [record.getMessage() for record in caplog.records]
    assert str(newest) in said and "state before it" in said and len(said.splitlines()) == 1
    wanted = load_file(folder / PREVIOUS)
    found, _ = contents(states)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_whole_state_is_taken_in_silence(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert load_newest(Path(run.config.output), make_states(run.task, run.loop)) == 3 and not caplog.records


@pytest.mark.parametrize("renamed", [False, True])
def test_a_crash_between_two_renames_is_put_in_order(renamed: bool, run: Run, tmp_path: Path) -> None:
    folder = Path(run.config.output)
    shutil.copy(folder / NEWEST, tmp_path / NEXT)
    shutil.copy(folder / PREVIOUS, tmp_path / (PREVIOUS if renamed else NEWEST))
    assert load_newest(tmp_path, make_states(run.task, run.loop)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {NEWEST, PREVIOUS}
    for one in (NEWEST, PREVIOUS):
        assert (tmp_path / one).read_bytes() == (folder / one).read_bytes()


def test_two_damaged_states_are_an_error(run: Run, tmp_path: Path) -> None:
    for one in (NEWEST, PREVIOUS):
        (tmp_path / one).write_bytes(b"no state")
    with pytest.raises(ModelFileError, match=r"state\.safetensors is not a state of this training"):
        load_newest(tmp_path, make_states(run.task, run.loop))


@pytest.mark.parametrize("damaged", [True, False])
def test_a_damaged_state_never_becomes_the_one_before(damaged: bool, run: Run, tmp_path: Path) -> None:
    """After the next save both states are whole, so that a second damage falls back to the good one of before."""
    folder = Path(run.config.output)
    shutil.copy(folder / PREVIOUS, tmp_path / PREVIOUS)
    if damaged:
        (tmp_path / NEWEST).write_bytes((folder / NEWEST).read_bytes()[:-1])
    states = make_states(run.task, run.loop)
    assert load_newest(tmp_path, states) == 2
    assert (tmp_path / NEWEST).read_bytes() == (folder / PREVIOUS).read_bytes()
    assert not (tmp_path / PREVIOUS).exists()
    save_newest(tmp_path, 3, states)
    assert load_state(tmp_path / PREVIOUS, states) == 2 and load_state(tmp_path / NEWEST, states) == 3
    (tmp_path / NEWEST).write_bytes(b"no state")
    assert load_newest(tmp_path, states) == 2


def test_damaged_shards_never_become_the_ones_before(run: Run, tmp_path: Path) -> None:
    states, world = make_states(run.task, run.loop), World()
    for step in (1, 2):
        save_shards(tmp_path, step, states, world)
    for step in (3, 4):
        [shard] = (tmp_path / "state").glob("*.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1])
        assert load_shards(tmp_path, states, world) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        save_shards(tmp_path, step, states, world)
    (tmp_path / "state/about.json").unlink()
    assert load_shards(tmp_path, states, world) == 1


def test_a_state_of_before_has_no_checksum_of_its_header(run: Run, tmp_path: Path) -> None:
    path = Path(run.config.output) / NEWEST
    old = {key: value for key, value in about(path).items() if key != "crc32_of_header"}
    save_file(load_file(path), tmp_path / NEWEST, old)
    assert load_newest(tmp_path, make_states(run.task, run.loop)) == 3
