"""The comparison as a page, `templates/compare.html`."""

import re

from metrics.pareto import direction
from reports.checkpoint_entry import CheckpointEntry
from reports.comparison import Comparison, config_differences, side_by_side
from reports.page import format_number, render
from reports.scatter import Point, Scatter

LEVEL = 0.05  # significance level of the paired tests
MINOR = re.compile(r"source_share_\d+|.*_(median|raw|pooled|cluster_\d+)")  # metrics of the folded table


def page(comparison: Comparison) -> bytes:
    """The HTML file; sections without content are left out."""
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
        config={"differing": config_differences(entries), "complete": side_by_side([entry.config for entry in entries])},
        protocol={k: row[0] for k, row in side_by_side([first["protocol"]]).items() if k not in (*differing, "notes")},
        direction=direction,
        level=LEVEL,
    )


def plot(comparison: Comparison) -> Scatter | None:
    """Quality on the horizontal axis, diversity on the vertical one."""
    if comparison.axes is None:
        return None
    points = {entry.number: _point(entry, comparison.axes) for entry in comparison.entries if entry.metrics}
    front = [points[entry.number] for entry in comparison.front]
    quality, diversity = comparison.axes
    description = f"{quality} against {diversity}. On the front: {', '.join(p.label for p in front) or 'none'}."
    labels = (f"{quality} (lower is better)", f"{diversity} (higher is better)")
    return Scatter(list(points.values()), *labels, front, description)


def _point(entry: CheckpointEntry, axes: tuple[str, str]) -> Point:
    x, y = (entry.metrics[key] for key in axes)
    title = f"{entry.label}: {axes[0]} {format_number(x)}, {axes[1]} {format_number(y)}"
    return Point(str(entry.number), x, y, title, entry.series, *map(entry.interval, axes), entry.copies)
