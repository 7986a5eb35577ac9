"""Processes by /proc, and several that compute together."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing

IMPORTED = "inkwash.cli.train inkwash.training.run inkwash.training.sharding torch._dynamo"
torch.multiprocessing.set_forkserver_preload(IMPORTED.split())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def seconds_of(pid: int) -> float:
    """The processor time of a process, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def run_ranks(num: int, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in so many processes that find each other as torchrun's do. Raises an exception if one fails.

    They are forks of one process that has imported what trains, so that each starts at once.
    """
    given = num, free_port(), function, arguments
    torch.multiprocessing.start_processes(as_rank, given, num, start_method="forkserver")


def as_rank(
    rank: int, num: int, port: int, function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
