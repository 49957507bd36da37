import math

import pytest
import torch
from torch import Tensor

from core.errors import UserError
from metrics.nearest_psnr import NearestPSNR, nearest_psnr


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def psnr(a: Tensor, b: Tensor) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("chunk", [1, 64])
def test_is_the_best_psnr_over_training_images_and_their_mirror_images(chunk: int) -> None:
    fakes, reals = noise(5, 3, 6, 8), noise(3, 3, 6, 8, seed=1)
    expected = [max(psnr(fake, real) for real in [*reals, *reals.flip(-1)]) for fake in fakes]
    assert nearest_psnr(fakes, reals, chunk=chunk).tolist() == pytest.approx(expected, rel=1e-5)


def test_copies_are_found_even_mirrored_and_slightly_changed() -> None:
    reals = noise(3, 3, 12, 16)
    nearly = reals[:1].clone()
    nearly[0, 0, 0, 0] ^= 1  # one level in one value
    found = nearest_psnr(torch.cat([reals[1:2], reals[2:].flip(-1), nearly, noise(1, 3, 12, 16, seed=9)]), reals)
    assert found[:2].tolist() == [100, 100]
    assert found[2].item() == pytest.approx(psnr(nearly[0], reals[0]), rel=1e-4)
    assert found[3] < 15
    assert nearest_psnr(reals[:1].flip(-1), reals, flip=False) < 15


def test_metric_over_updates() -> None:
    fakes, reals = noise(5, 3, 6, 8), noise(3, 3, 6, 8, seed=1)
    metric = NearestPSNR(reals)
    for part in (fakes[:2], fakes[:0], fakes[2:]):
        metric.update(part)
    values, single = metric.compute(), nearest_psnr(fakes, reals)
    assert values["nearest_psnr_max"].item() == pytest.approx(single.max().item(), rel=1e-6)
    assert values["nearest_psnr_mean"].item() == pytest.approx(single.mean().item(), rel=1e-6)


def test_no_samples_are_refused() -> None:
    metric = NearestPSNR(noise(3, 3, 6, 8))
    metric.update(noise(0, 3, 6, 8))
    with pytest.raises(ValueError, match="^NearestPSNR needs at least 1 sample, got 0$"):
        metric.compute()


def test_other_than_bytes_are_refused() -> None:
    floats = torch.rand(4, 3, 6, 8)
    for images in ((floats, noise(2, 3, 6, 8)), (noise(4, 3, 6, 8), floats)):
        with pytest.raises(TypeError, match="uint8 .* got torch.float32"):
            nearest_psnr(*images)


def test_other_size_is_refused() -> None:
    with pytest.raises(UserError, match="12"):
        nearest_psnr(noise(1, 3, 6, 8), noise(1, 3, 12, 16))
