"""Gallery: one page over all run folders, whatever their state."""

import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from core.errors import UserError, nearest_hint
from core.types import NonNegativeInt
from metrics.pareto import direction
from reports.page import format_number, render, write_report

RUN_ENTRIES = ("run.json", "metrics.json", "metrics.csv", "checkpoints")  # a folder with one of these is a run folder
GRID_KINDS = ("samples", "reconstruction", "conditional")
MAX_BYTES = 2**22  # of a text file; of a longer metrics.csv the end is read
MAX_METRICS = 8
NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?")
MAX_ATTEMPTS = 3  # grids that are opened, from the newest on


@dataclass(kw_only=True)
class Gallery:
    """Writes `index.html`, self-contained, about the run folders below some folders. Of a run everything readable is shown, and
    unreadable files are named.

    Args:
        thumbnail: longer side of the images in pixels.
        depth: levels of folders that are searched.
    """

    thumbnail: Annotated[int, Field(ge=16)] = 360
    depth: NonNegativeInt = 3

    def __call__(
        self, paths: Sequence[Path], folder: Path, measure: Callable[[Path], Any] | None = None, loggers: Sequence[Any] = ()
    ) -> str:
        """Returns the text to print; nothing is measured or logged."""
        for path in paths:
            if not path.is_dir():
                siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                raise UserError(f"{path}: no such folder; the gallery shows run folders.{nearest_hint(str(path), siblings)}")
        folders = sorted({run for path in paths for run in run_folders(path, self.depth)})
        if not folders:
            names = ", ".join(map(str, paths))
            raise UserError(f"{names}: no run folder within task.depth={self.depth} levels")
        title = f"{len(folders)} run{'s' * (len(folders) > 1)}"
        runs = [summarize(run, self.thumbnail) for run in folders]
        write_report(folder, {"index.html": render("gallery", title=title, runs=runs, thumbnail=self.thumbnail)})
        return f"{title}\n{shlex.quote(str(folder / 'index.html'))}"


def run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """`folder` and folders below it that are run folders; does not descend into runs or follow links."""
    for path, folders, files in os.walk(folder):
        is_run = not {*folders, *files}.isdisjoint(RUN_ENTRIES)
        if is_run:
            yield Path(path)
        descends = not is_run and len(Path(path).relative_to(folder).parts) < depth
        folders[:] = [name for name in folders if descends and not name.startswith(".")]


def summarize(folder: Path, thumbnail: int) -> dict[str, Any]:
    unreadable: list[str] = []
    run, results = (_read_json(folder / file, unreadable) for file in ("run.json", "metrics.json"))
    pairs = folder / "nearest.png"
    return {
        "folder": folder,
        "run": run,
        "results": results,
        "status": status(run),
        "class_path": results.get("class_path") or _class_path(folder / "config.yaml"),
        "metrics": {key: format_number(value) for key, value in metric_values(folder, results).items()},
        "grid": newest_grid(folder / "images", thumbnail, unreadable),
        "pairs": read_thumbnail(pairs, thumbnail, unreadable) if pairs.is_file() else None,
        "unreadable": unreadable,
    }


def status(run: Mapping[str, Any]) -> str:
    """The status in run.json, or "crashed …" if it is "running" and its process on this machine does not exist."""
    pid, local = run.get("pid"), run.get("host") == socket.gethostname()
    if run.get("status") == "running" and local and isinstance(pid, int) and pid > 0:
        try:
            os.kill(pid, 0)  # checks, sends no signal
        except (ProcessLookupError, OverflowError):
            return "crashed (process no longer running)"
        except OSError:
            pass  # of another user
    return str(run.get("status") or "unknown")[:300]


def metric_values(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of metrics.json, else the last validation values of metrics.csv; metrics with a direction come first."""
    values = results.get("metrics")
    if not isinstance(values, Mapping) or not values:
        values = {key.removeprefix("val/"): value for key, value in last_logged(folder / "metrics.csv").items()}
    ordered = sorted(values, key=lambda key: (direction(str(key)) == 0, str(key)))
    return {str(key)[:60]: values[key] for key in ordered[:MAX_METRICS]}


def last_logged(file: Path) -> dict[str, float]:
    """The last number in each column val/… of a metrics.csv."""
    if not file.is_file():
        return {}
    with file.open("rb") as opened:
        head = opened.readline(MAX_BYTES)
        opened.seek(max(opened.tell(), file.stat().st_size - MAX_BYTES))
        lines = (head + opened.read(MAX_BYTES)).decode("utf-8", "replace").splitlines()
    columns, *rows = (line.split(",") for line in lines or [""])  # numbers, without quotes
    cells = [cell for row in rows if len(row) == len(columns) for cell in zip(columns, row, strict=True)]
    return {key: float(text) for key, text in cells if key.startswith("val/") and NUMBER.fullmatch(text)}


def newest_grid(folder: Path, side: int, unreadable: list[str]) -> tuple[str, np.ndarray] | None:
    """File name and uint8 [H, W, 3] of the newest readable grid, samples before other kinds, no side longer than `side`."""
    numbers = {file.name: re.findall(r"([0-9]{1,18})\.png$", file.name) for file in folder.glob("*.png") if file.is_file()}
    names = sorted(numbers, key=lambda name: (int((numbers[name] or [-1])[0]), name))  # five digits follow four
    kinds = [[name for name in names if name.startswith(f"{kind}_")] for kind in GRID_KINDS]
    for name in reversed(next(filter(None, kinds), names)[-MAX_ATTEMPTS:]):
        if (pixels := read_thumbnail(folder / name, side, unreadable)) is not None:
            return name, pixels
    return None


def read_thumbnail(file: Path, side: int, unreadable: list[str]) -> np.ndarray | None:
    """uint8 [H, W, 3] of a PNG file, no side longer than `side`; None if it is added to `unreadable`."""
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            image = opened.convert("RGB")
    except Exception:  # Pillow raises many types for broken files, and for too many pixels
        unreadable.append(f"{file.parent.name}/{file.name}")
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _read(file: Path) -> str:
    """Text of a regular file; empty if there is none or if it is too long."""
    return file.read_text("utf-8", "replace") if file.is_file() and file.stat().st_size <= MAX_BYTES else ""


def _read_json(file: Path, unreadable: list[str]) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        if isinstance(content := json.loads(_read(file).strip() or "{}"), dict):
            return content
    unreadable.append(file.name)
    return {}


def _class_path(file: Path) -> str | None:
    with suppress(OSError):
        return next(iter(re.findall(r"class_path: (modules\.[\w.]+)", _read(file))), None)
