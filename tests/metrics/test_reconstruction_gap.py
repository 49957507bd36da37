import pytest
import torch

from metrics.reconstruction_gap import autoencoder_test, reconstruction_gap, squared_errors


def test_medians_gap_and_ratio_by_hand():
    found = reconstruction_gap(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([3.0, 4.0, 100.0]))
    assert (found["median_training"], found["median_heldout"]) == (2, 4)
    assert found["gap"] == found["signed_gap"] == found["ratio"] == 0.5 and not found["memorizes"]  # three images prove nothing
    assert reconstruction_gap(torch.full((5,), 6.0), torch.full((5,), 4.0))["signed_gap"] == -0.5


def test_only_smaller_errors_in_training_are_memorization():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 100, generator=generator) + 1
    assert not reconstruction_gap(first, second)["memorizes"]
    assert reconstruction_gap(first * 0.6, second)["memorizes"] and not reconstruction_gap(first, second * 0.6)["memorizes"]


def test_the_p_value_of_equal_distributions_is_uniform():
    """L15: halves of one set."""
    values = torch.rand(200, 100, generator=torch.Generator().manual_seed(1))
    p = torch.tensor([reconstruction_gap(row[:50], row[50:])["p"] for row in values])
    assert (p < 0.05).double().mean() < 0.1 and 0.4 < p.median() < 0.7


def test_the_sources_have_a_gap_and_no_verdict():
    rows = torch.rand(3, 60, generator=torch.Generator().manual_seed(2)) + 1
    sets = {"training": rows[0], "heldout": rows[1], "sources": rows[2] * 0.5}
    found = autoencoder_test({"mse": sets, "other": sets})
    assert not found["memorizes"] and found["mse"]["sources_signed_gap"] > 0.3 and found["mse"]["sources_p"] < 0.01
    assert found["mse"]["num_images"] == {"training": 60, "heldout": 60, "sources": 60} and found["other"] == found["mse"]


def test_squared_errors():
    images = torch.rand(2, 3, 4, 5)
    assert squared_errors(images, images + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1)).tolist() == pytest.approx([0.25, 0.01])
