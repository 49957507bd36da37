"""Clustering of feature vectors."""

import torch
from torch import Tensor

from modules.ops.nearest import nearest


def kmeans(points: Tensor, number: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """`number` centres [K, D] of points [M, D] by Lloyd's algorithm from random points; an empty cluster takes a random point.

    With fewer points than centres, points are repeated. `generator` is a CPU generator.
    """

    def draw(count: int) -> Tensor:
        rounds = -(-count // len(points))
        order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])
        return points[order[:count].to(points.device)]

    centres = draw(number)
    for _ in range(iterations):
        members = nearest(points, centres)[1]
        counts = torch.bincount(members, minlength=number)
        sums = torch.zeros_like(centres).index_add_(0, members, points)
        centres = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        if empty.any():
            centres[empty] = draw(int(empty.sum()))
    return centres
