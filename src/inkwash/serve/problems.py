"""Messages for clients about errors in a drawing process."""

import logging

log = logging.getLogger("inkwash.serve")


def problem(error: Exception) -> dict[str, str]:
    """The message for a client about an error: whose fault it is, and one line without this machine's paths."""
    import torch
    from pydantic import ValidationError

    from inkwash.pipeline.problems import describe as describe_problem

    if isinstance(error, ValidationError):
        return {
            "kind": "request",
            "message": "; ".join(describe_problem(one, str) for one in error.errors()),
        }
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return {"kind": "memory", "message": "not enough memory; draw fewer or smaller pictures"}
    if isinstance(error, ValueError | FloatingPointError):
        return {"kind": "request", "message": without_folders(str(error))}
    log.error("a job failed", exc_info=error)
    return {
        "kind": "internal",
        "message": f"the server has failed by {type(error).__name__}; its log says more",
    }


def without_folders(text: str) -> str:
    """A message in which files keep their names alone."""
    import re

    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s:'\"]+)*[/\\](?=[^/\\\s:'\"])", "", text)
