"""The numbers of a comparison as tables."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metrics.pareto import direction, is_undecided, repeats_training_images
from reports.comparison import Comparison, PairedTest
from reports.page import Html, join, name, number, table, tag
from reports.subject import Subject

LEVEL = 0.05  # of the tests
MAX_PAIRS = 15  # shown at once; more are folded away
MINOR = re.compile(r"source_share_\d+|.*_(median|raw|pooled|cluster_\d+)")  # metrics in the second table


def metrics(comparison: Comparison) -> Html:
    """Values with their intervals beside the anchors, a column for each checkpoint; what matters less is folded away."""
    subjects = comparison.subjects
    keys = sorted({key for s in subjects for key in s.card["metrics"]})
    major, minor = ([key for key in keys if bool(MINOR.fullmatch(key)) is less] for less in (False, True))
    anchors = {} if comparison.unlike else subjects[0].card.get("anchors", {})
    names = [name(s.label) for s in subjects]
    rows = [[_directed(key), *(_value(comparison, s, key) for s in subjects)] for key in major]
    rows.append(["repeats training images?", *map(_copies, subjects)])
    whole = join([table(["metric", *names], rows, "Below a value its 95 % interval."), _worth(anchors)])
    found = [(key, "metrics") for key in minor]
    found += [(key, "diagnostics") for key in sorted({key for s in subjects for key in s.card.get("diagnostics", {})})]
    rest = [[key, *(number(s.card.get(group, {}).get(key)) for s in subjects)] for key, group in found]
    folded = tag("details", tag("summary", "Further values"), table(["metric", *names], rest))
    return join([whole, folded if rest else None])


def _worth(anchors: Mapping[str, Mapping[str, Any]]) -> Html | None:
    keys = sorted({key for values in anchors.values() for key in values})
    rows = [[f"anchor: {anchor}", *(number(values.get(key)) for key in keys)] for anchor, values in sorted(anchors.items())]
    caption = "What distances are worth: sets that are known, measured with checkpoint 1 in place of its samples."
    return table(["set", *keys], rows, caption) if rows else None


def _directed(key: str) -> Html:
    return join([key, tag("small", {-1: " low is good", 1: " high is good"}.get(direction(key), ""))])


def _value(comparison: Comparison, subject: Subject, key: str) -> Html:
    value, interval = subject.card["metrics"].get(key), interval_of(subject, key)
    below = tag("small", f"{number(interval[0])} to {number(interval[1])}") if interval else None
    counted = [s for s in comparison.subjects if not repeats_training_images(s.card)]  # copies have excellent distances
    values = [v for s in counted if (v := s.card["metrics"].get(key)) is not None]
    order = direction(key)
    ranked = order and not comparison.unlike and value is not None and len(values) > 1 and any(subject is s for s in counted)
    best = ranked and value == (max(values) if order > 0 else min(values))
    return tag("td", number(value), tag("small", "best value") if best else None, below, class_="best" if best else None)


def interval_of(subject: Subject, key: str) -> Sequence[float] | None:
    """[low, high] of a metric, where the measurement has one."""
    interval = (subject.card.get("intervals") or {}).get(key)
    return interval if isinstance(interval, list | tuple) and len(interval) == 2 and None not in interval else None


def _copies(subject: Subject) -> Html:
    if not subject.card["metrics"]:
        return tag("td", "no samples yet")
    if repeats_training_images(subject.card):
        return tag("td", "yes", class_="bad")
    return tag("td", "undecided" if is_undecided(subject.card) else "not found")


def tests(comparison: Comparison) -> Html | None:
    """One row for each pair, one column for each metric."""
    if not comparison.tests:
        return None
    keys = sorted({test.key for test in comparison.tests})
    found = {(t.first, t.second, t.key): t for t in comparison.tests}
    pairs = sorted({(t.first, t.second) for t in comparison.tests})
    rows = [[f"{b} against {a}", *(_test_cell(found.get((a, b, key))) for key in keys)] for a, b in pairs]
    sets = max(len(row) for s in comparison.subjects for row in s.by_seed.values())
    text = (
        f"Mean difference over {sets} sets of samples paired by seed, its 95 % interval, and p of the two-sided sign "
        f"permutation test, corrected for the {len(pairs)} pairs of a metric (Holm); bold below {LEVEL}. It tells of the "
        f"noise of sampling: another training of the same method may differ by more."
    )
    whole = table(["checkpoints", *keys], rows)
    folded = tag("details", tag("summary", f"{len(pairs)} pairs"), whole) if len(pairs) > MAX_PAIRS else whole
    return join([tag("p", text), folded])


def _test_cell(test: PairedTest | None) -> Html:
    if test is None:
        return tag("td", "–")
    interval = tag("small", f"{number(test.interval[0])} to {number(test.interval[1])}")
    p = tag("small", f"p {'< 0.001' if test.p < 0.001 else f'= {test.p:.3f}'}")
    return tag("td", tag("b", number(test.difference)) if test.p < LEVEL else number(test.difference), interval, p)
