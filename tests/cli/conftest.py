"""The command line, run in this process."""

from typing import NamedTuple

import pytest

from inkwash.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Result(code, *capsys.readouterr())

    return run
