"""The comparison as a page: tables and plot as plain data for `templates/compare.html`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from metrics.pareto import direction
from reports.checkpoint_entry import CheckpointEntry
from reports.comparison import Comparison, PairedTest, config_differences, side_by_side
from reports.page import format_number, render
from reports.scatter import Point, Scatter

LEVEL = 0.05  # significance level of the paired tests
MINOR = re.compile(r"source_share_\d+|.*_(median|raw|pooled|cluster_\d+)")  # metrics of the folded table


@dataclass(frozen=True)
class Cell:
    """A table cell: smaller lines below its text, and a CSS class."""

    text: str
    notes: Sequence[str] = ()
    style: str = ""


def page(comparison: Comparison) -> bytes:
    """The HTML file; sections without content are left out."""
    entries = comparison.entries
    sections = {
        "samples": [list(run) for _, run in groupby(entries, key=lambda entry: entry.group)],
        "metrics": _metrics(comparison),
        "tests": _tests(comparison),
        "plot": _plot(comparison),
        "nearest": [e for e in entries if e.nearest or e.verdict],
        "inputs": [e for e in entries if "inputs" in e.images],
        "provenance": [e for e in entries if "provenance" in e.images],
        "config": _config(entries),
        "protocol": _protocol(comparison),
    }
    return render(
        "compare",
        title=f"Comparison of {len(entries)} checkpoint{'s' * (len(entries) > 1)}",
        comparison=comparison,
        head=[Cell(str(e.number), [e.run, e.path.stem]) for e in entries],
        reference="reference images" if any(e.other_reference for e in entries) else "training images",
        protocol_rows=[[key, *map(_text_cell, row)] for key, row in comparison.protocol_differences.items()],
        sections={key: content for key, content in sections.items() if content},
    )


def _metrics(comparison: Comparison) -> dict[str, Any]:
    """Rows of the main table, of the folded one, and of the reference points."""
    entries = comparison.entries
    keys = sorted({key for e in entries for key in e.metrics})
    rows = [[_key_cell(key), *(_value_cell(comparison, e, key) for e in entries)] for key in keys if not MINOR.fullmatch(key)]
    minor = [("metrics", key) for key in keys if MINOR.fullmatch(key)]
    minor += [("diagnostics", key) for key in sorted({key for e in entries for key in e.results.get("diagnostics", {})})]
    first = entries[0].results
    points = {} if comparison.protocol_differences else first.get("reference_points", {})
    columns = sorted({key for values in points.values() for key in values})
    return {
        "rows": rows,
        "verdicts": list(map(_verdict_cell, entries)),
        "minor": [[key, *(format_number(e.results.get(group, {}).get(key)) for e in entries)] for group, key in minor],
        "columns": columns,
        "points": [[name, *(format_number(values.get(key)) for key in columns)] for name, values in sorted(points.items())],
    }


def _key_cell(key: str) -> Cell:
    return Cell(key, {-1: ["lower is better"], 1: ["higher is better"]}.get(direction(key), []))


def _value_cell(comparison: Comparison, entry: CheckpointEntry, key: str) -> Cell:
    value, interval, order = entry.metrics.get(key), entry.interval(key), direction(key)
    eligible = [e.metrics[key] for e in comparison.entries if not e.copies and e.metrics.get(key) is not None]
    ranked = order and not comparison.protocol_differences and len(eligible) > 1 and value is not None and not entry.copies
    best = ranked and value == (max(eligible) if order > 0 else min(eligible))
    return Cell(format_number(value), ["best value"] * bool(best) + _range(interval), "best" if best else "")


def _range(interval: Sequence[float] | None) -> list[str]:
    return [f"{format_number(interval[0])} to {format_number(interval[1])}"] if interval else []


def _verdict_cell(entry: CheckpointEntry) -> Cell:
    if not entry.metrics:
        return Cell("no samples yet")
    if entry.copies:
        return Cell("COPIES", style="bad")
    return Cell("UNDECIDED", style="undecided") if entry.undecided else Cell("no copying found")


def _tests(comparison: Comparison) -> dict[str, Any] | None:
    """A row for each pair of checkpoints, a column for each metric."""
    tests = {(test.first, test.second, test.key): test for test in comparison.tests}
    keys = sorted({test.key for test in comparison.tests})
    pairs = sorted({(test.first, test.second) for test in comparison.tests})
    rows = [[f"{b} against {a}", *(_test_cell(tests.get((a, b, key))) for key in keys)] for a, b in pairs]
    num_sets = max((len(row) for e in comparison.entries for row in e.by_seed.values()), default=0)
    return {"columns": keys, "rows": rows, "num_sets": num_sets, "level": LEVEL} if rows else None


def _test_cell(test: PairedTest | None) -> Cell:
    if test is None:
        return Cell("–")
    p = f"p {'< 0.001' if test.p < 0.001 else f'= {test.p:.3f}'}"
    return Cell(format_number(test.difference), [*_range(test.interval), p], "significant" if test.p < LEVEL else "")


def _plot(comparison: Comparison) -> Scatter | None:
    """Quality on the horizontal axis, diversity on the vertical one."""
    if comparison.axes is None:
        return None
    groups = list(dict.fromkeys(e.group for e in comparison.entries))
    points = {e.number: _point(e, comparison.axes, groups.index(e.group)) for e in comparison.entries if e.metrics}
    front = [points[e.number] for e in comparison.front]
    quality, diversity = comparison.axes
    description = f"{quality} against {diversity}. On the front: {', '.join(p.label for p in front) or 'none'}."
    labels = (f"{quality} (lower is better)", f"{diversity} (higher is better)")
    return Scatter(list(points.values()), *labels, front, description)


def _point(entry: CheckpointEntry, axes: tuple[str, str], series: int) -> Point:
    x, y = (entry.metrics[key] for key in axes)
    title = f"{entry.label}: {axes[0]} {format_number(x)}, {axes[1]} {format_number(y)}"
    return Point(str(entry.number), x, y, title, series, *map(entry.interval, axes), entry.copies)


def _config(entries: Sequence[CheckpointEntry]) -> dict[str, Any] | None:
    """Rows of the differing keys and of all keys."""
    differing, complete = config_differences(entries), side_by_side([e.config for e in entries])
    rows = {"differing": differing, "complete": complete} if complete else {}
    return {name: [[key, *map(_text_cell, row)] for key, row in table.items()] for name, table in rows.items()}


def _protocol(comparison: Comparison) -> dict[str, Any]:
    entries = comparison.entries
    protocol = {k: v for k, v in entries[0].results["protocol"].items() if k not in comparison.protocol_differences}
    files = [(e, [", ".join(map(str, [e.path, *e.aliases])), e.sha256[:16]]) for e in entries]
    return {
        "files": [[Cell(str(e.number), [e.run]), *(Cell(text, style="text") for text in texts)] for e, texts in files],
        "facts": {key: row[0] for key, row in side_by_side([protocol]).items() if key != "notes"},
        "notes": list(dict.fromkeys(note for e in entries for note in e.results["protocol"].get("notes", []))),
    }


def _text_cell(value: object) -> Cell:
    text = "not set" if value is None else str(value)
    return Cell(text if len(text) <= 200 else f"{text[:197]}…", style="text")
