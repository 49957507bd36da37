"""Which of several checkpoints is the best: quality against diversity, with copying of training images as a constraint."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

QUALITY = (  # the first there; of Fréchet distances the extrapolated last, never its standard error
    r"kid", r"kd_\w+(?<!_crops)", r"fid", r"fd_(?!infinity_)\w+", r"fid_infinity", r"fd_infinity_(?!error_)\w+",
    r"sifid_pool\d+", r"sifd_\w+(?<!_median)",
)  # fmt: skip
DIVERSITY = (r"pixel_diversity", r"lpips\w*_pairs", r"pd_\w+_pairs")
HIGHER = r"precision\w*|recall\w*|density\w*|coverage\w*|inception_score\w*|source_share_min"
REPEATED = 30.0  # dB of the nearest training image, see `metrics.nearest_psnr`


class Candidate(NamedTuple):
    """A measured checkpoint: low `quality`, a distance, and high `diversity` are good; `copies` repeat training images,
    `undecided` ones have samples near to them that chance may explain."""

    name: str
    quality: float
    diversity: float
    copies: bool = False
    undecided: bool = False


class Choice(NamedTuple):
    """Positions of the best candidate (None: no recommendation) and of the front, by quality; `words` say why."""

    best: int | None
    front: list[int]
    words: str


def dominates(one: Candidate, other: Candidate) -> bool:
    """Nowhere worse and somewhere better."""
    no_worse = one.quality <= other.quality and one.diversity >= other.diversity
    return no_worse and (one.quality, one.diversity) != (other.quality, other.diversity)


def pareto_front(candidates: Sequence[Candidate]) -> list[int]:
    """Positions, from the best quality to the best diversity, of those that copy nothing and that none such dominates.

    Of equal ones the first counts. Values that are not finite are left out.
    """
    known = [i for i, c in enumerate(candidates) if not c.copies and math.isfinite(c.quality + c.diversity)]
    seen, front = set(), []
    for i in sorted(known, key=lambda i: (candidates[i].quality, -candidates[i].diversity, i)):
        values = candidates[i][1:3]
        if values not in seen and not any(dominates(candidates[j], candidates[i]) for j in known):
            seen.add(values)
            front.append(i)
    return front


def choose(candidates: Sequence[Candidate], quality: str = "quality", diversity: str = "diversity") -> Choice:
    """The point of the front that gives up least of the best quality and the best diversity on it, added up.

    What is given up counts in shares of the front's largest value, or, of distances that also go below zero, of their
    range: a few per cent of diversity are little, even where all of the front lies within a few per cent. On a front with a
    knee this is the knee. Of equal sums the more even one is taken, then that of better quality. Undecided ones take part,
    and the words tell how many; the names of the two metrics are for the words.
    """
    front = pareto_front(candidates)
    copies = sum(candidate.copies for candidate in candidates)
    undecided = sum(candidate.undecided and not candidate.copies for candidate in candidates)
    if not front:
        reason = "all of them repeat training images" if copies == len(candidates) else "none has both values"
        return Choice(None, [], f"None of {len(candidates)} can be recommended: {reason}.")
    given_up = [losses(candidates[i], [candidates[j] for j in front]) for i in front]
    place = min(range(len(front)), key=lambda i: (round(sum(given_up[i]), 9), max(given_up[i])))
    best, remarks = candidates[front[place]], ""
    if copies:
        remarks += f" {copies} of {len(candidates)} repeat training images and do not count."
    if undecided:
        this = " (this one included)" if best.undecided else ""
        remarks += f" For {undecided} of {len(candidates)}{this} it is undecided whether they repeat training images."
    start = f"{best.name} ({quality} {best.quality:.4g}, {diversity} {best.diversity:.4g}).{remarks}"
    if len(front) == 1:
        alone = len(candidates) - copies == 1
        return Choice(front[0], front, f"{start} {'It alone can be chosen.' if alone else 'No other is better in either.'}")
    lowest, highest = candidates[front[0]], candidates[front[-1]]
    trade = (
        f"The lowest {quality} has {lowest.name} ({lowest.quality:.4g}), the highest {diversity} {highest.name} "
        f"({highest.diversity:.4g}); of the {len(front)} that no other beats in both, this one gives up least of the two "
        f"together: {given_up[place][0]:.0%} of {quality} and {given_up[place][1]:.0%} of {diversity}."
    )
    return Choice(front[place], front, f"{start} {trade}")


def losses(candidate: Candidate, front: Sequence[Candidate]) -> tuple[float, float]:
    """Shares of quality and of diversity that `candidate` gives up against the best values of the front."""
    qualities, diversities = ([c.quality for c in front], [c.diversity for c in front])
    spans = [max(max(values) - min(values), *map(abs, values)) or 1.0 for values in (qualities, diversities)]
    return (candidate.quality - min(qualities)) / spans[0], (max(diversities) - candidate.diversity) / spans[1]


def first_key(patterns: Iterable[str], keys: Iterable[str]) -> str | None:
    """The first key, in the order of the patterns, then of the alphabet, that one of them fits as a whole."""
    ordered = sorted(keys)
    return next((key for pattern in patterns for key in ordered if re.fullmatch(pattern, key)), None)


def direction(key: str) -> int:
    """-1 for metrics of which low values are good, 1 for high ones, 0 for those that say nothing alone,
    such as diversity, of which noise has most, and standard errors."""
    if re.fullmatch(HIGHER, key):
        return 1
    return -1 if re.match(r"(kid|fid|kd|fd|sifid|sifd)(?!_infinity_error)(_|$)", key) else 0


def repeats_training_images(card: Mapping[str, Any]) -> bool:
    """What a measurement's verdict says; without one, whether a sample is nearer than 30 dB to a training image."""
    verdict = card.get("verdict")
    if isinstance(verdict, Mapping) and "copies" in verdict:
        return bool(verdict["copies"])
    return (card["metrics"].get("nearest_psnr_max") or -math.inf) > REPEATED


def is_undecided(card: Mapping[str, Any]) -> bool:
    """Whether the measurement's verdict leaves open if samples repeat training images."""
    return bool((card.get("verdict") or {}).get("undecided")) and not repeats_training_images(card)
