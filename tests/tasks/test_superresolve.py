import math
import warnings

import numpy as np
import pytest
import torch

from modules.ops.images import resize, to_uint8
from tests.tasks.toys import ExactMethod, noise, saved, task


def test_superresolve_takes_the_file_pixel_by_pixel(tmp_path, capsys):
    pixels = noise(24, 32)
    low = saved(tmp_path / "low.png", pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = dict(task("superresolve", image=low, factor=2.5)(ExactMethod()))
    assert list(images) == ["00_input", "01_bicubic", "02_superresolved"]
    assert torch.equal(to_uint8(images["00_input"]), torch.tensor(pixels).permute(2, 0, 1))
    assert images["01_bicubic"].shape == images["02_superresolved"].shape == (3, 60, 80)
    assert capsys.readouterr().out == ""


def test_superresolve_prints_the_psnr(tmp_path, capsys):
    low, high = noise(24, 32), noise(48, 64)
    keys = {"image": saved(tmp_path / "low.png", low), "reference": saved(tmp_path / "high.png", high), "factor": 2}
    list(task("superresolve", **keys, consistent=False)(ExactMethod()))
    repeated = low.repeat(2, axis=0).repeat(2, axis=1).astype(float)
    error = ((repeated - high) ** 2).mean()
    expected = 20 * math.log10(255) - 10 * math.log10(error)
    assert f"PSNR against {keys['reference']}: {expected:.2f} dB, bicubic " in capsys.readouterr().out
    list(task("superresolve", **keys | {"reference": saved(tmp_path / "same.png", repeated)}, consistent=False)(ExactMethod()))
    assert "same.png: inf dB, bicubic " in capsys.readouterr().out


def test_superresolve_keeps_the_small_images_colors(tmp_path):
    """A method that shifts colors and adds detail: the shift goes, the detail stays."""
    y, x = np.mgrid[:24, :32]
    smooth = (128 + 60 * np.stack([np.sin(y / 6), np.cos(x / 7), np.sin((x + y) / 9)], 2)).astype(np.uint8)
    keys = {"image": saved(tmp_path / "low.png", smooth), "factor": 3}
    detail = 0.2 * (torch.arange(72).view(-1, 1) + torch.arange(96)).remainder(2).mul(2).sub(1)

    class Shifting(ExactMethod):
        def super_resolve(self, images, factor):
            return (resize(images, (72, 96)) + 0.3 + detail).clamp(-1, 1)

    def errors(**options):
        made = dict(task("superresolve", **keys, **options)(Shifting()))
        result = made["02_superresolved"][None]
        texture = ((result - resize(result, (24, 32)).repeat_interleave(3, 2).repeat_interleave(3, 3)) * detail).mean()
        shift = (resize(result, (24, 32)) - made["00_input"][None]).abs().mean()
        return shift.item(), (texture / detail.square().mean()).item()

    shift, texture = errors()
    assert shift < 0.01 and texture > 0.9
    assert errors(consistent=False)[0] > 0.25


def test_superresolve_warns_of_a_model_of_another_size(tmp_path):
    low = saved(tmp_path / "low.png", noise(32, 24))
    with pytest.warns(UserWarning, match=r"is 32×24 pixels .*the model 24×32: train .*datamodule.image_size=\[32,24\]"):
        images = dict(task("superresolve", image=low, factor=1.5)(ExactMethod()))
    assert images["02_superresolved"].shape == (3, 48, 36)


def test_superresolve_refusals(tmp_path):
    low, high = saved(tmp_path / "low.png", noise(24, 32)), saved(tmp_path / "high.png", noise(50, 64))
    with pytest.raises(ValueError, match=r"high.png is 50×64 pixels .*factor=2 48×64"):
        list(task("superresolve", image=low, reference=high, factor=2)(ExactMethod()))
    for factor in (1, 0.5, math.inf):
        with pytest.raises(ValueError, match="task.factor"):
            task("superresolve", image=low, factor=factor)
