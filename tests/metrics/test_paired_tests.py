from itertools import product

import pytest
import torch

from core.errors import UserError
from metrics.paired_tests import holm, paired_permutation


def brute_force(differences):
    """Share of all sign patterns whose mean is at least as far from zero."""
    patterns = product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= abs(sum(differences)) - 1e-12 for value in sums) / len(sums)


@pytest.mark.parametrize(
    "differences", [[0.5, -0.25, 2.0], [0.1, 0.1, 0.1, -0.3], [3.0, 1.0, -2.0, 0.7, 0.2, -1.1], [0.0, 0.0]]
)
def test_few_pairs_are_counted_out(differences):
    assert paired_permutation(torch.tensor(differences)) == pytest.approx(brute_force(differences))


def test_equal_signs_give_the_least_value_that_there_is():
    assert paired_permutation(torch.rand(10) + 0.1) == 2 / 2**10
    assert paired_permutation(-torch.ones(16)) == 2 / 2**16


def test_many_pairs_agree_with_the_normal_approximation_and_repeat():
    torch.manual_seed(0)
    differences = torch.randn(60) + 0.25
    z = differences.double().sum() / differences.double().square().sum().sqrt()
    expected = 2 * (1 - torch.distributions.Normal(0, 1).cdf(z.abs()).item())
    assert paired_permutation(differences) == pytest.approx(expected, abs=0.015) == paired_permutation(differences)
    assert paired_permutation(torch.ones(60)) == pytest.approx(1 / 20_001)


def test_without_a_difference_the_level_is_kept():
    """500 experiments of 8 pairs: p <= 0.05 in at most 5 % of them, by the exact test; three standard errors of slack."""
    torch.manual_seed(1)
    alarms = sum(paired_permutation(row) <= 0.05 for row in torch.randn(500, 8)) / 500
    assert 0.02 < alarms < 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 * 0.01; 2 * 0.03; max(0.06, 1 * 0.04)
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([]) == []


def test_no_pair_is_refused_and_one_proves_nothing():
    with pytest.raises(UserError, match="needs at least 1 pair, got 0"):
        paired_permutation(torch.zeros(0))
    assert paired_permutation(torch.ones(1)) == 1
