"""Styles: prompts that are kept by name, in the CSV files that A1111 writes."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from inkwash.files import ModelFileError
from inkwash.weights.bytes.paths import nearest

COLUMNS = ("name", "prompt", "negative_prompt")


class Style(NamedTuple):
    """A saved style: texts that are added to the prompt and to the negative one, or put around {prompt}."""

    prompt: str
    negative_prompt: str


def read_styles(paths: Iterable[Path]) -> dict[str, Style]:
    """The styles of all files, by name; the last of a name counts. Raises ModelFileError.

    As A1111 reads them: blanks may follow commas, the prompt's column may have its old name `text`, and
    `negative_prompt` may be missing.
    """
    found = {}
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, skipinitialspace=True)
                columns = {(column or "").strip(): column for column in rows.fieldnames or ()}
                prompt = columns.get("prompt", columns.get("text"))
                if "name" not in columns or prompt is None:
                    missing = "prompt" if "name" in columns else "name"
                    raise ModelFileError(
                        f"the styles {path} have no column {missing}; wanted are {', '.join(COLUMNS)}"
                    )
                for row in rows:
                    name, negative = row[columns["name"]], row.get(columns.get("negative_prompt", ""))
                    if name and name.strip():
                        found[name.strip()] = Style(row[prompt] or "", negative or "")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ModelFileError(f"the styles {path} can't be read: {error}") from error
    return found


def apply_styles(
    names: Sequence[str], known: Mapping[str, Style], prompt: str, negative_prompt: str
) -> tuple[str, str]:
    """The prompts with the styles, one after the other. Raises ValueError for a name that is none's."""
    for name in names:
        if name not in known:
            raise ValueError(f"there is no style {name!r}{nearest(name, known)}")
        prompt = merged(known[name].prompt, prompt)
        negative_prompt = merged(known[name].negative_prompt, negative_prompt)
    return prompt, negative_prompt


def merged(style: str, prompt: str) -> str:
    """The style with the prompt in place of {prompt}, or behind the prompt."""
    if "{prompt}" in style:
        return style.replace("{prompt}", prompt)
    return ", ".join(filter(None, (prompt.strip(), style.strip())))
