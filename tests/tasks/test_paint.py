import numpy as np
import pytest
import torch

from tasks.paint import palette, quantize
from tests.tasks.toys import THREE, ExactMethod, saved, task


def test_paint_injects_the_drawing(image):
    images = dict(task("paint", image=image)(ExactMethod()))
    assert list(images) == ["00_input", "02_photograph"]
    torch.testing.assert_close(images["02_photograph"], -images["00_input"] * 0.5 + 8.0)


def test_paint_quantizes_to_the_colors_of_the_reference(tmp_path, image):
    """Columns of three colors: rows of three neighboring values would give mixtures as centers."""
    reference = saved(tmp_path / "reference.png", np.broadcast_to(THREE[np.arange(32) % 3], (24, 32, 3)))
    images = dict(task("paint", image=image, colors=3, reference=reference, scale=2)(ExactMethod()))
    assert list(images) == ["00_input", "01_quantized", "02_photograph"]
    colors = torch.tensor(THREE).float() / 127.5 - 1
    pixels = images["00_input"].reshape(3, -1).T
    expected = torch.stack([min(colors, key=lambda color: float((pixel - color).square().sum())) for pixel in pixels])
    torch.testing.assert_close(images["01_quantized"].reshape(3, -1).T, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(images["02_photograph"], -images["01_quantized"] * 0.5 + 9.0)


def test_palette_and_quantisation_leave_an_image_of_few_colors_as_it_is():
    torch.manual_seed(0)
    picture = torch.tensor([[-1.0, 0.2, 0.9], [0.5, -0.5, 0.0]])[torch.randint(2, (1, 6, 9))].movedim(-1, 1)
    torch.testing.assert_close(quantize(picture, palette(picture[0].flatten(1).T, 2)), picture, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"colors": 5}, "task.colors and task.reference: set both"),
        ({"reference": "x.png"}, "task.colors and task.reference: set both"),
        ({"colors": 1, "reference": "x.png"}, "task.colors"),
    ],
)
def test_paint_settings_that_cannot_work(keys, message):
    with pytest.raises(ValueError, match=message):
        task("paint", image="a.png", **keys)
