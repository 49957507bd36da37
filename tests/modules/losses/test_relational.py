"""Values that papers and formulas give for hand-made features."""

import math

import pytest
import torch
import torch.nn.functional as F

from modules.losses.relational import contrastive_loss, cosine_table, distance_consistency


def test_cosines():
    rows, columns = torch.randn(3, 2, 4), torch.randn(5, 2, 4)
    expected = F.cosine_similarity(rows.flatten(1)[:, None], columns.flatten(1)[None], dim=2)
    assert torch.allclose(cosine_table(rows, columns), expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # a rounding by 0.004 would be 0.06 at DCL's temperature
        assert torch.allclose(cosine_table(rows, columns), expected, atol=1e-6)


def with_cosines(first: list[float], dim: int = 8) -> torch.Tensor:
    """Four unit vectors, the first of which has these cosines with the others, which are orthogonal to one another."""
    vectors = torch.eye(4, dim)
    for i, cosine in enumerate(first, start=1):
        vectors[0, i] = cosine
    vectors[0, 0] = math.sqrt(max(0.0, 1 - sum(c * c for c in first)))
    return vectors


def test_value_of_the_released_code():
    """N = 4, one anchor with source cosines (1, 0, 0), everything else 0."""
    orthogonal, near = torch.eye(4, 8), with_cosines([1.0, 0, 0])
    source = [near, orthogonal, orthogonal, orthogonal]
    assert 1000 * distance_consistency(source, [orthogonal] * 4).item() == pytest.approx(10.2737, abs=2e-4)
    assert 1000 * distance_consistency([orthogonal] * 4, source).item() == pytest.approx(9.9583, abs=2e-4)


def test_equal_and_rescaled_features_have_no_loss():
    layers = [torch.randn(4, 3, 2, 2, requires_grad=True) for _ in range(4)]
    same = distance_consistency([layer.detach() for layer in layers], layers)
    assert same.item() == pytest.approx(0, abs=1e-7)
    other = [torch.randn(4, 3, 2, 2) for _ in range(4)]
    scaled = distance_consistency([7 * layer for layer in other], [0.1 * layer for layer in layers])
    assert scaled.item() == pytest.approx(distance_consistency(other, layers).item(), rel=1e-5)
    assert scaled > 0


def cast(function):
    """The loss in float64: cosines are float32 in training."""

    def run(*features, **settings):
        tensors = [feature.double() for feature in features]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return function(*tensors, **settings).item()

    return run


def test_contrastive_values():
    loss = cast(contrastive_loss)
    unit, same = torch.eye(4, 20), torch.ones(4, 20)
    negatives = torch.eye(14, 20)[4:]
    assert loss(unit, unit) == pytest.approx(1.8746e-6, rel=1e-4)
    assert loss(unit, unit) == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.07)), rel=1e-6)
    assert loss(same, same) == pytest.approx(math.log(4))
    assert loss(unit, unit, negatives) == pytest.approx(6.2487e-6, rel=1e-4)
    assert loss(same, same, torch.ones(10, 20)) == pytest.approx(2.397895, abs=1e-6)
    opposed = loss(torch.eye(1, 20), torch.eye(2, 20)[1:], torch.eye(1, 20).expand(10, 20))
    assert opposed == pytest.approx(16.588299, abs=1e-5)


def test_order_of_the_latents_does_not_matter():
    a, b = torch.randn(2, 5, 7)
    order = torch.randperm(5)
    assert contrastive_loss(a[order], b[order]).item() == pytest.approx(contrastive_loss(a, b).item(), rel=1e-5)
