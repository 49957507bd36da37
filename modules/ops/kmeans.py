"""Clustering of feature vectors."""

import torch
from torch import Tensor

from modules.ops.nearest import nearest


def kmeans(points: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Centers [K, D] of points [M, D] by Lloyd's algorithm from random points; an empty cluster takes a random point. With
    fewer points than centers, points are repeated. `generator` is on the CPU."""

    def draw(count: int) -> Tensor:
        rounds = -(-count // len(points))
        order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])
        return points[order[:count].to(points.device)]

    centers = draw(num_clusters)
    for _ in range(iterations):
        members = nearest(points, centers)[1]
        counts = torch.bincount(members, minlength=num_clusters)
        sums = torch.zeros_like(centers).index_add_(0, members, points)
        centers = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        if empty.any():
            centers[empty] = draw(int(empty.sum()))
    return centers
