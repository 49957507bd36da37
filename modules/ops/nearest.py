"""Patches as rows of a matrix and their nearest neighbors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def extract(images: Tensor, patch: int, stride: int = 1) -> Tensor:
    """All patches [N, L, C * patch * patch] of images [N, C, H, W], row by row, without padding."""
    return F.unfold(images, patch, stride=stride).transpose(1, 2)


def nearest(queries: Tensor, keys: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Squared distance [Q] to, and index [Q] of, the nearest key [M, D] of every query [Q, D], `chunk` queries at a time."""
    norms = keys.square().sum(1)
    distances, indices = [], []
    for part in queries.split(chunk):
        best = torch.addmm(norms, part, keys.T, alpha=-2).min(1)
        distances.append((best.values + part.square().sum(1)).clamp(min=0))
        indices.append(best.indices)
    return torch.cat(distances), torch.cat(indices)
