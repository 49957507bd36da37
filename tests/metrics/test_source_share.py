import pytest
import torch
from torch import Tensor

from metrics import source_share as sources
from metrics.source_share import SourceShare, source_counts


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def patch_by_patch(fakes: Tensor, reals: Tensor, patch: int, stride: int) -> list[int]:
    def corners(image: Tensor, step: int) -> list[Tensor]:
        height, width = image.shape[-2:]
        tops, lefts = range(0, height - patch + 1, step), range(0, width - patch + 1, step)
        return [image[:, y : y + patch, x : x + patch].long() for y in tops for x in lefts]

    counts = [0] * len(reals)
    for fake in fakes:
        for cut in corners(fake, stride):
            best = [min(int((cut - key).square().sum()) for key in corners(real, 1)) for real in reals]
            counts[best.index(min(best))] += 1
    return counts


@pytest.mark.parametrize(("patch", "stride", "at_once"), [(3, 3, 2**27), (4, 1, 1), (4, 1, 200)])
def test_equals_search_patch_by_patch(monkeypatch: pytest.MonkeyPatch, patch: int, stride: int, at_once: int) -> None:
    monkeypatch.setattr(sources, "MAX_DISTANCES", at_once)
    fakes, reals = noise(2, 3, 7, 9), noise(3, 3, 8, 6, seed=1)
    counts = source_counts(fakes, reals, patch, stride)
    assert counts.tolist() == [patch_by_patch(fake[None], reals, patch, stride) for fake in fakes]


def test_collage_gives_back_its_parts() -> None:
    reals = noise(3, 3, 21, 28)
    collage = torch.cat([reals[0, :, :7], reals[2, :, 5:19]], 1)[None]  # 4 tiles of image 0, 8 of image 2
    metric = SourceShare(reals)
    metric.update(reals[2:])
    assert metric.compute()["source_share_2"] == 1
    metric.reset()
    metric.update(collage)
    metric.update(collage[:0])
    values = {key: value.item() for key, value in metric.compute().items()}
    third = pytest.approx(1 / 3)
    assert values == {
        "source_share_min": 0,
        "source_share_0": third,
        "source_share_1": 0,
        "source_share_2": pytest.approx(2 / 3),
    }
    metric.update(reals[1:2])
    assert metric.compute()["source_share_1"] == pytest.approx(1 / 2)
    assert [column.tolist() for column in metric.columns.values()] == [[third, 0], [0, 1], [pytest.approx(2 / 3), 0]]


def test_many_training_images_are_not_named_one_by_one() -> None:
    reals = noise(17, 3, 7, 7)
    metric = SourceShare(reals)
    metric.update(reals)
    assert {key: value.item() for key, value in metric.compute().items()} == {"source_share_min": pytest.approx(1 / 17)}


def test_no_samples_are_refused() -> None:
    metric = SourceShare(noise(3, 3, 7, 7))
    metric.update(noise(0, 3, 7, 7))
    with pytest.raises(ValueError, match="^SourceShare needs at least 1 sample and 2 of the reference, got 0 and 3$"):
        metric.compute()


def test_other_than_bytes_are_refused() -> None:
    floats = torch.rand(4, 3, 7, 7)
    for images in ((floats, noise(2, 3, 7, 7)), (noise(4, 3, 7, 7), floats)):
        with pytest.raises(TypeError, match="uint8 .* got torch.float32"):
            source_counts(*images)


def test_images_below_the_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="patch of 7"):
        source_counts(noise(1, 3, 6, 8), noise(1, 3, 6, 8))
