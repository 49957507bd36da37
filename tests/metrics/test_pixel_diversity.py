import numpy as np
import pytest
import torch

from metrics.pixel_diversity import PixelDiversity, pixel_diversity


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_two_constant_images_half_apart() -> None:
    fakes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 5)
    assert pixel_diversity(fakes, noise(1, 3, 4, 5))["pixel_diversity_raw"].item() == 0.5


def test_equals_numpy_with_both_normalizations() -> None:
    fakes, reals = noise(9, 3, 6, 8), noise(4, 3, 6, 8, seed=1) // torch.tensor([1, 2, 3, 4]).view(4, 1, 1, 1)
    reals = reals.to(torch.uint8)
    gray, real_gray = (x.numpy().astype(np.float64).mean(1) / 255 for x in (fakes, reals))
    raw = np.std(gray, axis=0).mean()
    values = pixel_diversity(fakes, reals)
    assert values["pixel_diversity_raw"].item() == pytest.approx(raw, rel=1e-9)
    own = np.mean([image.std() for image in real_gray])
    assert values["pixel_diversity"].item() == pytest.approx(raw / own, rel=1e-9)
    assert values["pixel_diversity_pooled"].item() == pytest.approx(raw / real_gray.std(), rel=1e-9)


def test_equal_samples_have_none_and_shuffled_pixels_about_one() -> None:
    real = noise(1, 3, 16, 16)
    assert pixel_diversity(real.expand(5, -1, -1, -1), real)["pixel_diversity"].item() == 0
    torch.manual_seed(0)
    shuffled = torch.stack([real[0].flatten(1)[:, torch.randperm(256)].view(3, 16, 16) for _ in range(400)])
    assert pixel_diversity(shuffled, real)["pixel_diversity"].item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_samples_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"^PixelDiversity needs at least 2 samples, got {number}$"):
        pixel_diversity(noise(number, 3, 6, 8), noise(2, 3, 6, 8))


def test_other_than_bytes_are_refused() -> None:
    floats = torch.rand(4, 3, 6, 8)
    for images in ((floats, noise(2, 3, 6, 8)), (noise(4, 3, 6, 8), floats)):
        with pytest.raises(TypeError, match="uint8 .* got torch.float32"):
            pixel_diversity(*images)


def test_metric_over_updates_is_exact() -> None:
    fakes, reals = noise(10, 3, 6, 8), noise(2, 3, 6, 8, seed=1)
    metric = PixelDiversity(reals)
    for part in (fakes[7:], fakes[:0], fakes[:7]):
        metric.update(part)
    assert metric.compute() == pixel_diversity(fakes, reals)
