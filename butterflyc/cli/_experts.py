"""How ``inspect`` shows what experts take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._output import print_columns, print_line

OWN = "angles"


def show_budget(data: Mapping[str, Any]) -> None:
    """Bytes by layer: what each expert owns, what all share; then what another one takes."""
    if not data["layers"]:
        return
    kinds = list(data["layers"][0]["bytes"])
    head = ["own: angles" if kind == OWN else kind for kind in kinds]
    rows = [(each["path"], *(f"{each['bytes'][k]:,}" for k in kinds)) for each in data["layers"]]
    sums = (sum(each["bytes"][kind] for each in data["layers"]) for kind in kinds)
    print_line("")
    print_columns([("bytes", *head), *rows, ("all", *(f"{each:,}" for each in sums))])
    if data["one_more"] is not None:
        print_line(f"one more expert in every layer: {data['one_more']:,} bytes of weights")
    if data["more_fit"] is not None:
        fit = data["more_fit"]
        print_line(f"{fit:,} more a layer would fit" if fit > 0 else "no more would fit")
