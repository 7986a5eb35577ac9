"""Locations of the files that prompts name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inkwash.adapters import embeddings
from inkwash.files import ModelFileError
from inkwash.weights.bytes.paths import find_named, named_files, shipped_lora

LORA_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
HYPERNETWORK_SUFFIXES = (".pt",)
Places = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Folders:
    """Folders, searched however deep once a request (see `look_again`), and single files.

    A file is named by its stem, or by its path where several have one stem. embeddings, loras, hypernetworks and wildcards
    (.txt) are named in prompts; styles are A1111's CSV files. loras None: a model that leaves those of its prompts, and
    hypernetworks, to another one.
    """

    embeddings: tuple[Path, ...] = ()
    loras: tuple[Path, ...] | None = ()
    hypernetworks: tuple[Path, ...] = ()
    wildcards: tuple[Path, ...] = ()
    styles: tuple[Path, ...] = ()
    lists: dict[str, dict[str, list[Path]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @classmethod
    def of(cls, **places: Places) -> "Folders":
        """Folders from one place or several each. Raises ModelFileError for one that is not there."""
        made = {}
        for kind, given in places.items():
            made[kind] = tuple(map(Path, [given] if isinstance(given, str | Path) else given))
            if missing := [path for path in made[kind] if not path.exists()]:
                raise ModelFileError(f"{missing[0]}: there is no such file or folder of {kind}")
        return cls(**made)

    def look_again(self) -> None:
        """Search the folders anew at the next use, since files may have come or gone."""
        self.lists.clear()

    def listed(self, kind: str, suffixes: Sequence[str]) -> dict[str, list[Path]]:
        """The files of a kind by name."""
        if kind not in self.lists:
            self.lists[kind] = named_files(getattr(self, kind) or (), suffixes)
        return self.lists[kind]

    def lora(self, name: str) -> Path:
        """The file of a LoRA, also of a shipped one. Raises ValueError with the nearest names."""
        listed = self.listed("loras", LORA_SUFFIXES)
        shipped = None if name in listed else shipped_lora(name)
        return shipped or find_named("LoRA", name, listed)

    def hypernetwork(self, name: str) -> Path:
        """The file of a hypernetwork. Raises ValueError with the nearest names."""
        return find_named("hypernetwork", name, self.listed("hypernetworks", HYPERNETWORK_SUFFIXES))

    def embedding_files(self) -> dict[str, list[Path]]:
        """The files of embeddings by name."""
        return self.listed("embeddings", embeddings.SUFFIXES)

    def wildcard_files(self) -> dict[str, list[Path]]:
        """The files of wildcards by name."""
        return self.listed("wildcards", (".txt",))
