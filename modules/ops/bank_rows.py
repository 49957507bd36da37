"""Storage of a limited number of rows in buffers."""

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """At most `capacity` rows of one shape and type in buffers: part of checkpoints, whose size is always the same."""

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(capacity, *shape, dtype=dtype))
        self.register_buffer("count", torch.tensor(0))

    def __len__(self) -> int:
        return int(self.count)

    @property
    def capacity(self) -> int:
        return len(self.values)

    @property
    def rows(self) -> Tensor:
        """The stored rows [n, *shape]."""
        return self.values[: len(self)]

    def append(self, rows: Tensor) -> None:
        """Adds rows [n, *shape]; ValueError beyond the capacity."""
        start, end = len(self), len(self) + len(rows)
        if end > self.capacity:
            raise ValueError(f"{end} rows exceed the bank's capacity of {self.capacity}")
        self.values[start:end] = rows.to(self.values)
        self.count.fill_(end)

    def clear(self) -> None:
        self.count.zero_()
