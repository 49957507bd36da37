"""What can be said about the order of checkpoints, and no more."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from typing import Any, NamedTuple

import torch

from core.errors import UserError
from metrics.intervals import mean_interval
from metrics.paired_tests import holm, paired_permutation
from metrics.pareto import (
    DIVERSITY,
    QUALITY,
    Candidate,
    Choice,
    choose,
    first_key,
    is_undecided,
    repeats_training_images,
)
from metrics.protocol import DECISIVE
from reports.page import flat
from reports.subject import Subject


class PairedTest(NamedTuple):
    """`second` minus `first` (numbers of checkpoints): mean over the seeds, its 95 % interval, and p corrected for all pairs
    of this metric."""

    key: str
    first: int
    second: int
    difference: float
    interval: list[float]
    p: float


class Comparison(NamedTuple):
    """All that the page shows. `unlike` are keys of the protocols with a value for each checkpoint; if there is one, nothing
    is ranked: no tests, no choice, no axes."""

    subjects: list[Subject]
    unlike: dict[str, list[Any]]
    tests: list[PairedTest]
    axes: tuple[str, str] | None
    choice: Choice | None


def in_order(subjects: Sequence[Subject]) -> list[Subject]:
    """Numbered from 1: runs as they were given, each one's checkpoints by iteration."""
    groups = list(dict.fromkeys(subject.group for subject in subjects))
    ordered = sorted(subjects, key=lambda s: (groups.index(s.group), s.iteration))
    for number, subject in enumerate(ordered, 1):
        subject.number = number
    return ordered


def compare(subjects: list[Subject], quality: str | None = None, diversity: str | None = None) -> Comparison:
    """The comparison of measured checkpoints; ValueError for a metric that they do not all have."""
    unlike = unlike_protocols([subject.card["protocol"] for subject in subjects])
    drawn = [subject for subject in subjects if subject.card["metrics"]]
    shared = set.intersection(*({k for k, v in s.card["metrics"].items() if v is not None} for s in drawn)) if drawn else set()
    axes = [quality or first_key(QUALITY, shared), diversity or first_key(DIVERSITY, shared)]
    for name, key in (("quality", quality), ("diversity", diversity)):
        if key is not None and key not in shared:
            near = get_close_matches(key, sorted(shared), 1, 0) or ["none"]
            raise UserError(f"task.{name}={key}: not measured for all of these checkpoints; the nearest key is {near[0]}")
    if unlike or None in axes:
        return Comparison(subjects, unlike, [] if unlike else paired_tests(subjects), None, None)
    candidates = [_candidate(subject, *axes) for subject in drawn]
    choice = choose(candidates, *axes)
    places = [subjects.index(subject) for subject in drawn]
    best = None if choice.best is None else places[choice.best]
    choice = choice._replace(best=best, front=[places[i] for i in choice.front])
    return Comparison(subjects, unlike, paired_tests(subjects), (axes[0], axes[1]), choice)


def _candidate(subject: Subject, quality: str, diversity: str) -> Candidate:
    card, values = subject.card, (subject.card["metrics"][key] for key in (quality, diversity))
    return Candidate(subject.label, *values, copies=repeats_training_images(card), undecided=is_undecided(card))


def unlike_protocols(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What makes their numbers incomparable: the decisive fields that differ, with the value of each."""
    return differences([{key: protocol.get(key) for key in DECISIVE} for protocol in protocols])


def differences(mappings: Sequence[Mapping[str, Any]], besides: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Dotted keys whose values are not all equal, with the value of each, None where there is none."""
    plain = [flat({key: value for key, value in mapping.items() if key not in besides}) for mapping in mappings]
    keys = sorted({key for values in plain for key in values})
    return {key: [v.get(key) for v in plain] for key in keys if len({repr(v.get(key)) for v in plain}) > 1}


def config_differences(subjects: Sequence[Subject]) -> dict[str, list[Any]]:
    """Those of the resolved configurations; a run's own name and folder inside of values count as equal."""
    plain = []
    for subject in subjects:
        config = flat(subject.config)
        own = {str(config.pop(key)): f"${{{key}}}" for key in ("run_dir", "run_name") if config.get(key)}
        for name, stand_in in own.items():
            place = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
            places = [k for k, v in config.items() if isinstance(v, str) and not k.endswith("class_path")]
            config |= {k: place.sub(stand_in, config[k]) for k in places}
        plain.append(config)
    return differences(plain, ("resume",))


def paired_tests(subjects: Sequence[Subject]) -> list[PairedTest]:
    """Of every pair of checkpoints, in every metric that both have by seed."""
    found = []
    for key in sorted({key for subject in subjects for key in subject.by_seed}):
        rows = [(s.number, torch.tensor(s.by_seed[key], dtype=torch.float64)) for s in subjects if key in s.by_seed]
        pairs = [(a, b, y - x) for (a, x), (b, y) in combinations(rows, 2) if len(x) == len(y) > 1]
        p_values = holm([paired_permutation(difference) for _, _, difference in pairs])
        for (a, b, difference), p in zip(pairs, p_values, strict=True):
            found.append(PairedTest(key, a, b, float(difference.mean()), mean_interval(difference), p))
    return found
