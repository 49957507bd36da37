"""Diversity of samples as the mean perceptual distance of pairs, over all of them and around the training images."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import depth_first_order
from torch import Tensor

from metrics.feature_metric import Intervals, SampleSetMetric
from metrics.intervals import student_interval, subsample_interval
from metrics.nearest_psnr import exact_distances
from metrics.perceptual_distance import PerceptualDistance
from metrics.source_share import MAX_NAMED

MAX_VALUES = 2**28  # of the cached rows: 1 GB
PAIRS = 700  # of LatentPatch
CLUSTER = 50  # members of a cluster that are compared, in the code of Ojha et al.
MAX_IN_TABLE = 256  # samples whose distances are all computed, for the interval
MIN_MEMBERS = 4  # of a cluster that is not empty, for the interval: the spread of fewer is hardly known


class EmbeddingCache:
    """Rows of images, each computed once and cached; where they would need more than 1 GB, computed at each access. An access
    to `max_rows` rows, compared with `chunk` others at a time, stays below 2 GB."""

    def __init__(self, images: Tensor, embed: Callable[[Tensor], Tensor], max_values: int = MAX_VALUES) -> None:
        self.images, self.embed, self.cached = images, embed, None
        self.first = embed(images[:1])
        fit = max(1, max_values // max(1, self.first.numel()))
        self.chunk = max(1, fit // 6)
        self.max_rows = fit if len(images) > fit else self.chunk
        if len(images) <= fit:
            rows = self.first.new_empty(len(images), self.first.shape[1])
            rows[:1] = self.first
            self._fill(rows[1:], torch.arange(1, len(images), device=images.device))
            self.cached = rows

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.images.device)
        if self.cached is not None:
            return self.cached[indices]
        return self._fill(self.first.new_empty(len(indices), self.first.shape[1]), indices)

    def _fill(self, rows: Tensor, indices: Tensor) -> Tensor:
        for start in range(0, len(rows), self.chunk):  # into given memory: joining the parts would need twice as much
            part = slice(start, start + self.chunk)
            rows[part] = self.embed(self.images[indices[part]])
        return rows


class Pairs(NamedTuple):
    """Distances [P] of the images `left` and `right` [P], and the group [P] that each pair is averaged in."""

    left: Tensor
    right: Tensor
    distances: Tensor
    group: Tensor

    def mean(self) -> Tensor:
        """Mean over the groups of the mean over a group's pairs; NaN if there are none."""
        names, member = self.group.unique(return_inverse=True)
        sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, self.distances)
        return (sums / member.bincount(minlength=len(names))).mean()

    def interval(self) -> list[float]:
        """95 % interval [low, high] of `mean`, for other images in groups of these sizes, of three and more each: the
        delete-one jackknife of each group (Arvesen, "Jackknifing U-statistics", 1969), and Student's quantile at the degrees
        of freedom of Welch and Satterthwaite for their sum."""
        variances, freedom = [], []
        for name in self.group.unique():
            mine = self.group == name
            members, ends = torch.stack([self.left[mine], self.right[mine]]).unique(return_inverse=True)
            distances, num_images = self.distances[mine], len(members)
            sums = torch.zeros(num_images, dtype=torch.float64).index_add_(0, ends.flatten(), distances.repeat(2))
            without = 2 * (distances.sum() - sums) / ((num_images - 1) * (num_images - 2))
            variances.append((num_images - 1) * without.var(correction=0).item())
            freedom.append(num_images - 1)
        total = sum(variances)
        welch = total**2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True)) if total else 1
        return student_interval(self.mean().item(), math.sqrt(total) / len(variances), welch)


def random_pairs(num_images: int, count: int = PAIRS, seed: int = 0) -> Tensor:
    """`count` distinct pairs [P, 2] of `num_images` images, left < right; all pairs where there are no more."""
    pairs = torch.tril_indices(num_images, num_images, -1).flip(0).T
    generator = torch.Generator().manual_seed(seed)
    return pairs if len(pairs) <= count else pairs[torch.randperm(len(pairs), generator=generator)[:count]]


def walk(pairs: Tensor, num_images: int) -> Tensor:
    """A depth-first order of all images along the pairs, in which the two of most pairs are close."""
    graph = csr_array((torch.ones(len(pairs)), tuple(pairs.T)), shape=(num_images, num_images))
    order: dict[int, None] = {}
    for start in range(num_images):
        if start not in order:
            order |= dict.fromkeys(depth_first_order(graph, start, directed=False, return_predecessors=False).tolist())
    return torch.tensor(list(order))


def sweep(images: EmbeddingCache, pairs: Tensor, targets: EmbeddingCache | None = None) -> tuple[Pairs, Tensor]:
    """Squared distances of the rows of `pairs` [P, 2], in one group, and the nearest target [n] of each image, the first of
    equals; zeros without targets. Where rows are not cached, only pairs far apart on the `walk` compute one again."""
    order, nearest = walk(pairs, len(images)), torch.zeros(len(images), dtype=torch.long)
    positions = order.argsort()[pairs].sort(1).values
    distances = torch.zeros(len(pairs), dtype=torch.float64)
    for start in range(0, len(order), images.max_rows):
        part = order[start : start + images.max_rows]
        rows = images[part]
        nearest[part] = _nearest(rows, targets) if targets is not None else 0
        here = (positions[:, 1] >= start) & (positions[:, 1] < start + len(part))
        both = positions[:, 0] >= start
        for mine, inside in ((here & both, True), (here & ~both, False)):
            for some in mine.nonzero().flatten().split(images.chunk):
                first, last = positions[some].T
                others = rows[first - start] if inside else images[order[first]]
                others -= rows[last - start]  # of copies, in place: rows are large
                distances[some] = others.square_().sum(1).cpu().double()
        del rows  # before others are computed
    return Pairs(pairs[:, 0], pairs[:, 1], distances, torch.zeros(len(pairs), dtype=torch.long)), nearest


