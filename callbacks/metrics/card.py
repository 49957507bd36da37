"""The card of a measurement: its values with all that is needed to compare or repeat them."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics")
REQUIRED = ("backbone", "num_real", "num_generated", "resize")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a measurement."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def finite(values: Mapping[str, float], notes: list[str]) -> dict[str, float | None]:
    """Plain floats; one that is not finite becomes None, and a note says so."""
    plain = {key: float(value) for key, value in values.items()}
    notes += [f"{key} is not finite ({value}) and left out" for key, value in plain.items() if not math.isfinite(value)]
    return {key: value if math.isfinite(value) else None for key, value in plain.items()}


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Writes `card` as sorted JSON. ValueError if its protocol lacks what makes the numbers comparable."""
    missing = [key for key in REQUIRED if key not in card["protocol"]]
    if missing:
        raise ValueError(f"a measurement without {', '.join(missing)} in its protocol means nothing and is not written")
    text = json.dumps(card, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def format_card(card: Mapping[str, Any]) -> str:
    """A table for people: the metrics, the anchors beside the distances, the diagnostics, the notes."""
    sets = {"samples": card["metrics"], **card["anchors"]}
    shared = sorted({key for values in card["anchors"].values() for key in values})
    lines = []
    if shared:
        width = max(map(len, sets))
        lines += ["distance to the training images" + "".join(f"  {key}" for key in shared)]
        for name, values in sets.items():
            cells = (_number(values.get(key)).rjust(len(key)) for key in shared)
            lines += [f"  {name.ljust(width)}".ljust(31) + "".join(f"  {cell}" for cell in cells)]
    for title, values in [("samples", card["metrics"]), ("model", card["diagnostics"])]:
        rest = {key: value for key, value in sorted(values.items()) if key not in shared}
        lines += [title] if rest else []
        lines += [f"  {key.ljust(32)} {_number(value)}" for key, value in rest.items()]
    return "\n".join(lines + [f"note: {note}" for note in card["protocol"]["notes"]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
