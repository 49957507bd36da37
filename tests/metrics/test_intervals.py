import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from core.errors import UserError
from metrics.frechet import frechet_distance
from metrics.intervals import mean_interval, share_bounds, student_interval, subsample_interval
from metrics.kernel import kernel_distance


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 11, 30, 99, 1000])
def test_student_quantile(freedom: int) -> None:
    half = stats.t.ppf(0.975, freedom) * 0.3
    assert student_interval(2.0, 0.3, freedom) == pytest.approx([2 - half, 2 + half], rel=1e-9)


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (3, 5), (5, 5), (20, 100), (0, 3), (99, 2000)])
def test_share_bounds_are_quantiles_of_beta(hits: int, number: int) -> None:
    low, high = share_bounds(hits, number)
    assert low == pytest.approx(stats.beta.ppf(0.05, hits, number - hits + 1) if hits else 0, abs=1e-6)
    assert high == pytest.approx(stats.beta.ppf(0.95, hits + 1, number - hits) if hits < number else 1, abs=1e-6)


def test_of_a_mean_is_the_one_of_textbooks() -> None:
    torch.manual_seed(0)
    values = torch.randn(40, dtype=torch.float64)
    low, high = subsample_interval(lambda picks: values[picks].mean(), 40, values.mean())
    expected = stats.t.interval(0.95, 39, values.mean().item(), values.std().item() / math.sqrt(40))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-3)
    assert (low + high) / 2 == pytest.approx(values.mean().item())
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.15)  # 200 subsets: 5 % of noise


def test_repeatable_and_without_repetition() -> None:
    seen: list[Tensor] = []
    intervals = [subsample_interval(lambda picks: seen.append(picks) or picks.double().mean(), 12, 5.5) for _ in range(2)]
    assert intervals[0] == intervals[1]
    assert all(len(picks.unique()) == len(picks) == 6 for picks in seen)


def mean_norm(reals: Tensor, fakes: Tensor) -> Tensor:
    return fakes.norm(dim=1).mean()


def pair_distance(reals: Tensor, fakes: Tensor) -> Tensor:
    return torch.nn.functional.pdist(fakes).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "number", "shift"),
    [(kernel_distance, 100, 0.2), (frechet_distance, 50, 0.5), (mean_norm, 50, 0.5), (pair_distance, 100, 0.2)],
)
def test_coverage(statistic, number: int, shift: float) -> None:  # noqa: ANN001
    """Of the value that as many samples have on average, with the reference as it is. 500 trials know it to 1 %."""
    torch.manual_seed(1)
    reals = torch.randn(20, 8)

    def draw() -> Tensor:
        return torch.randn(number, 8) * 1.3 + shift

    truth = torch.stack([statistic(reals, draw()) for _ in range(4000)]).mean().item()
    hits, trials = 0, 500
    for _ in range(trials):
        fakes = draw()
        low, high = subsample_interval(lambda picks, f=fakes: statistic(reals, f[picks]), number, statistic(reals, fakes))
        hits += low <= truth <= high
    assert 0.93 <= hits / trials <= 0.97


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UserError, match="needs at least 10 samples, got 9"):
        subsample_interval(lambda picks: 0.0, 9, 0.0)
    with pytest.raises(UserError, match="needs at least 2 values, got 1"):
        mean_interval(torch.zeros(1))
