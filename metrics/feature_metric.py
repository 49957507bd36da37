"""Metrics of feature rows: the samples' rows of all ranks against reference rows that every rank has; and how few a metric
refuses to measure."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from core.errors import UserError


def too_few(samples: int, fewest: int) -> str:
    """Why so few samples are not measured; empty if they are enough."""
    return f"it needs {fewest} sample{'s' * (fewest > 1)}, there are {samples}" if samples < fewest else ""


def refuse(metric: Metric, reason: str) -> None:
    """ValueError if there is a reason."""
    if reason:
        raise UserError(f"no {type(metric).__name__}: {reason}")


class RowsMetric(Metric):
    """`value` of the reference rows `reals` [m, d] and all ranks' rows, in an order that the ranks do not change.

    `compute` raises ValueError where a side has fewer than `fewest` rows.
    """

    full_state_update = False
    fewest = (2, 2)  # rows of the reference and of the samples
    indices: list[Tensor]
    fakes: list[Tensor]

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        self.reals = reals
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("fakes", default=[], dist_reduce_fx="cat")

    @classmethod
    def shortage(cls, reals: int, fakes: int) -> str:
        """Why so few rows are not measured; empty if they are enough."""
        if not cls.fewest[0]:
            return too_few(fakes, cls.fewest[1])
        if reals >= cls.fewest[0] and fakes >= cls.fewest[1]:
            return ""
        needed = " and ".join(str(least) for least in dict.fromkeys(cls.fewest))
        sides = "a side" if cls.fewest[0] == cls.fewest[1] else "of the reference and of the samples"
        return f"it needs {needed} rows {sides}, there are {reals} and {fakes}"

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor | dict[str, Tensor]:
        """Of rows [m, d] and [n, d] on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define value()")

    def update(self, fakes: Tensor, first: int = 0) -> None:
        """Adds rows [N, d], numbers `first` and following; N may be 0. Every rank has to update before `compute`."""
        self.indices.append(torch.arange(first, first + len(fakes), device=fakes.device))
        self.fakes.append(fakes)

    def compute(self) -> Tensor | dict[str, Tensor]:
        order = dim_zero_cat(self.indices).argsort(stable=True)
        refuse(self, self.shortage(len(self.reals), len(order)))
        return self.value(self.reals.cpu(), dim_zero_cat(self.fakes)[order].cpu())
