"""From what a user names to the folder or file that is meant."""

from importlib.resources import files
from pathlib import Path

from inkwash.weights.files import ModelFileError

SHIPPED = ("mini",)


def model_path(name: str | Path) -> Path:
    """The folder of a shipped model, or the folder or file of a path. Raises ModelFileError where there is none."""
    if str(name) in SHIPPED:
        return Path(str(files("inkwash.weights") / str(name)))
    path = Path(name)
    if not path.exists():
        raise ModelFileError(
            f"there is no model {str(name)!r}; give a folder, a file, or one of {', '.join(SHIPPED)}"
        )
    return path
