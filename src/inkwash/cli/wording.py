"""Options of how prompts are read, and of where the files are that they name."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from inkwash.cli.converters import GROUPS
from inkwash.prompts.tags import written

PROMPTS = GROUPS["Prompts"]
STRENGTH = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))")


@Parameter(name="*")
@dataclass(frozen=True)
class FolderOptions:
    """Where the files are that prompts name; each can be given several times."""

    embeddings: Annotated[
        tuple[Path, ...],
        Parameter(
            group=PROMPTS, consume_multiple=False, help="Folder of embeddings, named by their file names."
        ),
    ] = ()
    lora_dir: Annotated[
        tuple[Path, ...],
        Parameter(group=PROMPTS, consume_multiple=False, help="Folder of LoRAs, for <lora:name:strength>."),
    ] = ()
    lora: Annotated[
        tuple[str, ...],
        Parameter(
            group=PROMPTS,
            consume_multiple=False,
            help="PATH[:STRENGTH] of a LoRA; puts its tag in the prompt.",
        ),
    ] = ()
    hypernet_dir: Annotated[
        tuple[Path, ...],
        Parameter(
            group=PROMPTS,
            consume_multiple=False,
            help="Folder of hypernetworks, for <hypernet:name:strength>.",
        ),
    ] = ()
    wildcards: Annotated[
        tuple[Path, ...],
        Parameter(
            group=PROMPTS,
            consume_multiple=False,
            help="Folder of text files; __name__ is one of their lines.",
        ),
    ] = ()
    styles: Annotated[
        tuple[Path, ...],
        Parameter(group=PROMPTS, consume_multiple=False, help="CSV of name, prompt and negative_prompt."),
    ] = ()

    @property
    def loras(self) -> list[tuple[Path, str]]:
        """Files and strengths."""
        found = [(given, STRENGTH.fullmatch(given)) for given in self.lora]
        return [
            (Path(m[1]), m[2]) if m and not Path(given).exists() else (Path(given), "1") for given, m in found
        ]

    @property
    def tags(self) -> str:
        """What puts them into a prompt."""
        stems = Counter(path.stem for path, _ in self.loras)
        names = [
            path.stem if stems[path.stem] == 1 else path.with_suffix("").as_posix() for path, _ in self.loras
        ]
        pairs = zip(names, self.loras, strict=True)
        return "".join(f"<lora:{written(name)}:{strength}>" for name, (_, strength) in pairs)

    def places(self) -> dict[str, Any]:
        """The keywords of `inkwash.load`; files that are given themselves come first."""
        loras = (*(path for path, _ in self.loras), *self.lora_dir)
        return {
            "embeddings": self.embeddings,
            "loras": loras,
            "hypernetworks": self.hypernet_dir,
            "wildcards": self.wildcards,
            "styles": self.styles,
        }
