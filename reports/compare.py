"""Compare: one page about several checkpoints, and which of them to choose."""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.adaptation_curve import read_curve
from callbacks.sample_metrics import reference_set
from core.errors import UserError
from core.types import PathStr, PositiveInt
from metrics.pareto import REALISTIC, direction
from modules.ops.weights import file_sha256
from reports.checkpoint_entry import CheckpointEntry, collect_samples
from reports.comparison import Comparison, compare, config_differences, in_order, side_by_side
from reports.page import format_number, render, write_report
from reports.scatter import Point, Scatter

LEVEL = 0.05  # significance level of the paired tests
MINOR = re.compile(r"source_share_\d+|.*_(median|raw|pooled|cluster_\d+)")  # metrics of the folded table
REPORTED = ("number", "run", "path", "aliases", "class_path", "iteration", "sha256", "results", "by_seed", "other_reference")


@dataclass(kw_only=True)
class Compare:
    """Writes `index.html`, self-contained, `report.json` with its numbers, and `best.json` with the recommended checkpoint.

    The recommended checkpoint is one of the front of quality and diversity; where realism is measured
    (`callbacks.metrics.realism`), also the first of each run with a realism of at least 0.95 is named. Runs with a `curve.csv`
    of `callbacks.adaptation_curve` share a plot of diversity over realism.

    Every checkpoint draws from the same seeds and is measured again. If the measurement protocols differ, nothing is
    ranked. Paths with equal content count once. The same checkpoints give the same bytes.

    Args:
        num_shown: samples in the grid of a checkpoint.
        num_nearest: samples nearest to a reference image that are shown beside it.
        inputs: image files that all checkpoints render; by default each reconstructs the reference images.
        quality, diversity: metrics of the Pareto front; by default the first available, see `metrics.pareto`.
    """

    num_shown: PositiveInt = 16
    num_nearest: PositiveInt = 8
    inputs: list[PathStr] | None = None
    quality: str | None = None
    diversity: str | None = None

    def __call__(
        self, paths: Sequence[Path], folder: Path, measure: Callable[[Path], tuple], loggers: Sequence[Any] = ()
    ) -> str:
        """Returns the text to print. `measure(path)` gives checkpoint, module, SampleMetrics after a test, and data module."""
        for path in paths:
            if path.is_dir():
                raise UserError(f"{path} is a folder; pass checkpoints, such as {shlex.quote(str(path))}/checkpoints/*.ckpt")
        entries: dict[str, CheckpointEntry] = {}
        for path in paths:
            digest = file_sha256(path) if path.is_file() else ""
            if digest in entries:  # such as last.ckpt
                entries[digest].aliases.append(path)
                continue
            checkpoint, module, metrics, data = measure(path)
            config = checkpoint.get("config") or {}
            facts = str(config.get("run_name") or path.stem), module.iteration, checkpoint["class_path"], config
            entries[digest] = entry = CheckpointEntry(path, *facts, metrics.results, sha256=digest)
            entry.other_reference = other_reference(checkpoint, data)
            entry.curve = read_curve(path.parent.parent / "curve.csv")
            collect_samples(entry, module, metrics, data, self)
        comparison = compare(in_order(list(entries.values())), self.quality, self.diversity)
        if module.global_rank > 0:
            return ""
        files = {"report.json": report_json(comparison), "best.json": best_json(comparison)}
        write_report(folder, {"index.html": page(comparison), **files})
        for logger in loggers:
            log(logger, comparison)
        return f"best: {comparison.reason}\n{shlex.quote(str(folder / 'index.html'))}"


def other_reference(checkpoint: Mapping[str, Any], data: Any) -> str:
    """The fingerprints of the reference images in training and now, if they differ or one is unknown; else an empty text."""
    key, reference = reference_set(data.sets())
    trained = checkpoint.get("data", {}).get(key, {}).get("fingerprint", "unknown")
    different = f"set {key}: fingerprint {trained[:12]} in training, {reference.fingerprint[:12]} in this measurement"
    return "" if trained == reference.fingerprint else different


def page(comparison: Comparison) -> bytes:
    entries, differing = comparison.entries, comparison.protocol_differences
    first, metrics = entries[0].results, side_by_side([entry.metrics for entry in entries])
    minor = {key: row for key, row in metrics.items() if MINOR.fullmatch(key)}
    points = {} if differing else dict(sorted(first.get("reference_points", {}).items()))
    return render(
        "compare",
        title=f"Comparison of {len(entries)} checkpoint{'s' * (len(entries) > 1)}",
        comparison=comparison,
        head=[{"text": entry.number, "notes": [entry.run, entry.path.stem], "style": ""} for entry in entries],
        metrics={
            "main": sorted(metrics.keys() - minor.keys()),
            "minor": minor | side_by_side([entry.results.get("diagnostics", {}) for entry in entries]),
            "points": points,
            "point_rows": side_by_side(list(points.values())),
        },
        plot=plot(comparison),
        curves=curves(entries),
        runs={entry.series: entry.run for entry in entries if entry.curve},
        realistic_level=REALISTIC,
        config={"differing": config_differences(entries), "complete": side_by_side([entry.config for entry in entries])},
        protocol={k: row[0] for k, row in side_by_side([first["protocol"]]).items() if k not in (*differing, "notes")},
        direction=direction,
        level=LEVEL,
    )


