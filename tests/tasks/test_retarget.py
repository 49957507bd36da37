from itertools import pairwise

import pytest
import torch

from core.errors import UserError
from modules.ops.images import resize
from tests.tasks.toys import ExactMethod, task


def test_retarget_injects_the_stretched_image_at_the_methods_coarsest_scale(image):
    images = dict(task("retarget", image=image, size=[24, 80], options={"alpha": 2.0})(ExactMethod()))
    assert list(images) == ["00_input", "01_stretched", "02_retargeted"]
    assert images["00_input"].shape == (3, 24, 32) and images["01_stretched"].shape == (3, 24, 80)
    torch.testing.assert_close(images["02_retargeted"], -images["01_stretched"] * 0.5 + 3.0)
    finer = dict(task("retarget", image=image, size=[24, 80], scale=2)(ExactMethod()))
    torch.testing.assert_close(finer["02_retargeted"], -images["01_stretched"] * 0.5 + 9.0)


@pytest.mark.parametrize("size", [None, [24, 32]])
def test_retarget_reconstructs_where_nothing_is_stretched(image, size):
    images = dict(task("retarget", image=image, size=size)(ExactMethod()))
    assert torch.equal(images["02_retargeted"], images["00_input"] * 0.25)


def test_retarget_refuses_what_the_method_does_not_take(image):
    message = r"task.options.noise: ExactMethod .* in the task retarget. It has: alpha. Methods with noise: GPDM."
    with pytest.raises(ValueError, match=message):
        list(task("retarget", image=image, options={"noise": 0.1})(ExactMethod()))
    with pytest.raises(ValueError, match="allowed are 1 to 2"):
        list(task("retarget", image=image, size=[9, 9], scale=0)(ExactMethod()))
    with pytest.raises(UserError, match="task.size"):
        task("retarget", image=image, size=[9])


@pytest.mark.parametrize(("size", "rounds"), [((24, 80), 5), ((24, 38), 1), ((60, 14), 5)])
def test_retarget_step_by_step(image, size, rounds, monkeypatch):
    """80 is 2.5 · 32 and 1.25⁴ < 2.5 < 1.25⁵; each round begins with the result of the one before, which is its half."""
    entered = []
    monkeypatch.setattr(ExactMethod, "inject", lambda self, images, scale=1: entered.append(images) or images / 2)
    images = dict(task("retarget", image=image, size=list(size), step=1.25)(ExactMethod()))
    sizes = [(24, 32), *(tuple(entering.shape[-2:]) for entering in entered)]
    assert len(entered) == rounds and sizes[-1] == size == tuple(images["02_retargeted"].shape[1:])
    for before, after in pairwise(sizes):
        assert all(a * 0.8 - 1 <= b <= a * 1.25 + 1 for a, b in zip(before, after, strict=True))
    for before, after in pairwise(entered):
        torch.testing.assert_close(after, resize(before / 2, tuple(after.shape[-2:])))
    with pytest.raises(UserError, match="task.step"):
        task("retarget", image=image, step=1.0)
