"""Choice among several checkpoints: Pareto front of quality and diversity, without those that copy training images."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

QUALITY = (  # in order of preference: extrapolated Fréchet distances last, their standard errors never
    r"kid", r"kd_\w+(?<!_crops)", r"fid", r"fd_(?!infinity_)\w+", r"fid_infinity", r"fd_infinity_(?!error_)\w+",
    r"sifid_pool\d+", r"sifd_\w+(?<!_median)",
)  # fmt: skip
DIVERSITY = (r"pixel_diversity", r"(st_)?lpips\w*_pairs", r"pd_\w+_pairs")
HIGHER = r"precision\w*|recall\w*|density\w*|coverage\w*|inception_score\w*|source_share_min|realism"
REALISTIC = 0.95  # realism from which the checkpoints of an adaptation count as arrived


class Candidate(NamedTuple):
    """A measured checkpoint with its memorization verdict. Of `quality`, a distance, lower is better, of `diversity` higher."""

    name: str
    quality: float
    diversity: float
    copies: bool = False
    undecided: bool = False


class Choice(NamedTuple):
    """Indices of the best candidate (None: no recommendation) and of the front, from the best quality on; the reason."""

    best: int | None
    front: list[int]
    reason: str


def pareto_front(candidates: Sequence[Candidate]) -> list[int]:
    """Indices, from the best quality to the best diversity, of the candidates that no other dominates; of equal ones the first.
    Copies and values that are not finite are left out."""
    eligible = [i for i, c in enumerate(candidates) if not c.copies and math.isfinite(c.quality + c.diversity)]
    front: list[int] = []
    for i in sorted(eligible, key=lambda i: (candidates[i].quality, -candidates[i].diversity, i)):
        if not front or candidates[i].diversity > candidates[front[-1]].diversity:
            front.append(i)
    return front


def choose(candidates: Sequence[Candidate], quality: str = "quality", diversity: str = "diversity") -> Choice:
    """The candidate of the front with the smallest sum of `losses`: on a front with a knee the knee. Ties go to the more even
    losses, then to the better quality. `quality` and `diversity` are the names of the metrics in the reason; of a metric of
    which higher is better candidates hold the negative."""
    sign, extreme = (-1, "Highest") if direction(quality) > 0 else (1, "Lowest")
    front, total = pareto_front(candidates), len(candidates)
    copies = sum(candidate.copies for candidate in candidates)
    undecided = sum(candidate.undecided and not candidate.copies for candidate in candidates)
    if not front:
        cause = "all are excluded as copies" if copies == total else "none has finite values of both metrics"
        return Choice(None, [], f"None of {total} can be recommended: {cause}.")
    members = [candidates[i] for i in front]
    by_member = [losses(member, members) for member in members]
    index = min(range(len(front)), key=lambda i: (round(sum(by_member[i]), 9), max(by_member[i])))
    best = members[index]
    reason = f"{best.name} ({quality} {sign * best.quality:.4g}, {diversity} {best.diversity:.4g})."
    if copies:
        reason += f" {copies} of {total} are excluded as copies of training images."
    if undecided:
        this = " (including this one)" if best.undecided else ""
        reason += f" For {undecided} of {total}{this} the memorization verdict is UNDECIDED."
    if len(front) == 1:
        reason += " It is the only candidate." if total - copies == 1 else " No other is better in either."
    else:
        reason += (
            f" {extreme} {quality}: {members[0].name} ({sign * members[0].quality:.4g}); "
            f"highest {diversity}: {members[-1].name} ({members[-1].diversity:.4g}). "
            f"Of the {len(front)} on the Pareto front it has the smallest total loss: "
            f"{by_member[index][0]:.0%} of {quality} and {by_member[index][1]:.0%} of {diversity}."
        )
    return Choice(front[index], front, reason)


def losses(candidate: Candidate, front: Sequence[Candidate]) -> tuple[float, float]:
    """Against the best of the front, in parts of its largest absolute value, or of its range if that is larger."""
    qualities, diversities = ([c.quality for c in front], [c.diversity for c in front])
    spans = [max(max(values) - min(values), *map(abs, values)) or 1.0 for values in (qualities, diversities)]
    return (candidate.quality - min(qualities)) / spans[0], (max(diversities) - candidate.diversity) / spans[1]


def first_key(patterns: Iterable[str], keys: Iterable[str]) -> str | None:
    """The first match in the order of the patterns, then of the alphabet."""
    ordered = sorted(keys)
    return next((key for pattern in patterns for key in ordered if re.fullmatch(pattern, key)), None)


def direction(key: str) -> int:
    """-1 if lower is better, 1 if higher is better, 0 for metrics that rank nothing alone, such as diversity."""
    if re.fullmatch(HIGHER, key):
        return 1
    return -1 if re.match(r"(kid|fid|kd|fd|sifid|sifd)(?!_infinity_error)(_|$)", key) else 0
