import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from metrics.inception_score import InceptionScore, inception_score


def test_golden_values() -> None:
    classes = 1000 * torch.eye(5).repeat(20, 1)  # certain, and each class as often
    assert inception_score(classes, splits=1).item() == pytest.approx(5)
    assert inception_score(torch.randn(1, 7).expand(50, -1)).item() == pytest.approx(1)  # always the same
    assert inception_score(torch.zeros(50, 7)).item() == pytest.approx(1)  # never certain


def test_agrees_with_torch_fidelity() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(600, 11)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    theirs = isc_features_to_metric(logits[order], splits=10, shuffle=False)["inception_score_mean"]
    assert inception_score(logits).item() == pytest.approx(theirs, rel=1e-6)


def test_metric_classifies_features() -> None:
    torch.manual_seed(0)
    rows, weights = torch.randn(5000, 6), torch.randn(9, 6)
    metric = InceptionScore(rows[:0], weights)
    metric.update(rows[2500:], 2500)
    metric.update(rows[:2500], 0)
    assert metric.compute().item() == pytest.approx(inception_score(rows @ weights.T).item(), rel=1e-6)
