"""Options of how prompts are read, and of where the files are that they name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from inkwash.cli.converters import GROUPS

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
        return "".join(f"<lora:{path.stem}:{strength}>" for path, strength in self.loras)

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
