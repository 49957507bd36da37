"""Speed and memory on a GPU: `make test-gpu` writes docs/gpu.json, `python -m tests.gpu.figures` makes docs/gpu.md of it."""

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
HEAD = """# Speed and memory on a GPU

This page is generated: `make test-gpu` measures the published configurations of each method (20 iterations or more at
published size on drawn images, without the first one of each stage; the slowest stage counts), or `python -m
tests.gpu.figures` after a change of `docs/gpu.json`.

"""


def page(figures: dict[str, Any]) -> str:
    """Markdown of the measurements; a configuration that is not in them was not measured."""
    if not figures.get("methods"):
        return f"{HEAD}All configurations: not measured.\n"
    columns = ["precision", "images per second", "peak memory", "samples per second"]
    lines = [f"| configuration | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, precisions in sorted(figures["methods"].items()):
        for precision, values in precisions.items():
            peak = f"{values['peak_memory'] / 1e9:.2f} GB" if "peak_memory" in values else "not measured"
            speeds = [f"{values[key]:.3g}" if key in values else "–" for key in ("images_per_second", "samples_per_second")]
            lines.append(f"| {name} | {precision} | {speeds[0]} | {peak} | {speeds[1]} |")
    return f"{HEAD}{figures['device']}, torch {figures['torch']}.\n\n" + "\n".join(lines) + "\n\nAll others: not measured.\n"


def read(folder: Path = DOCS) -> dict[str, Any]:
    """The measurements; empty without a file."""
    file = folder / "gpu.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write(measured: dict[str, Any], folder: Path = DOCS) -> None:
    """Replaces the measurements of the same configurations and makes the page anew; figures of another device are dropped."""
    earlier = read(folder)
    same = all(earlier.get(key) == measured[key] for key in ("device", "torch"))
    measured = {**measured, "methods": {**(earlier["methods"] if same else {}), **measured["methods"]}}
    (folder / "gpu.json").write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n")
    (folder / "gpu.md").write_text(page(measured))


if __name__ == "__main__":
    (DOCS / "gpu.md").write_text(page(read()))