def _nearest(rows: Tensor, targets: EmbeddingCache) -> Tensor:
    parts = torch.arange(len(targets)).split(targets.max_rows)
    return torch.cat([exact_distances(rows, targets[part]).cpu() for part in parts], 1).argmin(1)


def intra_distances(samples: EmbeddingCache, nearest: Tensor) -> Pairs:
    """All pairs of samples that have the same `nearest` target [n] (Ojha et al., "Few-shot Image Generation via Cross-domain
    Correspondence", 2021; pairs as in the authors' code). Of more than 50 a random choice is compared; a cluster
    with fewer than two members has no pairs and is left out of `Pairs.mean`."""
    generator, clusters = torch.Generator().manual_seed(0), []
    for target in range(int(nearest.max()) + 1):
        members = (nearest == target).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)[:CLUSTER]].sort().values
        left, right = torch.triu_indices(len(members), len(members), 1)
        distances = _among(samples, members)[left, right]
        clusters.append(Pairs(members[left], members[right], distances, torch.full_like(left, target)))
    return Pairs(*map(torch.cat, zip(*clusters, strict=True)))


def _among(samples: EmbeddingCache, members: Tensor) -> Tensor:
    """Squared distances [k, k] of the members, right above the diagonal."""
    distances = torch.zeros(len(members), len(members), dtype=torch.float64)
    for start in range(0, len(members) if len(members) > 1 else 0, samples.max_rows):
        end = start + samples.max_rows
        rows = samples[members[start:end]]
        distances[start:end, start:end] = exact_distances(rows, rows).square()
        for other in range(end, len(members), samples.chunk):
            part = slice(other, other + samples.chunk)
            distances[start:end, part] = exact_distances(rows, samples[members[part]]).square()
        del rows
    return distances


class PerceptualDiversity(SampleSetMetric):
    """Diversity of the samples by the perceptual distance, beside that of the training images, uint8 [m, 3, H, W].

    With K the key of the distance: `K_pairs` the mean distance of 700 random pairs of samples; `K_ratio` that over the same
    of the training images, undefined for equal ones (LatentPatch); and of `intra_distances` around several training images
    `K_intra` the mean over the clusters that have pairs, `K_intra_all` with 0 for the others, `K_clusters` their number, and
    `K_cluster_<i>` the samples around each of up to 16 training images.
    """

    value_names = ("_pairs", "_ratio", "_intra", "_intra_all", "_clusters", "_cluster_*")
    min_samples = 2

    def __init__(self, reals: Tensor, distance: PerceptualDistance, pairs: int = PAIRS, max_values: int = MAX_VALUES) -> None:
        super().__init__(reals)
        self.distance, self.num_pairs, self.max_values = distance, pairs, max_values
        self.targets = EmbeddingCache(reals, distance, max_values)

    def value(self, reals: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        """Keeps `nearest`, the target of each sample, `intra`, the pairs behind K_intra, and of up to 256 samples `table`, all
        distances [N, N]."""
        key, num_images = self.distance.key, len(reals)
        samples = EmbeddingCache(fakes.to(self.reals.device), self.distance, self.max_values)
        pairs, self.nearest = sweep(samples, random_pairs(len(samples), self.num_pairs), self.targets)
        fits = len(samples) <= MAX_IN_TABLE and samples.cached is not None
        self.table = _among(samples, torch.arange(len(samples))) if fits else None
        values = {f"{key}_pairs": pairs.mean()}
        if num_images == 1:
            return values
        among = sweep(self.targets, random_pairs(num_images, self.num_pairs))[0].mean()
        if among > 0:
            values[f"{key}_ratio"] = values[f"{key}_pairs"] / among
        self.intra = intra_distances(samples, self.nearest)
        valid, mean = self.intra.group.unique().numel(), self.intra.mean()
        values |= {f"{key}_intra": mean, f"{key}_intra_all": mean.nan_to_num(0) * valid / num_images}
        sizes = self.nearest.bincount(minlength=num_images).double() if num_images <= MAX_NAMED else ()
        return values | {f"{key}_clusters": torch.tensor(float(valid))} | {f"{key}_cluster_{i}": n for i, n in enumerate(sizes)}

    def pairs_of(self, picks: Tensor) -> float:
        """The mean over random pairs among these samples, from the table."""
        pairs = random_pairs(len(picks), self.num_pairs, seed=int(picks[0]))
        left, right = picks[pairs].sort(1).values.T
        return float(self.table[left, right].mean())

    def intervals(self, values: Mapping[str, float], num_samples: int) -> Intervals:
        key = self.distance.key
        names = [name for name in (f"{key}_pairs", f"{key}_ratio") if name in values]
        if self.table is None:
            reason = f"above {MAX_IN_TABLE} samples, or where their rows do not fit into memory, use sampling_seeds"
            intervals = dict.fromkeys(names, reason)
        else:
            mean = values[names[0]]
            ends = subsample_interval(self.pairs_of, len(self.table), mean)
            intervals = {name: [values[name] * end / mean if mean else 0.0 for end in ends] for name in names}
        if f"{key}_intra" in values:
            sizes = self.nearest.bincount()
            enough = sizes[sizes > 0].min() >= MIN_MEMBERS
            reason = f"it needs {MIN_MEMBERS} samples around each training image"
            intervals[f"{key}_intra"] = self.intra.interval() if enough else reason
        return intervals
