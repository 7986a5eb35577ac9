"""The held-out scenes and the outside judge as files, for `inkwash evaluate --scenes`.

`python -m recipes.mini.scene_files FOLDER` writes scenes.jsonl and judge.safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from cyclopts import App
from safetensors.torch import load_file, save_file
from torch import Tensor

from inkwash.files import atomic, write_text
from recipes.mini.pictures import common_drawings, load_pictures
from recipes.mini.scenes import described

app = App(name="scene_files", help=__doc__)


def scene_lines(records: list[dict]) -> str:
    """The scenes among the records, one a line, each with what its background is."""
    some = [described(record) for record in records if record["kind"] == "scene"]
    return "".join(json.dumps(line) + "\n" for line in some)


def head_of(tensors: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """The outside judge's head of names as linear layers, the norm before them being in the first one."""
    scale = (tensors["names.0.running_var"] + eps).rsqrt()
    weight, bias = tensors["names.1.weight"], tensors["names.1.bias"]
    return {
        "1.weight": weight * scale,
        "1.bias": bias - weight @ (tensors["names.0.running_mean"] * scale),
        "4.weight": tensors["names.4.weight"],
        "4.bias": tensors["names.4.bias"],
    }


@app.default
def export(folder: Path, *, build: Path = Path("build/mini")) -> None:
    """Write both files."""
    write_text(folder / "scenes.jsonl", scene_lines(load_pictures(build / "data", "heldout").records))
    names = list(common_drawings(build / "data").values())
    said = {"names": json.dumps(names), "network": "efficientnet-lite0", "background": "white"}
    with atomic(folder / "judge.safetensors") as partial:
        save_file(head_of(load_file(build / "outside" / "heads.safetensors")), partial, said)
    print("\n".join(str(folder / name) for name in ("scenes.jsonl", "judge.safetensors")))


if __name__ == "__main__":
    app()
