"""Compare: one page about several checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.run_manifest import file_sha256
from core.errors import UserError
from reports.compare_page import page
from reports.comparison import Comparison, compare, config_differences, in_order
from reports.page import write_whole
from reports.subject import Subject, look


class Compare:
    """Writes `index.html`, which needs nothing beside itself, and `report.json` with its numbers.

    Every checkpoint draws from the same seeds and is measured anew; its metrics, intervals and verdict are those of the
    measurement. Differences are tested between values of sets of samples that share a seed. Nothing is ranked if the
    protocols differ. The same checkpoints give the same bytes.

    Args:
        num_shown: samples in the picture of a checkpoint.
        num_nearest: samples nearest to a training image, shown with it.
        inputs: image files that all render; by default each reconstructs its training images.
        quality, diversity: keys of the plot and of the Pareto rule; see `metrics.pareto`.
    """

    def __init__(
        self,
        num_shown: int = 16,
        num_nearest: int = 8,
        inputs: list[str] | None = None,
        quality: str | None = None,
        diversity: str | None = None,
    ) -> None:
        for key, value in (("num_shown", num_shown), ("num_nearest", num_nearest)):
            if value < 1:
                raise UserError(f"task.{key}={value}: at least 1 is needed")
        self.num_shown, self.num_nearest, self.inputs = num_shown, num_nearest, inputs
        self.quality, self.diversity = quality, diversity

    def __call__(
        self, paths: Sequence[Path], folder: Path, measured: Callable[[Path], tuple], loggers: Sequence[Any] = ()
    ) -> str:
        """Says what was written. `measured(path)` gives a checkpoint's content, its module, the SampleMetrics after a test
        and the data; it is called for all before anything is written."""
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder; give its checkpoints, such as {path}/checkpoints/*.ckpt")
        subjects, writes = [], True
        for path in paths:
            content, module, metrics, data = measured(path)
            subjects.append(subject := _subject(path, content, metrics.results))
            look(subject, module, metrics, data, self)
            writes = writes and module.global_rank == 0
        comparison = compare(in_order(subjects), self.quality, self.diversity)
        if not writes:
            return ""
        write_whole(folder / "report.json", as_json(comparison))
        write_whole(folder / "index.html", page(comparison))
        for logger in loggers:
            log(logger, comparison)
        verdict = f"not ranked, the protocols differ in {', '.join(comparison.unlike)}\n" if comparison.unlike else ""
        verdict += f"best: {comparison.choice.words}\n" if comparison.choice else ""
        return f"{verdict}{folder / 'index.html'}"


def _subject(path: Path, content: Mapping[str, Any], card: Mapping[str, Any]) -> Subject:
    config = content.get("config") or {}
    name = str(config.get("run_name") or path.stem)
    iteration = content.get("iteration")
    iteration = iteration if isinstance(iteration, int) else 0
    return Subject(path, name, iteration, str(content["class_path"]), config, card, sha256=file_sha256(path))


def as_json(comparison: Comparison) -> bytes:
    """The numbers of the page."""
    rows = [
        {
            "number": s.number, "run": s.run, "path": str(s.path), "class_path": s.class_path, "iteration": s.iteration,
            "sha256": s.sha256,
            "card": s.card, "by_seed": s.by_seed, "nearest_psnr": [value for value, _ in s.nearest],
        }
        for s in comparison.subjects
    ]  # fmt: skip
    choice = comparison.choice
    content = {
        "checkpoints": rows,
        "protocols_differ_in": comparison.unlike,
        "config_differences": config_differences(comparison.subjects),
        "tests": [test._asdict() for test in comparison.tests],
        "axes": comparison.axes,
        "best": choice and choice.best is not None and comparison.subjects[choice.best].number or None,
        "front": [comparison.subjects[i].number for i in choice.front] if choice else None,
        "words": choice and choice.words,
    }
    return (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()


def log(logger: Any, comparison: Comparison) -> None:
    """The table with its pictures, and the pictures in a row each, as far as the logger takes such."""
    kinds = sorted({kind for s in comparison.subjects for kind in s.pictures})
    if hasattr(logger, "log_table"):
        columns, rows = logged_table(comparison, kinds)
        logger.log_table("comparison/table", columns=columns, data=rows)
    for kind in kinds if hasattr(logger, "log_image") else ():
        shown = [s for s in comparison.subjects if kind in s.pictures]
        logger.log_image(f"comparison/{kind}", [s.pictures[kind] for s in shown], caption=[s.label for s in shown])


def logged_table(comparison: Comparison, kinds: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a checkpoint's protocol, verdict, pictures, nearest pairs, metrics and their intervals."""
    keys = sorted({key for s in comparison.subjects for key in s.card["metrics"]})
    ranges = [key for key in keys if any(key in s.card.get("intervals", {}) for s in comparison.subjects)]
    columns = ["checkpoint", "method", "iteration", "protocol", "verdict", *kinds, "nearest", *keys]
    columns += [f"{key}_{end}" for key in ranges for end in ("low", "high")]
    rows = []
    for s in comparison.subjects:
        protocol = str(s.card["protocol"].get("hash", ""))[:8]  # values of others are not to be compared
        row = [s.label, s.method, s.iteration, protocol, s.card.get("verdict", {}).get("line")]
        row += [s.pictures.get(kind) for kind in kinds]
        row += [np.concatenate([pair for _, pair in s.nearest]) if s.nearest else None]
        row += [s.card["metrics"].get(key) for key in keys]
        rows.append(row + [end for key in ranges for end in s.card.get("intervals", {}).get(key, (None, None))])
    return columns, rows
