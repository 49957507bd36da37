"""Is one model better than another? Tests on differences between pairs that share a seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import UserError

EXACT = 16  # pairs up to which all signs are tried
DRAWS = 20_000  # of random signs above that


def paired_permutation(differences: Tensor) -> float:
    """Two-sided p-value of the mean of `differences` [n] under the hypothesis that each could as well have the other sign.

    All 2^n signs up to 16 pairs, so the least possible value is 2 / 2^n; above, 20,000 fixed random ones with the given
    signs counted in (Phipson & Smyth 2010, arXiv 1603.05766, eq. 2). 1 if all are zero. ValueError without a pair.
    """
    if len(differences) == 0:
        raise UserError("a paired test needs a pair")
    differences = differences.double().cpu()
    count = len(differences)
    if count <= EXACT:
        bits = torch.arange(2**count).unsqueeze(1) >> torch.arange(count) & 1
    else:
        bits = torch.randint(2, (DRAWS, count), generator=torch.Generator().manual_seed(0))
    sums = ((2 * bits - 1).double() @ differences).abs()
    least = differences.sum().abs() * (1 - 1e-9)  # equal sums may differ in their last digits
    as_far = int((sums >= least).sum())
    return as_far / len(sums) if count <= EXACT else (as_far + 1) / (len(sums) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for several tests at once, in the given order (Holm 1979): the chance of any false alarm stays at the level."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
