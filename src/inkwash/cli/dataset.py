"""`inkwash dataset inspect`: the data as a training would see it."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from inkwash.cli import options

app = App(name="dataset", help="Pictures to train on.", help_format="plaintext")


@app.command
def inspect(
    data: Annotated[
        str,
        Parameter(
            help="A folder, a table, tars, parquet files, or kohya's .toml, as --data of `inkwash train`."
        ),
    ],
    /,
    *,
    resolution: Annotated[int, Parameter(help="Of the buckets, in pixels.")] = 512,
    step: Annotated[int, Parameter(help="What the sides of buckets are multiples of.")] = 64,
    sheet: Annotated[Path | None, Parameter(help="Write a contact sheet to this PNG.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say how many pictures there are, of which sizes, buckets and captions, and which are broken or doubled."""
    for name, value in (("--resolution", resolution), ("--step", step)):
        if not 8 <= value <= 16384:
            raise options.usage_error(f"{name} {value} is not in 8 to 16384")
    if sheet is not None:
        options.check_output(sheet)
    from inkwash.data.buckets import BucketRules
    from inkwash.data.folders import DataError, Subset, read_examples
    from inkwash.data.inspection import as_json as fields
    from inkwash.data.inspection import inspect_examples
    from inkwash.data.kohya import read_kohya
    from inkwash.files import atomic

    rules = BucketRules((resolution, resolution), step, min(256, resolution))
    try:
        subsets = [Subset(Path(data))]
        if data.endswith(".toml"):
            subsets, rules, _ = read_kohya(Path(data), rules, 1.0)
        found, picture = inspect_examples([one for subset in subsets for one in read_examples(subset)], rules)
    except DataError as error:
        raise options.usage_error(error) from error
    except (OSError, ValueError) as error:
        raise options.file_error(error) from error
    if sheet is not None:
        with atomic(sheet) as partial:
            picture.save(partial, "PNG")
    print(json.dumps(fields(found)) if as_json else "\n".join(found.lines()))
