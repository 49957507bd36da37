"""Rows of a network for a set of images, in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_VALUES = 2**28  # of the cached rows: 1 GB


class EmbeddingCache:
    """Rows of images, each computed once and cached; where they would need more than 1 GB, computed at each access.

    An access to at most `max_rows` rows, compared with `chunk` others at a time, stays below 2 GB.
    """

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
