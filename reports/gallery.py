"""Gallery: one page over all run folders, however far they got."""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.errors import UserError
from metrics.pareto import direction
from reports.page import Html, document, facts, name, number, picture, tag, write_whole

SIGNS = ("run.json", "metrics.json", "metrics.csv", "checkpoints")  # a folder with one of these is a run's
KINDS = ("samples", "reconstruction", "conditional")
MAX_BYTES = 2**22  # of a file of text: a metrics.csv may be longer, of which the end counts
MAX_PIXELS = 2**26
MAX_METRICS = 8
TRIES = 3  # pictures that are opened, from the newest on
SCRIPT = """
const field=document.getElementById('filter'),runs=[...document.querySelectorAll('article')];
function sift(){
  const words=field.value.toLowerCase().split(' ').filter(Boolean);
  let left=0;
  runs.forEach(run=>{
    const text=run.textContent.toLowerCase();
    run.hidden=!words.every(word=>text.includes(word));
    left+=!run.hidden;
  });
  document.getElementById('left').textContent=left+' of '+runs.length+' runs';
}
if(field){document.querySelector('.control').hidden=false;field.addEventListener('input',sift);sift()}
"""


class Gallery:
    """Writes `index.html` about the runs below some folders, sorted by their place; it needs nothing beside itself.

    Folders that hold no run are left out; of a run whatever can be read is shown, and what cannot be is named.

    Args:
        thumbnail: longer side of the pictures in pixels.
        depth: folders below a given one that are searched.
    """

    def __init__(self, thumbnail: int = 360, depth: int = 3) -> None:
        if thumbnail < 16 or depth < 0:
            raise UserError(f"task.thumbnail={thumbnail}, task.depth={depth}: at least 16 and 0 are needed")
        self.thumbnail, self.depth = thumbnail, depth

    def __call__(
        self, paths: Sequence[Path], folder: Path, measured: Callable[[Path], Any] | None = None, loggers: Sequence[Any] = ()
    ) -> str:
        """Says what was written; nothing is measured or logged. ValueError or OSError for folders without a run."""
        for path in paths:
            if not path.is_dir():
                beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
                close = get_close_matches(path.name, beside, 1)
                hint = f" Did you mean {path.parent / close[0]}?" if close else ""
                raise NotADirectoryError(f"{path}: no such folder; a gallery is of folders of runs.{hint}")
        runs = sorted({run for path in paths for run in run_folders(path, self.depth)})
        if not runs:
            raise UserError(f"{', '.join(map(str, paths))}: no run in it, up to {self.depth} folders deep (task.depth)")
        title = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        label = tag("label", "Show runs with the words", for_="filter")
        field = tag("input", type="search", id="filter", autocomplete="off")
        found = tag("output", id="left", for_="filter", aria_live="polite")
        control = tag("div", label, field, found, class_="control", hidden=True)
        cards = [card(run, self.thumbnail) for run in runs]
        main = tag("main", control, tag("div", *cards, class_="row"), id="content")
        write_whole(folder / "index.html", document(title, [tag("header", tag("h1", title)), main], SCRIPT))
        return f"{folder / 'index.html'}: {title}"


def run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """`folder` and those below it that look like a run's; none inside of a run, none behind a link."""
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
    except OSError:
        return
    if any(sign in entries for sign in SIGNS):
        yield folder
    elif depth > 0:
        for entry in entries.values():
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from run_folders(Path(entry), depth - 1)


def card(folder: Path, thumbnail: int) -> Html:
    """What there is to say of a run."""
    faults: list[str] = []
    run, measured = (_read_mapping(folder / file, faults) for file in ("run.json", "metrics.json"))
    shown = last_grid(folder / "images", thumbnail, faults)
    grid = _thumbnail(*shown, folder, thumbnail) if shown else tag("p", "no pictures yet", class_="soft")
    pairs = nearest(folder, thumbnail, faults)
    class_path = measured.get("class_path") or _class_path(folder / "config.yaml")
    verdict = measured.get("verdict")
    line = verdict.get("line") if isinstance(verdict, Mapping) else None
    values = {
        "status": status(run),
        "method": class_path and str(class_path).rsplit(".", 1)[-1],
        "stage": _of(run, "stage", "num_stages"),
        "epoch": run.get("epoch"),
        "iteration": run.get("iteration", measured.get("iteration")),
        "last change": run.get("updated"),
        "error": run.get("error"),
        "code": _commit(run.get("git")),
        "came from": lineage(run.get("lineage")),
        **{key: number(value) for key, value in metric_values(folder, measured).items()},
        "unreadable": "; ".join(faults) or None,
    }
    heading = run.get("run_name") or measured.get("run_name") or folder.name
    place = tag("p", name(folder), class_="soft")
    told = tag("p", name(f"Verdict: {line}"[:600])) if line else None
    title = tag("h2", name(heading), style="border:0;margin:0")
    return tag("article", title, place, grid, facts(_short(values)), told, pairs)


