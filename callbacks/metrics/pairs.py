"""Diversity of samples as the mean perceptual distance of pairs, over all of them and around the training images."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from callbacks.metrics.memorization import exact_distances
from callbacks.metrics.perceptual import PerceptualDistance

PAIRS = 700  # of LatentPatch
CLUSTER = 50  # members of a cluster that are compared, in the code of Ojha et al.
MOST_VALUES = 2**28  # of rows that are kept: 1 GB
MOST_IN_TABLE = 256  # samples whose distances are all computed, for the interval


class Pairs(NamedTuple):
    """Distances [P] of the images `left` and `right` [P], and the group [P] that each pair is averaged in."""

    left: Tensor
    right: Tensor
    distances: Tensor
    group: Tensor

    def mean(self) -> Tensor:
        """Mean over the groups of the mean over a group's pairs; NaN if there are none."""
        names, place = self.group.unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, place, self.distances)
        return (sums / place.bincount(minlength=len(names))).mean()


class Embedded:
    """Rows of images, each computed once and kept; where they would need more than 1 GB, computed when asked for."""

    def __init__(self, images: Tensor, embed: Callable[[Tensor], Tensor], most_values: int = MOST_VALUES) -> None:
        self.images, self.embed = images, embed
        first = embed(images[:1])
        fits = first.numel() * len(images) <= most_values
        self.kept = torch.cat([first, embed(images[1:])]) if fits and len(images) > 1 else first if fits else None
        self.block = max(1, most_values // max(1, 4 * first.numel()))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.images.device)
        return self.embed(self.images[indices]) if self.kept is None else self.kept[indices]


def random_pairs(number: int, count: int = PAIRS, seed: int = 0) -> Tensor:
    """`count` distinct pairs [P, 2] of `number` images, left < right; all pairs where there are no more."""
    total = number * (number - 1) // 2
    generator = torch.Generator().manual_seed(seed)
    picks = torch.arange(total) if total <= count else torch.randperm(total, generator=generator)[:count]
    left = (((8 * picks.double() + 1).sqrt() - 1) / 2).floor().long()  # pair k is in row r of a triangle: r (r + 1) / 2 <= k
    left -= (left * (left + 1) // 2 > picks).long()
    left += ((left + 1) * (left + 2) // 2 <= picks).long()
    return torch.stack([picks - left * (left + 1) // 2, left + 1], 1)


def pair_distances(images: Embedded, pairs: Tensor) -> Pairs:
    """Squared distances of the rows of `pairs` [P, 2], in one group."""
    parts = [(images[part[:, 0]] - images[part[:, 1]]).square().sum(1) for part in pairs.split(images.block)]
    distances = torch.cat(parts).cpu().double() if parts else torch.zeros(0, dtype=torch.float64)
    return Pairs(pairs[:, 0], pairs[:, 1], distances, torch.zeros(len(pairs), dtype=torch.long))


def intra_distances(samples: Embedded, targets: Tensor, most: int = CLUSTER, seed: int = 0) -> tuple[Pairs, Tensor]:
    """All pairs within the clusters of samples around target rows [m, D], and the target [n] of each sample (Ojha et al.,
    "Few-shot Image Generation via Cross-domain Correspondence", 2021; pairs as in the authors' code).

    Each sample belongs to its nearest target, the first of equals. Of more than `most` members a random choice is compared.
    A cluster with fewer than two members has no pairs: it is left out of `Pairs.mean`.
    """
    order = torch.arange(len(samples))
    nearest = torch.cat([exact_distances(samples[part], targets).argmin(1).cpu() for part in order.split(samples.block)])
    generator, found = torch.Generator().manual_seed(seed), []
    for target in range(len(targets)):
        members = (nearest == target).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)[:most]].sort().values
        rows = samples[members] if len(members) > 1 else targets[:0]
        left, right = torch.triu_indices(len(rows), len(rows), 1)
        distances = exact_distances(rows, rows).square().cpu().double()[left, right]
        found.append(Pairs(members[left], members[right], distances, torch.full_like(left, target)))
    return Pairs(*map(torch.cat, zip(*found, strict=True))), nearest


class PerceptualDiversity(Metric):
    """Diversity of all ranks' samples by the perceptual distance, beside that of the training images, bytes [m, 3, H, W].

    With K the key of the distance: `K_pairs` the mean distance of 700 random pairs of samples; `K_ratio` that over the same
    of the training images, undefined for equal ones (LatentPatch); and of `intra_distances` around several training images
    `K_intra` the mean over the clusters that have pairs, `K_intra_all` with 0 for the others, `K_clusters` their number.
    Memory: the bytes of all samples and at most 1 GB of rows. Order and ranks do not matter.
    """

    higher_is_better = True
    full_state_update = False
    fewest = 2
    indices: list[Tensor]
    samples: list[Tensor]

    def __init__(self, reals: Tensor, distance: PerceptualDistance, pairs: int = PAIRS, cluster: int = CLUSTER) -> None:
        super().__init__()
        self.distance, self.num_pairs, self.cluster = distance, pairs, cluster
        self.targets = Embedded(reals, distance)
        self.nearest = torch.zeros(0, dtype=torch.long)  # target of each sample, at the last compute
        self.table: Tensor | None = None  # all distances [N, N] of up to 256 samples, at the last compute
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("samples", default=[], dist_reduce_fx="cat")

    def update(self, fakes: Tensor, first: int) -> None:
        """Adds bytes [N, 3, H, W], samples number `first` and following; N may be 0."""
        self.indices.append(torch.arange(first, first + len(fakes), device=fakes.device))
        self.samples.append(fakes)

    def compute(self) -> dict[str, Tensor]:
        key = self.distance.key
        order = dim_zero_cat(self.indices).argsort()
        samples = Embedded(dim_zero_cat(self.samples)[order], self.distance)
        values = {f"{key}_pairs": pair_distances(samples, random_pairs(len(samples), self.num_pairs)).mean()}
        self.table = None
        if len(samples) <= MOST_IN_TABLE and samples.kept is not None:
            self.table = exact_distances(samples.kept, samples.kept).square().cpu().double()
        if len(self.targets) == 1:
            return values
        among = pair_distances(self.targets, random_pairs(len(self.targets), self.num_pairs)).mean()
        if among > 0:
            values[f"{key}_ratio"] = values[f"{key}_pairs"] / among
        intra, self.nearest = intra_distances(samples, self.targets[torch.arange(len(self.targets))], self.cluster)
        valid = intra.group.unique().numel()
        values |= {f"{key}_intra": intra.mean(), f"{key}_clusters": torch.tensor(float(valid))}
        return values | {f"{key}_intra_all": values[f"{key}_intra"].nan_to_num(0) * valid / len(self.targets)}

    def pairs_of(self, picks: Tensor) -> float:
        """The mean distance of as many random pairs among these samples, from the table: for the interval."""
        pairs = random_pairs(len(picks), self.num_pairs, seed=int(picks[0]))
        return float(self.table[picks[pairs[:, 0]], picks[pairs[:, 1]]].mean())

    def intra_of(self, picks: Tensor) -> float:
        """The same of `K_intra`."""
        nearest, means = self.nearest[picks], []
        for members in (picks[nearest == target] for target in nearest.unique()):
            left, right = torch.triu_indices(len(members), len(members), 1)
            means += [self.table[members[left], members[right]].mean()] if len(left) else []
        return float(torch.stack(means).mean()) if means else math.nan
