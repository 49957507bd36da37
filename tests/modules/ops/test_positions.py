import pytest
import torch

from modules.ops.positions import coordinate_map


@pytest.mark.parametrize("size", [(5, 7), (2, 2), (24, 33)])
def test_coordinates_are_exactly_one_at_opposite_ends(size):
    x, y = coordinate_map(*size, torch.zeros(1))[0]
    assert (x[:, 0] == -1).all() and (x[:, -1] == 1).all() and (y[0] == -1).all() and (y[-1] == 1).all()
    assert torch.allclose(x[0].diff(), torch.full((size[1] - 1,), 2 / (size[1] - 1)))


def test_a_side_of_length_one_is_at_zero():
    assert (coordinate_map(1, 4, torch.zeros(1))[0, 1] == 0).all() and coordinate_map(1, 1, torch.zeros(1)).abs().sum() == 0


def test_type_follows_the_given_tensor():
    assert coordinate_map(2, 3, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