def nearest(folder: Path, thumbnail: int, faults: list[str]) -> Html | None:
    """The pairs that the verdict is about, where there are any."""
    file = folder / "nearest.png"
    pixels = small_picture(file, thumbnail, faults) if file.is_file() else None
    if pixels is None:
        return None
    words = "Most suspicious pairs by the verdict: above a sample, below the training image."
    return tag("figure", _thumbnail(file.name, pixels, folder, thumbnail), tag("figcaption", words))


def _thumbnail(file: str, pixels: np.ndarray, folder: Path, side: int) -> Html:
    return picture(pixels, f"{file} of {folder.name}", max(1, min(4, side // max(pixels.shape[:2]))))


def _short(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value if isinstance(value, Html) or value is None else str(value)[:300] for key, value in values.items()}


def status(run: Mapping[str, Any]) -> Html | str:
    """As the card says, doubted where it says "running" about a process of this machine that is no more."""
    said = run.get("status")
    if said is None:
        return "unknown"
    pid = run.get("pid")
    if said == "running" and run.get("host") == socket.gethostname() and isinstance(pid, int) and pid > 0 and not _lives(pid):
        return tag("span", "ended without a word (its process is gone)", class_="bad")
    return tag("span", said, class_="bad" if said == "failed" else "good")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _of(run: Mapping[str, Any], key: str, total: str) -> str | None:
    stage, stages = run.get(key), run.get(total)
    if not isinstance(stage, int) or not isinstance(stages, int) or stages < 2:
        return None
    return f"{stage + 1} of {stages}"


def _commit(git: object) -> str | None:
    if not isinstance(git, Mapping) or not isinstance(git.get("commit"), str):
        return None
    return git["commit"][:10] + (" and changes" if git.get("dirty") else "")


def lineage(parents: object) -> str | None:
    """The checkpoints that a run was begun from, in words."""
    known = [parent for parent in parents if isinstance(parent, Mapping)] if isinstance(parents, list) else []
    words = [f"{p.get('kind')} {p.get('run_name') or '?'} ({p.get('path')}, iteration {p.get('iteration')})" for p in known]
    return "; ".join(words) or None


def metric_values(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of metrics.json, else the last ones of a validation in metrics.csv; those that can be ranked come first."""
    values = measured.get("metrics")
    if not isinstance(values, Mapping) or not values:
        values = {key.removeprefix("val/"): value for key, value in last_logged(folder / "metrics.csv").items()}
    ordered = sorted(values, key=lambda key: (direction(str(key)) == 0, str(key)))
    return {str(key)[:60]: values[key] for key in ordered[:MAX_METRICS]}


def last_logged(file: Path) -> dict[str, float]:
    """The last number in each column val/… of a metrics.csv; of a long file only the end is read."""
    lines = _read(file, tail=True).splitlines()
    if not lines:
        return {}
    with file.open(encoding="utf-8", errors="replace") as opened:
        columns = opened.readline(MAX_BYTES).rstrip("\n").split(",")  # names and numbers, none of which is quoted
    found: dict[str, float] = {}
    for line in lines[1:]:
        cells = line.split(",")
        for column, cell in zip(columns, cells, strict=False) if len(cells) == len(columns) else ():
            if column.startswith("val/") and re.fullmatch(r"-?\d[\d.e+-]*", cell):
                found[column] = _number(cell)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def last_grid(folder: Path, side: int, faults: list[str]) -> tuple[str, np.ndarray] | None:
    """Name and bytes [H, W, 3] of the newest grid that can be read, samples first, no side longer than `side`."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".png") and entry.is_file()]
    except OSError:
        return None
    names.sort(key=lambda name: (_epoch(name), name))
    kinds = [[name for name in names if name.startswith(f"{kind}_")] for kind in KINDS]
    files = next((found for found in kinds if found), names)
    for file in reversed(files[-TRIES:]):
        pixels = small_picture(folder / file, side, faults)
        if pixels is not None:
            return file, pixels
    return None


def _epoch(file: str) -> int:
    """The number that a name ends with: of five digits, too, it is above those of four."""
    digits = re.search(r"([0-9]{1,18})\.png$", file)
    return int(digits[1]) if digits else -1


def small_picture(file: Path, side: int, faults: list[str]) -> np.ndarray | None:
    """Bytes [H, W, 3] of a PNG file, no side longer than `side`; one that cannot be read becomes a fault."""
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UserError("too many pixels")
            image = opened.convert("RGB")
    except Exception:  # of many types, for whatever a file may hold
        faults.append(f"{file.parent.name}/{file.name}")
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _read(file: Path, tail: bool = False) -> str:
    """Text of a regular file, empty where there is none; of one that is too long its end, or nothing."""
    if not file.is_file() or (not tail and file.stat().st_size > MAX_BYTES):
        return ""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - MAX_BYTES))
        return opened.read(MAX_BYTES).decode("utf-8", "replace")


def _read_mapping(file: Path, faults: list[str]) -> dict[str, Any]:
    try:
        text = _read(file)
        content = json.loads(text) if text.strip() else {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        faults.append(file.name)
    return content if isinstance(content, dict) else {}


def _class_path(file: Path) -> str | None:
    try:
        found = re.search(r"class_path: (modules\.[\w.]+)", _read(file))
    except OSError:
        return None
    return found[1] if found else None
