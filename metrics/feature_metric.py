"""Base classes of all metrics: sets of samples that the ranks hold parts of, against a reference that every rank has."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from core.errors import UserError

Intervals = dict[str, list[float] | str]  # [low, high] by key, or the reason why there is none


class SampleSetMetric(Metric):
    """A metric of all ranks' samples that needs a minimum number of them; `compute` raises UserError below it.

    `value_names` are the names of its values, with * for a number, or where they begin with a key their ends.
    """

    full_state_update = False
    value_names: tuple[str, ...] = ("",)
    min_samples = 1
    min_reference, max_reference = 0, None  # images or feature rows

    @classmethod
    def missing_samples(cls, samples: int, reference: int = 0) -> str:
        """Why so many samples and reference rows are not measured; empty if they fit."""
        needed, found = f"{cls.min_samples} sample{'s' * (cls.min_samples > 1)}", f"{samples}"
        if cls.max_reference is not None and reference > cls.max_reference:
            return f"needs at most {cls.max_reference} reference image{'s' * (cls.max_reference > 1)}, got {reference}"
        if cls.min_reference:
            needed, found = f"{needed} and {cls.min_reference} of the reference", f"{found} and {reference}"
        return f"needs at least {needed}, got {found}" if samples < cls.min_samples or reference < cls.min_reference else ""

    def check(self, samples: int, reference: int = 0) -> None:
        """UserError if these are too few."""
        if reason := self.missing_samples(samples, reference):
            raise UserError(f"{type(self).__name__} {reason}")

    def intervals(self, values: Mapping[str, float], images: Tensor) -> Intervals:
        """95 % intervals of `values`, those of the last `compute`, for another draw of as many samples; `images` are all
        samples, bytes [N, 3, H, W]. Extremes, and scores that change with the number of samples, have none."""
        return {}


class FeatureMetric(SampleSetMetric):
    """`value` of the reference rows `reals` [m, d] and all ranks' rows, in an order that does not depend on the ranks."""

    min_samples, min_reference = 2, 2
    key = "value"  # of a metric with a single value
    indices: list[Tensor]
    fakes: list[Tensor]

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        self.reals = reals
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("fakes", default=[], dist_reduce_fx="cat")

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor | dict[str, Tensor]:
        """Of rows [m, d] and [n, d] on the CPU."""
        raise NotImplementedError

    def update(self, fakes: Tensor, first: int = 0) -> None:
        """Adds rows [N, d], numbers `first` and following; N may be 0. Every rank has to update before `compute`."""
        self.indices.append(torch.arange(first, first + len(fakes), device=fakes.device))
        self.fakes.append(fakes)

    def compute(self) -> Tensor | dict[str, Tensor]:
        order = dim_zero_cat(self.indices).argsort(stable=True)
        self.check(len(order), len(self.reals))
        self.rows = dim_zero_cat(self.fakes)[order].cpu()  # kept for the intervals
        return self.value(self.reals.cpu(), self.rows)
