"""Refusals of clients' requests."""

from collections.abc import Mapping


class Refusal(Exception):
    """An answer of 4xx or 5xx: one line for the client, the field that it is about, and headers."""

    def __init__(
        self, status: int, message: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.field, self.headers = status, message, field, dict(headers or {})


class WorkerDied(Exception):
    """The process that was to answer has ended."""


class Cancelled(Exception):
    """Stops a job between two of its steps."""


def unknown(kind: str, name: object) -> Refusal:
    return Refusal(404, f"there is no {kind} {str(name)[:100]!r}")
