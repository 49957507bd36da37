import pytest
import torch

from core.errors import UserError
from tests.tasks.toys import ExactMethod, task


def test_animate_passes_its_options_and_orders_the_frames():
    frames = dict(task("animate", num_frames=12, options={"alpha": 0.5, "beta": 0.5, "start_scale": 2})(ExactMethod()))
    assert list(frames) == [f"frame_{i:04d}" for i in range(12)] == sorted(frames)
    values = torch.stack([frame.mean() for frame in frames.values()])
    torch.testing.assert_close(values, torch.linspace(-1, 1, 12) * 0.25 + 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("animate", {"num_frames": 1}, "task.num_frames"),
        ("animate", {"frames_per_second": 0}, "task.frames_per_second"),
        ("interpolate", {"frames_per_second": 60}, "task.frames_per_second"),
        ("interpolate", {"num_points": 1}, "task.num_points"),
        ("interpolate", {"images": ["a.png"]}, "task.images"),
        ("interpolate", {"size": [0, 4]}, "task.size"),
    ],
)
def test_frames_that_cannot_be(name, keys, message):
    with pytest.raises(UserError, match=message):
        task(name, **keys)
