import math

import pytest
import torch

from modules.ops.codes import code_usage, order0_bits


def test_usage_and_perplexity_of_known_codes():
    used, perplexity = code_usage(torch.tensor([[0, 0, 1, 1], [3, 3, 5, 5]]), 8)
    assert used == 0.5 and perplexity == pytest.approx(4)
    assert code_usage(torch.zeros(9, dtype=torch.long), 4) == (0.25, 1.0)


def test_order0_bits_of_a_known_distribution():
    train = torch.tensor([0] * 5 + [1] * 1)  # with one added to each of four codes: 6, 2, 1, 1 of 10
    expected = -(math.log2(0.6) + math.log2(0.2) + math.log2(0.1)) / 3
    assert order0_bits(train, torch.tensor([0, 1, 3]), 4) == pytest.approx(expected)
