import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from core.errors import UserError
from metrics.frechet import FrechetDistance, extrapolated_frechet, frechet_distance

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


class Identity(nn.Module):
    """Lets torchmetrics compare rows of features: they travel as images of one pixel."""

    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def by_eigenvalues(reals: Tensor, fakes: Tensor) -> float:
    """The textbook formula, covariances and all."""
    x, y = reals.double().numpy(), fakes.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


def rows_with(mean: list[float], covariance: list[list[float]]) -> Tensor:
    """Rows whose sample mean and covariance are exactly these: the columns of a Hadamard matrix are uncorrelated."""
    basis = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]], dtype=torch.float64) * math.sqrt(3 / 4)
    return basis @ torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64)).T + torch.tensor(mean)


def test_golden_values() -> None:
    assert frechet_distance(SQUARE, 2 * SQUARE + 1).item() == pytest.approx(5.166667, abs=1e-6)
    diagonal = rows_with([0.0, 0.0], [[1.0, 0], [0, 4]]), rows_with([1.0, 2.0], [[4.0, 0], [0, 9]])
    assert frechet_distance(*diagonal).item() == pytest.approx(7.0, abs=1e-9)
    rotated = rows_with([0.0, 0.0], [[2.0, 1], [1, 2]]), rows_with([0.0, 0.0], [[1.0, 0], [0, 3]])
    assert frechet_distance(*rotated).item() == pytest.approx(0.516685, abs=1e-6)


@pytest.mark.parametrize(("m", "n", "d"), [(200, 150, 16), (40, 30, 24), (7, 100, 3)])
def test_equals_textbook_formula_for_any_number_of_rows(m: int, n: int, d: int) -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(m, d) @ torch.randn(d, d), torch.randn(n, d) + 0.3
    assert frechet_distance(reals, fakes).item() == pytest.approx(by_eigenvalues(reals, fakes), rel=1e-6)


def test_agrees_with_torchmetrics() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(200, 16), 1.5 * torch.randn(200, 16) + 0.2
    theirs = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    for rows, real in [(reals, True), (fakes, False)]:
        theirs.update(rows.double()[:, :, None, None], real=real)
    assert frechet_distance(reals, fakes).item() == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_agrees_with_torch_fidelity() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(200, 16).double(), 1.5 * torch.randn(150, 16).double() + 0.2
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(rows) for rows in (reals, fakes)), verbose=False)
    assert frechet_distance(reals, fakes).item() == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_symmetries_and_zero() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(30, 64).double(), torch.randn(20, 64).double() + 1
    value = frechet_distance(reals, fakes)
    turn = torch.linalg.qr(torch.randn(64, 64).double()).Q
    assert frechet_distance(fakes, reals).item() == pytest.approx(value.item(), rel=1e-9)
    assert frechet_distance(reals @ turn, fakes @ turn).item() == pytest.approx(value.item(), rel=1e-9)
    assert frechet_distance(3 * reals, 3 * fakes).item() == pytest.approx(9 * value.item(), rel=1e-9)
    assert abs(frechet_distance(reals, reals.flip(0)).item()) < 1e-9


def test_metric_over_updates_equals_function() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(5, 8), torch.randn(9, 8)
    metric = FrechetDistance(reals)
    for part in (fakes[:0], fakes[:4], fakes[4:]):
        metric.update(part)
    assert metric.compute() == frechet_distance(reals, fakes)


def test_extrapolation_takes_the_bias_of_the_samples_away() -> None:
    """Of two sets of one distribution, d = 16: a large reference, so that the truth is almost 0."""
    torch.manual_seed(0)
    reals, fakes = torch.randn(20_000, 16), torch.randn(2000, 16)
    plain = frechet_distance(reals, fakes).item()
    value, error = (number.item() for number in extrapolated_frechet(reals, fakes))
    assert plain > 0.04 and abs(value) < 0.3 * plain and 0 < error < 0.02
    assert (value, error) == tuple(number.item() for number in extrapolated_frechet(reals, fakes))


def test_extrapolation_is_the_intercept_of_numpy() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(50, 4), torch.randn(1200, 4)
    generator, numbers = torch.Generator().manual_seed(0), np.linspace(500, 1200, 15).astype(int)
    subsets = [fakes[torch.randperm(1200, generator=generator)[:number]] for number in numbers]
    line, covariance = np.polyfit(1 / numbers, [frechet_distance(reals, x).item() for x in subsets], 1, cov=True)
    value, error = extrapolated_frechet(reals, fakes)
    assert value.item() == pytest.approx(line[1], rel=1e-6)
    assert error.item() == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-6)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="needs at least 2 rows, got 1 and 9"):
        frechet_distance(torch.randn(1, 4), torch.randn(9, 4))
    with pytest.raises(UserError, match="needs at least 1000 samples, got 999"):
        extrapolated_frechet(torch.randn(5, 4), torch.randn(999, 4))
