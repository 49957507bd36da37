import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import KernelInceptionDistance

from core.errors import UserError
from metrics import kernel
from metrics.kernel import KernelDistance, kernel_distance, kernel_distance_of_subsets, subset_kernel_distance

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


class Identity(nn.Module):
    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pair_by_pair(reals: Tensor, fakes: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    within = [mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]) for x in (reals, fakes)]
    return sum(within) - 2 * mean([k(a, b) for a in reals for b in fakes])


def test_golden_values() -> None:
    assert kernel_distance(SQUARE, 2 * SQUARE + 1).item() == pytest.approx(120.708333, abs=1e-6)
    assert kernel_distance(SQUARE, SQUARE).item() == pytest.approx(-1.072917, abs=1e-6)  # negative, not clipped


@pytest.mark.parametrize("at_once", [1, 12, 4096])
def test_unequal_sides_pair_by_pair(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(kernel, "MAX_KERNELS", at_once)
    torch.manual_seed(0)
    reals, fakes = torch.randn(5, 6), torch.randn(8, 6) + 0.5
    assert kernel_distance(reals, fakes).item() == pytest.approx(pair_by_pair(reals, fakes), rel=1e-9)


def test_agrees_with_torchmetrics_when_its_subset_is_everything() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(50, 16), torch.randn(50, 16) + 0.2
    theirs = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=50, normalize=True)
    # It would turn floats to bytes for its own network only; a custom one gets what is given.
    theirs.real_features, theirs.fake_features = [reals], [fakes]
    theirs._update_count = 1
    assert kernel_distance(reals, fakes).item() == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def test_unbiased_for_equal_distributions() -> None:
    torch.manual_seed(0)
    values = torch.stack([kernel_distance(torch.randn(20, 64), torch.randn(10, 64)) for _ in range(300)])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert (values < 0).float().mean() > 0.3


def test_subsets_above_the_limit_have_the_same_mean_and_are_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(60, 4), torch.randn(50, 4) + 1
    full = kernel_distance(reals, fakes)
    subset = subset_kernel_distance(reals, fakes, subsets=400, size=20)
    assert subset.item() == pytest.approx(full.item(), rel=0.05) and subset != full
    assert subset == subset_kernel_distance(reals, fakes, subsets=400, size=20)

    metric = KernelDistance(reals)
    metric.update(fakes)
    assert metric.compute() == full
    monkeypatch.setattr(kernel, "FULL_SAMPLE", 49)
    monkeypatch.setattr(kernel, "subset_kernel_distance", lambda *rows: subset_kernel_distance(*rows, size=20))
    metric = KernelDistance(reals)
    metric.update(fakes)
    assert metric.compute() == subset_kernel_distance(reals, fakes, size=20) != full


def test_table_gives_the_distance_of_any_subset() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(7, 6), torch.randn(20, 6) + 0.5
    distance = kernel_distance_of_subsets(reals, fakes)
    for picks in (torch.arange(20), torch.tensor([3, 11]), torch.randperm(20)[:9]):
        assert distance(picks) == pytest.approx(kernel_distance(reals, fakes[picks]).item(), rel=1e-9)


def test_agrees_with_torch_fidelity() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(50, 16).double(), torch.randn(50, 16).double() + 0.2
    theirs = kid_features_to_metric(reals, fakes, kid_subsets=1, kid_subset_size=50, verbose=False)
    assert kernel_distance(reals, fakes).item() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_one_row_is_refused() -> None:
    with pytest.raises(UserError, match="the kernel distance needs at least 2 rows, got 5 and 1"):
        kernel_distance(torch.randn(5, 4), torch.randn(1, 4))
