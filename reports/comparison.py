"""What the measurements of several checkpoints say about their order: protocols, paired tests, the Pareto front."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch

from core.errors import UserError, nearest_hint
from metrics.intervals import mean_interval
from metrics.paired_tests import holm, paired_permutation
from metrics.pareto import DIVERSITY, QUALITY, REALISTIC, Candidate, choose, direction, first_key
from metrics.protocol import DECISIVE
from reports.checkpoint_entry import CheckpointEntry


class PairedTest(NamedTuple):
    """`second` minus `first` (numbers of checkpoints): mean over seeds, its 95 % interval, and p corrected for all pairs."""

    key: str
    first: int
    second: int
    difference: float
    interval: list[float]
    p: float
    num_sets: int

    @property
    def pair(self) -> tuple[int, int]:
        return self.first, self.second


class Comparison(NamedTuple):
    """If there are `protocol_differences`, nothing is ranked. `axes` are the keys of quality and diversity."""

    entries: list[CheckpointEntry]
    protocol_differences: dict[str, list[Any]]
    tests: list[PairedTest]
    axes: tuple[str, str] | None
    best: CheckpointEntry | None
    front: list[CheckpointEntry]
    reason: str

    def best_value(self, key: str) -> float | None:
        """The best value of a metric among at least two checkpoints that do not copy; None where nothing is ranked."""
        values = [entry.metrics[key] for entry in self.entries if not entry.copies and entry.metrics.get(key) is not None]
        ranked = direction(key) and not self.protocol_differences and len(values) > 1
        return max(values, key=lambda value: value * direction(key)) if ranked else None

    @property
    def realistic(self) -> list[CheckpointEntry]:
        """The first checkpoint that is realistic enough, of each run whose realism was measured: an adaptation loses diversity
        from there on without becoming more realistic."""
        first: dict[int, CheckpointEntry] = {}
        for entry in self.entries:
            if (entry.metrics.get("realism") or 0) >= REALISTIC:
                first.setdefault(entry.series, entry)
        return list(first.values())


def in_order(entries: Sequence[CheckpointEntry]) -> list[CheckpointEntry]:
    """Numbered from 1: runs (of one folder and name) in the order of the arguments, their checkpoints by iteration."""
    runs = list(dict.fromkeys((entry.path.parent, entry.run) for entry in entries))
    for entry in entries:
        entry.series = runs.index((entry.path.parent, entry.run))
    ordered = sorted(entries, key=lambda entry: (entry.series, entry.iteration))
    for number, entry in enumerate(ordered, 1):
        entry.number = number
    return ordered


def compare(entries: list[CheckpointEntry], quality: str | None = None, diversity: str | None = None) -> Comparison:
    """UserError for a metric that the checkpoints do not all have."""
    differing = protocol_differences([entry.results["protocol"] for entry in entries])
    available = [{key for key, value in e.metrics.items() if value is not None} for e in entries if e.metrics]
    shared = set.intersection(*available) if available else set()
    axes = (quality or first_key(QUALITY, shared), diversity or first_key(DIVERSITY, shared))
    for name, key in zip(("quality", "diversity"), axes, strict=True):
        if key is not None and key not in shared:
            hint = nearest_hint(key, shared) or f" Measured for all: {', '.join(sorted(shared)) or 'nothing'}."
            raise UserError(f"task.{name}={key}: not measured for all of these checkpoints.{hint}")
    tests = [] if differing else paired_tests(entries)
    if differing or None in axes:
        cause = f"the measurement protocols differ in {', '.join(differing)}"
        cause = cause if differing else "the checkpoints share no metrics of quality and diversity"
        return Comparison(entries, differing, tests, None, None, [], f"not ranked, {cause}")
    values = [[entry.metrics.get(key, math.nan) for key in axes] for entry in entries]
    sign = -1 if direction(axes[0]) > 0 else 1
    candidates = [Candidate(e.label, sign * x, y, e.copies, e.undecided) for e, (x, y) in zip(entries, values, strict=True)]
    choice = choose(candidates, *axes)
    best = None if choice.best is None else entries[choice.best]
    return Comparison(entries, differing, tests, axes, best, [entries[i] for i in choice.front], choice.reason)


def protocol_differences(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields that make numbers incomparable, if they differ, with the value of each protocol."""
    return differences([{key: protocol.get(key) for key in DECISIVE} for protocol in protocols])


def differences(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows of `side_by_side` whose values are not all equal."""
    return {key: row for key, row in side_by_side(mappings).items() if len(set(map(repr, row))) > 1}


def side_by_side(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """All dotted keys, sorted, with the value in each mapping, None where it has none."""
    flat = [_dotted(mapping) for mapping in mappings]
    return {key: [values.get(key) for values in flat] for key in sorted(set().union(*flat))}


def _dotted(node: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted keys; lists are values."""
    if not isinstance(node, Mapping):
        return {key: node}
    return {k: value for name, child in node.items() for k, value in _dotted(child, f"{key}.{name}".removeprefix(".")).items()}


def config_differences(entries: Sequence[CheckpointEntry]) -> dict[str, list[Any]]:
    """Differences of the configurations; the name and the folder of a run are no differences, not even inside other values."""
    plain = []
    for entry in entries:
        config = {key: value for key, value in _dotted(entry.config).items() if key != "resume"}
        for name in ("run_dir", "run_name"):
            pattern = re.compile(rf"(?<![\w-]){re.escape(str(config.pop(name, '') or '${none}'))}(?![\w-])")
            texts = [key for key, value in config.items() if isinstance(value, str) and not key.endswith("class_path")]
            config |= {key: pattern.sub(f"${{{name}}}", config[key]) for key in texts}
        plain.append(config)
    return differences(plain)


def paired_tests(entries: Sequence[CheckpointEntry]) -> list[PairedTest]:
    """Tests of every pair of checkpoints in every metric that both have by seed."""
    tests = []
    for key in sorted({key for entry in entries for key in entry.by_seed}):
        rows = [(e.number, torch.tensor(e.by_seed[key], dtype=torch.float64)) for e in entries if key in e.by_seed]
        pairs = [(a, b, y - x) for (a, x), (b, y) in combinations(rows, 2) if len(x) == len(y) > 1]
        p_values = holm([paired_permutation(difference) for _, _, difference in pairs])
        for (a, b, difference), p in zip(pairs, p_values, strict=True):
            tests.append(PairedTest(key, a, b, float(difference.mean()), mean_interval(difference), p, len(difference)))
    return tests
