"""Clustering of feature vectors."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from modules.ops.nearest import nearest


def kmeans(
    points: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 10, starts: Tensor | None = None
) -> Tensor:
    """Centers [K, D] of points [M, D] by Lloyd's algorithm from `starts` [K, D] or random points; an empty cluster takes the
    point farthest from its center. With fewer points than centers, points are repeated. `generator` is on the CPU."""
    if starts is None:
        rounds = -(-num_clusters // len(points))
        order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])
        starts = points[order[:num_clusters].to(points.device)]
    centers = starts.clone()
    for _ in range(iterations):
        distances, members = nearest(points, centers)
        centers = group_means(points, members, num_clusters, distances)
    return centers


def group_means(points: Tensor, labels: Tensor, num_groups: int, distances: Tensor | None = None) -> Tensor:
    """Means [K, D] of the points [M, D] of each label; of an empty group the farthest point by `distances` [M], by default from
    the mean of all."""
    counts = torch.bincount(labels, minlength=num_groups)
    means = points.new_zeros(num_groups, points.shape[1]).index_add_(0, labels, points) / counts.clamp(min=1).unsqueeze(1)
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        distances = (points - points.mean(0)).square().sum(1) if distances is None else distances
        far = distances.argsort(descending=True, stable=True)
        means[empty] = points[far[torch.arange(len(empty), device=far.device) % len(far)]]
    return means


def contingency(first: Tensor, second: Tensor, num_labels: int) -> Tensor:
    """Number [K, K] of items with label i in `first` [M] and label j in `second` [M]."""
    return torch.bincount(first * num_labels + second, minlength=num_labels**2).view(num_labels, num_labels)


def match_labels(old: Tensor, new: Tensor, num_labels: int) -> Tensor:
    """`new` [M] renumbered so that as many labels as possible are those of `old` [M]."""
    rows, columns = linear_sum_assignment(contingency(old, new, num_labels).cpu().numpy(), maximize=True)
    numbers = torch.empty(num_labels, dtype=torch.int64)
    numbers[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return numbers.to(new.device)[new]


def mutual_information(first: Tensor, second: Tensor, num_labels: int) -> float:
    """Normalized mutual information of two labelings, 1 where they are the same up to names; arithmetic mean of entropies."""
    joint = contingency(first, second, num_labels).double() / len(first)
    rows, columns = joint.sum(1), joint.sum(0)
    entropies = sum(float(torch.special.entr(shares).sum()) for shares in (rows, columns)) / 2
    information = float(torch.special.entr(rows).sum() + torch.special.entr(columns).sum() - torch.special.entr(joint).sum())
    return information / entropies if entropies > 0 else 1.0