def plot(comparison: Comparison) -> Scatter | None:
    if comparison.axes is None:
        return None
    quality, diversity = comparison.axes
    points = {}
    for entry in (entry for entry in comparison.entries if entry.metrics):
        x, y = (entry.metrics[key] for key in comparison.axes)
        title = f"{entry.label}: {quality} {format_number(x)}, {diversity} {format_number(y)}"
        intervals = map(entry.interval, comparison.axes)
        points[entry.number] = Point(str(entry.number), x, y, title, entry.series, *intervals, entry.copies)
    front = [points[entry.number] for entry in comparison.front]
    description = f"{quality} against {diversity}. On the front: {', '.join(p.label for p in front) or 'none'}."
    better = "higher" if direction(quality) > 0 else "lower"
    labels = (f"{quality} ({better} is better)", f"{diversity} (higher is better)")
    return Scatter(list(points.values()), *labels, front, description)


def curves(entries: Sequence[CheckpointEntry]) -> Scatter | None:
    """Distance of pairs over realism in the course of the runs that have a curve; None unless one has a realism."""
    points = []
    for entry in {entry.series: entry for entry in entries}.values():
        rows = [row for row in entry.curve if math.isfinite(row["realism"] + row["pairs"])]
        for row in rows:
            values = ", ".join(f"{key} {format_number(row[key])}" for key in ("realism", "pairs", "intra"))
            title = f"{entry.run}, iteration {row['iteration']}: {values}"
            points.append(Point("", row["realism"], row["pairs"], title, entry.series))
    description = "Diversity against realism in the course of adaptations."
    labels = ("realism (higher is better)", "perceptual distance of pairs (higher is better)")
    return Scatter(points, *labels, description=description) if points else None


def report_json(comparison: Comparison) -> bytes:
    checkpoints = [
        {key: getattr(entry, key) for key in REPORTED} | {"nearest_psnr": [value for value, _ in entry.nearest]}
        for entry in comparison.entries
    ]
    return _json(
        checkpoints=checkpoints,
        protocols_differ_in=comparison.protocol_differences,
        config_differences=config_differences(comparison.entries),
        tests=[test._asdict() for test in comparison.tests],
        axes=comparison.axes,
        best=comparison.best and comparison.best.number,
        front=[entry.number for entry in comparison.front] if comparison.axes else None,
        reason=comparison.reason,
    )


def best_json(comparison: Comparison) -> bytes:
    """The recommended checkpoint (null: none), and what the choice depends on, by path."""
    best, entries = comparison.best, comparison.entries
    return _json(
        checkpoint=best and best.path,
        sha256=best and best.sha256,
        reason=comparison.reason,
        front=[entry.path for entry in comparison.front],
        copies=[entry.path for entry in entries if entry.copies],
        undecided=[entry.path for entry in entries if entry.undecided],
        realistic={entry.run: str(entry.path) for entry in comparison.realistic},
        values={key: {str(entry.path): entry.metrics.get(key) for entry in entries} for key in comparison.axes or ()},
    )


def _json(**content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()


def log(logger: Any, comparison: Comparison) -> None:
    """The pictures of each kind, and a table of all pictures and numbers, to a logger that takes them."""
    entries = comparison.entries
    kinds, keys = (sorted(set().union(*names)) for names in ((e.images for e in entries), (e.metrics for e in entries)))
    for kind in kinds if hasattr(logger, "log_image") else ():
        shown = [e for e in entries if kind in e.images]
        logger.log_image(f"comparison/{kind}", [e.images[kind] for e in shown], caption=[e.label for e in shown])
    if not hasattr(logger, "log_table"):
        return
    ranges = [key for key in keys if any(e.interval(key) for e in entries)]
    columns = ["checkpoint", "method", "iteration", "protocol", "verdict", *kinds, "nearest", *keys]
    columns += [f"{key}_{end}" for key in ranges for end in ("low", "high")]
    rows = []
    for e in entries:
        protocol = str(e.results["protocol"].get("hash", ""))[:8]  # only values of equal protocols are comparable
        row = [e.label, e.method, e.iteration, protocol, e.verdict, *map(e.images.get, kinds)]
        row += [np.concatenate([pair for _, pair in e.nearest]) if e.nearest else None, *map(e.metrics.get, keys)]
        rows.append(row + [end for key in ranges for end in e.interval(key) or (None, None)])
    logger.log_table("comparison/table", columns=columns, data=rows)
