import pytest
import torch

from metrics.backbones.random_cnn import RandomCNN
from metrics.features import ImageSet, crop_features, distances, random_crops
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_crops_are_windows_that_depend_on_seed_and_index_alone() -> None:
    images = torch.arange(9 * 11).view(1, 1, 9, 11).expand(4, 3, -1, -1)  # a pixel's value tells its place
    crops = random_crops(images, [0, 1, 2, 3], 6, seed=5)
    assert crops.shape == (4, 6, 3, 4, 5)
    corner = crops[..., :1, :1]
    window = (torch.arange(4)[:, None] * 11 + torch.arange(5)).expand(4, 6, 3, -1, -1)
    assert torch.equal(crops - corner, window) and int((corner % 11).max()) <= 6
    assert len(corner[:, :, 0].unique()) > 10
    assert torch.equal(random_crops(images[2:], [2, 3], 6, seed=5), crops[2:])
    assert not torch.equal(random_crops(images, [0, 1, 2, 3], 6, seed=6), crops)
    positions = {(int(v) // 11, int(v) % 11) for v in random_crops(images, range(4), 200, seed=0)[:, :, 0, 0, 0].flatten()}
    assert positions == {(y, x) for y in range(6) for x in range(7)}  # every place, borders included


def test_no_images_no_crops() -> None:
    assert random_crops(noise(0, 3, 8, 8), [], 3, seed=0).shape == (0, 3, 3, 4, 4)
    assert crop_features(RandomCNN(), noise(0, 3, 8, 8), [], 3, seed=0).shape == (0, 3, 480)


def test_features_of_crops_are_those_of_the_scale_of_the_whole() -> None:
    backbone, images = RandomCNN(), noise(2, 3, 24, 32)
    features = crop_features(backbone, images, [0, 1], 3, seed=1)
    crops = random_crops(images, [0, 1], 3, seed=1)
    assert torch.allclose(features[1], backbone(crops[1], size=64), atol=1e-6)
    assert crop_features(backbone, images, [0, 1], 0, seed=1).shape == (2, 0, 480)


def image_set(whole: torch.Tensor, crops: torch.Tensor, indices: list[int] | None = None) -> ImageSet:
    number = len(crops)
    images = torch.arange(number, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return ImageSet(whole, images, crops, torch.tensor(indices or range(number)))


def test_distances_leave_out_what_cannot_be_estimated() -> None:
    torch.manual_seed(0)
    reals, fakes = (image_set(torch.randn(n, 4), torch.randn(n, 3, 4)) for n in (5, 6))
    values = distances(reals, fakes, ["kd_crops", "fd", "kd"])
    assert values == {
        "fd": frechet_distance(reals.whole, fakes.whole).item(),
        "kd": kernel_distance(reals.whole, fakes.whole).item(),
        "kd_crops": kernel_distance(reals.crops.view(15, 4), fakes.crops.view(18, 4)).item(),
    }
    one = image_set(reals.whole[:1], reals.crops[:1])
    assert list(distances(one, fakes, ["kd", "fd", "kd_crops"])) == ["kd_crops"]
    assert distances(reals, fakes, ["kd", "source_share"]) == {"kd": pytest.approx(values["kd"])}


def test_sets_with_bytes_of_some_images() -> None:
    """Parts joined and put in order; halves hold the bytes of their own images."""
    whole = torch.arange(9.0).view(9, 1)
    first = image_set(whole[:4], whole[[1, 3]].view(2, 1, 1), [1, 3])
    second = image_set(whole[4:], whole[[8]].view(1, 1, 1), [4])
    both = ImageSet.concatenate([first, second])
    assert torch.equal(both.whole, whole) and both.indices.tolist() == [1, 3, 8]
    order = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1, 0])
    turned = both.gather(order)
    assert torch.equal(turned.whole, whole.flip(0)) and turned.indices.tolist() == [0, 5, 7]
    assert turned.crops.flatten().tolist() == [8, 3, 1]
    even, odd = (turned.every_second(start) for start in (0, 1))
    assert even.whole.flatten().tolist() == [8, 6, 4, 2, 0] and even.crops.flatten().tolist() == [8]
    assert odd.whole.flatten().tolist() == [7, 5, 3, 1] and odd.crops.flatten().tolist() == [3, 1]
    assert [odd.whole[i].item() for i in odd.indices] == [3, 1]
