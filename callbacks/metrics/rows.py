"""Metrics of feature rows: the samples' rows of all ranks against reference rows that every rank has."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RowsMetric(Metric):
    """`value` of the reference rows `reals` [m, d] and all ranks' rows, in an order that the ranks do not change."""

    full_state_update = False
    fewest = (2, 2)  # rows of the reference and of the samples
    indices: list[Tensor]
    fakes: list[Tensor]

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        self.reals = reals
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("fakes", default=[], dist_reduce_fx="cat")

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor | dict[str, Tensor]:
        """Of rows [m, d] and [n, d] on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define value()")

    def update(self, fakes: Tensor, first: int = 0) -> None:
        """Adds rows [N, d], numbers `first` and following; N may be 0. Every rank has to update before `compute`."""
        self.indices.append(torch.arange(first, first + len(fakes), device=fakes.device))
        self.fakes.append(fakes)

    def compute(self) -> Tensor | dict[str, Tensor]:
        order = dim_zero_cat(self.indices).argsort(stable=True)
        return self.value(self.reals.cpu(), dim_zero_cat(self.fakes)[order].cpu())
