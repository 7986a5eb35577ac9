"""Pipelines of diffusers, made to draw with given noise."""

import sys
from pathlib import Path
from typing import Any

import pytest


def their_pipeline(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, draws: list, **parts: Any
) -> Any:
    """A pipeline with Euler's sampler, its random numbers replaced by these draws, its posteriors by their means."""
    diffusers = pytest.importorskip("diffusers")
    of = getattr(diffusers, kind)
    pipe = of.from_pretrained(folder, local_files_only=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", steps_offset=0
    )
    module = sys.modules[of.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: draws.pop(0))
    if hasattr(module, "retrieve_latents"):
        monkeypatch.setattr(module, "retrieve_latents", lambda made, *_, **__: made.latent_dist.mode())
    return pipe
