import math

import numpy as np
import pytest
import torch

from modules.base import sampling_mode
from modules.ops.noise import randn
from tasks.interpolate import between
from tests.tasks.toys import ExactMethod, saved, task


def test_the_way_between_latents_is_an_arc():
    points = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    way = between(points, 3, loop=False)
    angles = torch.tensor([0, 30, 60, 90]) * math.pi / 180
    torch.testing.assert_close(way, 2 * torch.stack([angles.cos(), angles.sin()], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(between(points, 3, loop=True), way[[0, 1, 2, 3, 2, 1]], rtol=0, atol=1e-5)
    same = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    torch.testing.assert_close(between(same, 2, loop=False), torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))


def test_interpolate_random_images():
    frames = dict(task("interpolate", num_points=3, num_frames=4, size=[5, 6], seed=2)(ExactMethod()))
    assert list(frames) == [f"frame_{i:04d}" for i in range(12)]
    with sampling_mode(ExactMethod(), 2, range(3)):
        means = (randn(3, 2) + 5).mean(1)
    torch.testing.assert_close(torch.stack([frames[f"frame_{i:04d}"][0, 0, 0] for i in (0, 4, 8)]), means)
    assert len(dict(task("interpolate", num_points=3, num_frames=4, loop=False)(ExactMethod()))) == 9


def test_interpolate_between_files(tmp_path):
    files = [saved(tmp_path / f"{i}.png", np.full((48, 64, 3), value)) for i, value in enumerate((0, 255, 51))]
    frames = dict(task("interpolate", images=files, num_frames=5, loop=False)(ExactMethod()))
    values = [frames[f"frame_{i:04d}"].mean().item() for i in (0, 5, 10)]
    assert len(frames) == 11 and values == pytest.approx([-1, 1, -0.6], abs=1e-5)


def test_a_straight_line():
    points = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(between(points, 2, False, torch.lerp), torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
