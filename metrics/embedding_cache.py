"""Rows of a network for a set of images, in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_VALUES = 2**28  # of rows that are kept: 1 GB


class Embedded:
    """Rows of images, each computed once and kept; where they would need more than 1 GB, computed when asked for.

    Who asks for at most `held` rows at once, and compares them with `block` others at a time, stays below 2 GB.
    """

    def __init__(self, images: Tensor, embed: Callable[[Tensor], Tensor], most_values: int = MAX_VALUES) -> None:
        self.images, self.embed, self.kept = images, embed, None
        self.first = embed(images[:1])
        fit = max(1, most_values // max(1, self.first.numel()))
        self.block = max(1, fit // 6)
        self.held = fit if len(images) > fit else self.block
        if len(images) <= fit:
            rows = self._empty(len(images))
            rows[:1] = self.first
            self._fill(rows[1:], torch.arange(1, len(images), device=images.device))
            self.kept = rows

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        indices = indices.to(self.images.device)
        return self.kept[indices] if self.kept is not None else self._fill(self._empty(len(indices)), indices)

    def _empty(self, number: int) -> Tensor:
        return self.first.new_empty(number, self.first.shape[1])

    def _fill(self, rows: Tensor, indices: Tensor) -> Tensor:
        for start in range(0, len(rows), self.block):
            part = slice(start, start + self.block)
            rows[part] = self.embed(self.images[indices[part]])
        return rows
