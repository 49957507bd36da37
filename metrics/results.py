"""The results of a measurement as a file and as a table, with all that is needed to compare or repeat them."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def finite(values: Mapping[str, float], notes: list[str]) -> dict[str, float | None]:
    """Floats; one that is not finite becomes None, and a note says so."""
    plain = {key: float(value) for key, value in values.items()}
    notes += [f"{key} is not finite ({value}) and left out" for key, value in plain.items() if not math.isfinite(value)]
    return {key: value if math.isfinite(value) else None for key, value in plain.items()}


def write_measurement(path: Path, results: Mapping[str, Any]) -> None:
    """Writes `results` as sorted JSON."""
    text = json.dumps(results, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def format_measurement(results: Mapping[str, Any]) -> str:
    points, intervals = results["reference_points"], results.get("intervals", {})
    rows = {"samples": results["metrics"], **points}
    shared = sorted({key for values in points.values() for key in values})
    lines = []
    if shared:
        width = max(map(len, rows))
        lines += ["distance to the reference images" + "".join(f"  {key}" for key in shared)]
        for name, values in rows.items():
            cells = (_number(values.get(key)).rjust(len(key)) for key in shared)
            lines += [f"  {name.ljust(width)}".ljust(32) + "".join(f"  {cell}" for cell in cells)]
    for title, values in [("samples", results["metrics"]), ("model", results["diagnostics"])]:
        rest = {key: value for key, value in sorted(values.items()) if key not in shared or key in intervals}
        lines += [title] if rest else []
        lines += [f"  {key.ljust(32)} {_number(value)}{_range(intervals.get(key))}" for key, value in rest.items()]
    lines += [f"verdict: {results['verdict']['line']}"] if results.get("verdict") else []
    return "\n".join(lines + [f"note: {note}" for note in results["protocol"]["notes"]])


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"  (95 %: {_number(interval[0])} to {_number(interval[1])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
