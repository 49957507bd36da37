import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import calculate_precision_recall_full

from core.errors import UserError
from metrics import manifold
from metrics.manifold import balanced_scores, manifold_scores

REALS, FAKES = (torch.tensor(rows)[:, None] for rows in ([0.0, 1, 3, 6, 10], [0.5, 0.6, 2.5, 20]))


@pytest.mark.parametrize(("k", "expected"), [(1, [0.75, 0.80, 1.25, 0.60]), (2, [0.75, 1.00, 1.25, 0.80])])
def test_golden_values(k: int, expected: list) -> None:
    scores = manifold_scores(REALS, FAKES, k)
    assert [scores[name].item() for name in ("precision", "recall", "density", "coverage")] == pytest.approx(expected)


def test_comparisons_are_those_of_the_authors() -> None:
    """A set with itself: spheres touch their own nearest row, which counts with <= and not with <."""
    scores = manifold_scores(REALS, REALS, 1)
    assert (scores["precision"], scores["recall"], scores["density"], scores["coverage"]) == (1, 1, 1, 1)
    equal = torch.zeros(6, 2)
    scores = manifold_scores(equal, equal, 3)
    assert (scores["precision"], scores["recall"], scores["density"], scores["coverage"]) == (1, 1, 0, 0)


def by_loops(reals: np.ndarray, fakes: np.ndarray, k: int) -> dict[str, float]:
    def radius(rows: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(rows[i] - row) for j, row in enumerate(rows) if j != i)[k - 1]

    real_radii, fake_radii = ([radius(rows, i) for i in range(len(rows))] for rows in (reals, fakes))
    gaps = np.array([[np.linalg.norm(real - fake) for fake in fakes] for real in reals])
    return {
        "precision": np.mean([any(gaps[i, j] <= r for i, r in enumerate(real_radii)) for j in range(len(fakes))]),
        "recall": np.mean([any(gaps[i, j] <= r for j, r in enumerate(fake_radii)) for i in range(len(reals))]),
        "density": np.mean([sum(gaps[i, j] < r for i, r in enumerate(real_radii)) / k for j in range(len(fakes))]),
        "coverage": np.mean([min(gaps[i]) < r for i, r in enumerate(real_radii)]),
    }


def test_equals_loops_and_torch_fidelity() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(30, 4).double(), 0.8 * torch.randn(24, 4).double() + 0.3
    scores = manifold_scores(reals, fakes, 3)
    assert {name: score.item() for name, score in scores.items()} == pytest.approx(by_loops(reals.numpy(), fakes.numpy(), 3))
    theirs = calculate_precision_recall_full(fakes, reals, neighborhood=3)
    assert [scores["precision"].item(), scores["recall"].item()] == pytest.approx([float(x) for x in theirs[:2]])


def test_agrees_with_the_authors_package() -> None:
    """Its precision and recall compare with < where those of Kynkäänniemi et al. compare with <=: no ties here."""
    torch.manual_seed(0)
    reals, fakes = torch.randn(60, 4).double(), 0.8 * torch.randn(50, 4).double() + 0.3
    theirs = compute_prdc(reals.numpy(), fakes.numpy(), nearest_k=5)
    assert {name: score.item() for name, score in manifold_scores(reals, fakes, 5).items()} == pytest.approx(theirs, rel=1e-4)


def test_expected_values_of_one_distribution() -> None:
    """Density 1 and coverage 1 - (99 · 98 · 97) / (199 · 198 · 197) on average."""
    torch.manual_seed(0)
    found = [manifold_scores(torch.randn(100, 8), torch.randn(100, 8)) for _ in range(40)]
    means = {name: torch.stack([scores[name] for scores in found]).mean().item() for name in found[0]}
    assert means["coverage"] == pytest.approx(1 - 99 * 98 * 97 / (199 * 198 * 197), abs=0.02)
    assert means["density"] == pytest.approx(1, abs=0.05)
    assert means["precision"] == pytest.approx(0.853, abs=0.03) and means["recall"] == pytest.approx(0.853, abs=0.03)


def test_dropping_modes_lowers_recall_and_coverage_only() -> None:
    torch.manual_seed(0)
    centers = 20 * torch.arange(3.0).repeat_interleave(40)[:, None]
    reals, fakes = torch.randn(120, 3) + centers, torch.randn(120, 3) + centers
    kept, dropped = manifold_scores(reals, fakes), manifold_scores(reals, fakes[:40].repeat(3, 1) + 0.1 * torch.randn(120, 3))
    assert dropped["recall"] < 0.5 * kept["recall"] and dropped["coverage"] < 0.5 * kept["coverage"]
    assert dropped["precision"] > 0.9 * kept["precision"] and dropped["density"] > 0.8 * kept["density"]


def test_sides_are_balanced() -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(50, 2), torch.randn(1000, 2)
    assert manifold_scores(reals, fakes)["coverage"] == 1
    balanced = balanced_scores(reals, fakes)["coverage"].item()
    assert balanced == pytest.approx(1 - 49 * 48 * 47 / (99 * 98 * 97), abs=0.06) == balanced_scores(reals, fakes)["coverage"]


def test_no_more_rows_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reals, fakes, seen = torch.randn(90, 2), torch.randn(90, 2), []
    monkeypatch.setattr(manifold, "MAX_ROWS", 60)
    scores = lambda *rows: seen.append([len(side) for side in rows[:2]]) or manifold_scores(*rows)  # noqa: E731
    monkeypatch.setattr(manifold, "manifold_scores", scores)
    balanced_scores(reals, fakes)
    assert seen == [[60, 60]] * 20


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="a sphere of 3 neighbors needs at least 4 rows, got 3 and 9"):
        manifold_scores(torch.zeros(3, 2), torch.zeros(9, 2))
