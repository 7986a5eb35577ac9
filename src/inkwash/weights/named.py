"""From what a user names to the folder that is meant."""

from importlib.resources import files
from pathlib import Path

from inkwash.weights.files import ModelFileError

SHIPPED = ("mini",)


def model_folder(name: str | Path) -> Path:
    """The folder of a shipped model or of a path. Raises ModelFileError where there is none."""
    if str(name) in SHIPPED:
        return Path(str(files("inkwash.weights") / str(name)))
    folder = Path(name)
    if not folder.exists():
        raise ModelFileError(
            f"there is no model {str(name)!r}; give a folder, or one of {', '.join(SHIPPED)}"
        )
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is not a folder in the diffusers layout")
    return folder
