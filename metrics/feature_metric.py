"""Base classes of all metrics: sets of samples that the ranks hold parts of, against a reference that every rank has."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from core.errors import UserError
from metrics.intervals import mean_interval, subsample_interval

MAX_ROWS = 1000  # of either side, for the interval of a distance
Intervals = dict[str, list[float] | str]  # [low, high] by key, or the reason why there is none


class SampleSetMetric(Metric):
    """`value` of the reference `reals` and all ranks' samples, in an order that does not depend on the ranks.

    `value_names` are the names of its values, with * for a number, or where they begin with a key their ends. `value` sets
    `columns`, the contributions [n] of the samples to those values that are means over samples, by key.
    """

    full_state_update = False
    value_names: tuple[str, ...] = ("",)
    min_samples = 1
    min_reference, max_reference = 0, None  # images or feature rows

    def __init__(self, reals: Tensor) -> None:
        super().__init__()
        self.reals = reals
        self.columns: dict[str, Tensor] = {}
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("fakes", default=[], dist_reduce_fx="cat")

    def measure(self, samples: Tensor) -> Tensor:
        """The state that is kept of samples [N, …], one row each; N may be 0."""
        return samples

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor | dict[str, Tensor]:
        """The metric, or several by key, of the reference and the kept rows, both on the CPU."""
        raise NotImplementedError

    def update(self, samples: Tensor, first: int = 0) -> None:
        """Adds samples number `first` and following; there may be none. Every rank has to update before `compute`."""
        self.indices.append(torch.arange(first, first + len(samples), device=samples.device))
        self.fakes.append(self.measure(samples).to(samples.device))

    def compute(self) -> Tensor | dict[str, Tensor]:
        order = dim_zero_cat(self.indices).argsort(stable=True)
        if reason := self.missing_samples(len(order), len(self.reals)):
            raise UserError(f"{type(self).__name__} {reason}")
        self.rows = dim_zero_cat(self.fakes)[order].cpu()  # kept for the intervals
        return self.value(self.reals.cpu(), self.rows)

    @classmethod
    def missing_samples(cls, samples: int, reference: int = 0) -> str:
        """Why so many samples and reference rows are not measured; empty if they fit."""
        needed, found = f"{cls.min_samples} sample{'s' * (cls.min_samples > 1)}", f"{samples}"
        if cls.max_reference is not None and reference > cls.max_reference:
            return f"needs at most {cls.max_reference} reference image{'s' * (cls.max_reference > 1)}, got {reference}"
        if cls.min_reference:
            needed, found = f"{needed} and {cls.min_reference} of the reference", f"{found} and {reference}"
        return f"needs at least {needed}, got {found}" if samples < cls.min_samples or reference < cls.min_reference else ""

    def intervals(self, values: Mapping[str, float], num_samples: int) -> Intervals:
        """95 % intervals of `values`, those of the last `compute`, for another draw of as many samples (`num_samples`)."""
        return {key: mean_interval(column) for key, column in self.columns.items()}


class FeatureMetric(SampleSetMetric):
    """A metric of feature rows, `reals` [m, d] and those of the samples; crops have several of each image."""

    min_samples, min_reference = 2, 2
    key = "value"  # of a metric with a single value


class FeatureDistance(FeatureMetric):
    def of_subsets(self) -> Callable[[Tensor], Tensor]:
        """The distance of any subset of the rows, by their indices [k]."""
        reals = self.reals.cpu()
        return lambda picks: self.value(reals, self.rows[picks])

    def intervals(self, values: Mapping[str, float], num_samples: int) -> Intervals:
        if max(len(self.reals), len(self.rows)) > MAX_ROWS:
            return {self.key: f"above {MAX_ROWS} rows use sampling_seeds"}
        distance, rows = self.of_subsets(), torch.arange(len(self.rows)).view(num_samples, -1)
        return {self.key: subsample_interval(lambda picks: distance(rows[picks].flatten()), num_samples, values[self.key])}
