"""Vectors of faces, as face networks give them, from files and arrays. F faces, D width."""

from pathlib import Path
from typing import Any

import numpy as np


def face_bytes(given: Any) -> bytes:
    """32-bit floats, little-endian, of an array or tensor (D,) or (F, D), or of a file that holds one.

    Raises ValueError for another shape, for values that are not finite, and for a file of something else.
    """
    name = f"face {given.name}" if isinstance(given, Path) else "face"
    values = read_face(given) if isinstance(given, Path) else given
    try:
        values = np.asarray(values.float().numpy() if hasattr(values, "numpy") else values, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds no vector: {error}") from None
    # as insightface and diffusers give them, with axes of 1 in front
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"{name} has shape {values.shape}; (width,) or (faces, width) is wanted")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite")
    return values.tobytes()


def read_face(path: Path) -> Any:
    """The array of a .npy file, or the only tensor of a model file."""
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"face {path} is not an array: {error}") from None
    from inkwash.files import ModelFileError
    from inkwash.weights.names.wrappers import read_model_file

    try:
        tensors = read_model_file(path).tensors
    except (ModelFileError, OSError) as error:
        raise ValueError(f"face {path}: {error}") from None
    if len(tensors) != 1:
        raise ValueError(f"face {path.name} holds {len(tensors)} tensors, and one is wanted")
    return next(iter(tensors.values()))
