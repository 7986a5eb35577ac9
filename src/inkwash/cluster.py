"""Workers on other machines, by Ray: the extra `cluster`. Each machine needs the same inkwash, and the same folders."""

import os
from typing import Any


def connect() -> Any:
    """The module `ray`, connected to the cluster that RAY_ADDRESS names or that runs here, else to one of this machine.

    Raises ImportError where Ray is not installed, and ConnectionError where there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]  # an extra

    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        except Exception as error:  # which Ray has no kind for
            raise ConnectionError(f"no cluster of Ray: {error}") from error
    return ray


def resources(device: str) -> dict[str, float]:
    """A worker's resources of its machine: a processor's core, which is its threads, and for "cuda" a GPU."""
    return {"num_cpus": 1, "num_gpus": 1 if device.startswith("cuda") else 0}
