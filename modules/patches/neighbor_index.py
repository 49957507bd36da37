"""Exact nearest neighbors among many patches: most comparisons are left out because a bound shows that they cannot win."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

TILE = 2**24  # distances held at a time, 64 MB
SMALL = 2**21  # distances below which comparing everything is quicker than building an index
QUERY_BLOCK = 64
KEY_BLOCK = 24
FIRST_BLOCKS = 32  # key blocks that give a query block its first upper bound
ROUNDING = 1e-5  # of the squared norms; float32 errors of a matrix product stay below it


def nearest_scored(queries: Tensor, keys: Tensor, scale: Tensor | None = None, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """For each query [Q, D] the least score [Q] and the index [Q] of its key [M, D]; score = squared distance x `scale` [M].
    Compares everything, `tile` distances at a time; the quickest way on a GPU."""
    mean = keys.mean(0)  # float32 products of uncentered patches lose the small differences
    queries, keys = queries - mean, keys - mean
    norms = keys.square().sum(1)
    scores, indices = [], []
    for part in queries.split(max(1, tile // len(keys))):
        distances = torch.addmm(norms, part, keys.T, alpha=-2).add_(part.square().sum(1, keepdim=True)).clamp_(min=0)
        best = (distances if scale is None else distances.mul_(scale)).min(1)
        scores.append(best.values)
        indices.append(best.indices)
    return torch.cat(scores), torch.cat(indices)


class Projection:
    """Points [M, D] in `dims` + 1 numbers whose distance never exceeds the true distance and mostly nearly reaches it: the
    coordinates along the main axes of `points`, and the norm of what the axes leave over."""

    def __init__(self, points: Tensor, dims: int = 24) -> None:
        self.mean = points.mean(0)
        centered = points - self.mean
        spread = (centered.T @ centered).double().cpu()
        self.axes = torch.linalg.eigh(spread).eigenvectors[:, -dims:].flip(1).to(points)

    def __call__(self, points: Tensor) -> Tensor:
        centered = points - self.mean
        along = centered @ self.axes
        rest = (centered.square().sum(1) - along.square().sum(1)).clamp(min=0).sqrt()
        return torch.cat([along, rest.unsqueeze(1)], 1)


def halve(points: Tensor, size: int) -> Tensor:
    """Indices [B, at most `size`] of points in equal blocks of neighbors, by halving along the widest axis; the last
    repeats."""
    depth = max(0, -(-len(points) // size) - 1).bit_length()
    padded = -(-len(points) // 2**depth) * 2**depth
    blocks = torch.arange(padded, device=points.device).clamp(max=len(points) - 1).view(1, -1)
    for _ in range(depth):
        members = points[blocks]
        spread = members.square().mean(1) - members.mean(1).square()  # torch's var is several times slower
        widest = spread.argmax(1).view(-1, 1, 1).expand(-1, members.shape[1], 1)
        order = members.gather(2, widest)[..., 0].argsort(1)
        blocks = blocks.gather(1, order).view(2 * len(blocks), -1)
    return blocks


class NeighborIndex:
    """Keys [M, D] prepared for exact searches on the CPU. A block of keys is searched only if its bounding box, in the
    coordinates of `Projection`, is not farther from a block of queries than the worst match there so far; and a key in it only
    if its projected distance to some query is below that query's match. On photographs a few keys in a thousand remain."""

    def __init__(self, keys: Tensor) -> None:
        self.project = Projection(keys)
        self.keys = keys - self.project.mean
        self.norms = self.keys.square().sum(1)
        projected = self.project(keys)
        self.blocks = halve(projected, KEY_BLOCK)
        self.members = projected[self.blocks]
        self.low, self.high = self.members.amin(1), self.members.amax(1)
        self.member_norms = self.members.square().sum(2)

    def search(self, queries: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Like `nearest_scored`. Of keys that tie within float32 rounding any may be returned."""
        scale = queries.new_ones(len(self.keys)) if scale is None else scale
        projected, centered = self.project(queries), queries - self.project.mean
        scores = queries.new_empty(len(queries))
        indices = torch.empty(len(queries), dtype=torch.long, device=queries.device)
        for rows in halve(projected, min(QUERY_BLOCK, max(8, TILE // len(self.keys)))):
            scores[rows], indices[rows] = self._search_block(centered[rows], projected[rows], scale)
        return scores, indices

    def _search_block(self, queries: Tensor, projected: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        gaps = torch.maximum(self.low - projected.amax(0), projected.amin(0) - self.high).clamp(min=0).square().sum(1)
        gaps = (gaps - ROUNDING * projected.square().sum(1).amax()) * scale[self.blocks].amin(1)
        near = gaps.topk(min(FIRST_BLOCKS, len(gaps)), largest=False).indices
        candidates = self.blocks[near].flatten()[self._bounds(near, projected, scale).argmin(1)]
        worst = (queries - self.keys[candidates]).square().sum(1) * scale[candidates]
        near = (gaps <= worst.amax()).nonzero()[:, 0]
        possible = (self._bounds(near, projected, scale) <= worst.unsqueeze(1)).any(0).nonzero()[:, 0]
        return self._compare(queries, self.blocks[near].flatten()[possible], scale)

    def _bounds(self, blocks: Tensor, projected: Tensor, scale: Tensor) -> Tensor:
        """Lower bounds of the scores of all keys in some blocks, less what rounding may cost."""
        members, norms = self.members[blocks].flatten(0, 1), self.member_norms[blocks].flatten()
        squares = projected.square().sum(1, keepdim=True)
        bounds = torch.addmm(norms, projected, members.T, alpha=-2).add_(squares - ROUNDING * squares.amax())
        return bounds.mul_(scale[self.blocks[blocks].flatten()])

    def _compare(self, queries: Tensor, candidates: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Best candidate of each query; the few best again by differences, as products cannot tell near patches apart."""
        keys, scale = self.keys[candidates], scale[candidates]
        scores = torch.addmm(self.norms[candidates], queries, keys.T, alpha=-2).add_(queries.square().sum(1, keepdim=True))
        few = scores.mul_(scale).topk(min(4, len(candidates)), largest=False).indices
        best = ((queries.unsqueeze(1) - keys[few]).square().sum(2) * scale[few]).min(1)
        return best.values, candidates[few.gather(1, best.indices.unsqueeze(1))[:, 0]]


def nearest_keys(keys: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """`nearest_scored` among `keys` in the fastest way for the number and device of the points."""
    index = cache(lambda: NeighborIndex(keys))

    def search(queries: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        few = keys.is_cuda or len(queries) * len(keys) < SMALL
        return nearest_scored(queries, keys, scale) if few else index().search(queries, scale)

    return search
