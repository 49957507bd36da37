import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import Inception_V3_Weights, inception_v3, mobilenet_v2

from core.errors import UserError
from metrics.backbones.backbone import Backbone
from metrics.backbones.inception import IMAGENET_SHA256_PREFIXES, ImageNetInception, Inception, fid_inception
from metrics.backbones.random_cnn import RandomCNN
from metrics.backbones.registry import load_backbone
from metrics.sifid import SingleImageFrechet, single_image_frechet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int) -> Tensor:
    """Bytes [1, 3, H, W] with edges and texture, and no symmetry."""
    coarse = noise(1, 3, 3, 4).float()
    return (F.interpolate(coarse, (height, width)) * 0.8 + noise(1, 3, height, width, seed=1) * 0.2).to(torch.uint8)


def by_eigenvalues(real: Tensor, fake: Tensor) -> float:
    """The textbook formula on maps [C, h, w]: one row a position, np.cov, eigenvalues of the product."""
    x, y = (maps.double().numpy().reshape(len(maps), -1).T for maps in (real, fake))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


def maps_with(mean: list[float], covariance: list[list[float]]) -> Tensor:
    """A map [1, 2, 2, 2] with exactly this mean and covariance over its four positions."""
    basis = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]], dtype=torch.float64) * math.sqrt(3 / 4)
    rows = basis @ torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64)).T + torch.tensor(mean)
    return rows.T.reshape(1, 2, 2, 2)


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, with the auxiliary classifier that torchvision's file holds too."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "imagenet.pth"
    torch.save(inception_v3(weights=None, aux_logits=True, init_weights=False).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def imagenet(imagenet_file: Path) -> Backbone:
    return load_backbone(weights=str(imagenet_file))


@pytest.fixture(scope="module")
def fid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "fid.pth"
    torch.save(fid_inception().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def fid(fid_file: Path) -> Backbone:
    return load_backbone(weights=str(fid_file))


# --- the function ----------------------------------------------------------------------------------------------------


def test_closed_form_gaussians() -> None:
    shifted = maps_with([0.0, 0.0], [[1.0, 0], [0, 4]]), maps_with([1.0, 2.0], [[4.0, 0], [0, 9]])
    assert single_image_frechet(*shifted).item() == pytest.approx(1 + 4 + (1 - 2) ** 2 + (2 - 3) ** 2, abs=1e-9)
    turned = maps_with([0.0, 0.0], [[2.0, 1], [1, 2]]), maps_with([0.0, 0.0], [[1.0, 0], [0, 3]])
    # trace of the root of the product A B of 2 x 2 matrices: sqrt(trace(A B) + 2 sqrt(det A det B))
    expected = 4 + 4 - 2 * math.sqrt((2 * 1 + 2 * 3) + 2 * math.sqrt(3 * 3))
    assert single_image_frechet(*turned).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("channels", "real", "fake"), [(8, (9, 7), (9, 7)), (24, (3, 5), (3, 5)), (6, (11, 13), (5, 4))])
def test_equals_textbook_formula_on_odd_sizes_and_few_positions(channels: int, real: tuple, fake: tuple) -> None:
    torch.manual_seed(0)
    reals, fakes = torch.randn(1, channels, *real) * 2, torch.rand(3, channels, *fake)
    values = single_image_frechet(reals, fakes)
    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx([by_eigenvalues(reals[0], one) for one in fakes], rel=1e-5)


def test_order_of_positions_does_not_count_equal_maps_give_zero_and_the_distance_is_symmetric() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(1, 5, 6, 7), torch.randn(1, 5, 6, 7) + 0.5
    assert single_image_frechet(first, torch.cat([first, first.flip(2)])).abs().max() < 1e-9
    there, back = single_image_frechet(first, second), single_image_frechet(second, first)
    assert there.item() == pytest.approx(back.item(), rel=1e-9) and there > 0.5
    assert single_image_frechet(first, first[:0]).shape == (0,)


# --- the maps --------------------------------------------------------------------------------------------------------


def test_maps_are_what_enters_the_poolings_of_torchvisions_own_network(imagenet: Backbone, imagenet_file: Path) -> None:
    images, seen = picture(81, 93), []
    network = inception_v3(weights=None, aux_logits=True, init_weights=False).eval()
    network.load_state_dict(torch.load(imagenet_file, weights_only=True))
    for pooling in (network.maxpool1, network.maxpool2):
        pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        network(images / 255 * 2 - 1)
    maps = imagenet.maps(images)
    assert list(maps) == ["sifid_pool1", "sifid_pool2"]
    for found, expected in zip(maps.values(), seen, strict=True):
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)
    assert [layer.shape[1] for layer in maps.values()] == [64, 192]


def test_size_at_299_pixels_is_the_published_one(imagenet: Backbone) -> None:
    assert imagenet.maps(noise(1, 3, 299, 299))["sifid_pool2"].shape == (1, 192, 71, 71)


@pytest.mark.parametrize(
    ("size", "keys"),
    [((6, 40), []), ((7, 7), []), ((7, 9), ["sifid_pool1"]), ((18, 40), ["sifid_pool1"]), ((19, 19), ["sifid_pool1"]),
     ((19, 23), ["sifid_pool1", "sifid_pool2"])],
)  # fmt: skip
def test_layers_that_an_image_is_too_small_for_are_left_out(imagenet: Backbone, size: tuple, keys: list[str]) -> None:
    maps = imagenet.maps(noise(2, 3, *size))
    assert list(maps) == keys and all(len(layer) == 2 and layer[0, 0].numel() > 1 for layer in maps.values())
    metric = SingleImageFrechet(noise(1, 3, *size), imagenet.maps)
    left_out = [note.split(":")[0] for note in metric.remarks(imagenet.map_keys) if note.startswith("no ")]
    assert left_out == [f"no {key}" for key in imagenet.map_keys if key not in keys]


def test_only_torchvisions_weights_are_called_sifid(
    tmp_path: Path, imagenet: Backbone, imagenet_file: Path, fid: Backbone
) -> None:
    torch.manual_seed(0)
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "mobilenet.pth")
    mobilenet = load_backbone(weights=str(tmp_path / "mobilenet.pth"))
    low = load_backbone("inception_v3", weights=str(imagenet_file), lowpass=32)
    assert isinstance(imagenet, ImageNetInception) and imagenet.key("fd") == "fd_inception_v3"
    assert fid.map_keys == ("sifd_inception_v3_fid_pool1", "sifd_inception_v3_fid_pool2")
    assert low.map_keys == ("sifd_inception_v3_lowpass32_pool1", "sifd_inception_v3_lowpass32_pool2")
    assert RandomCNN().map_keys == ("sifd_rand_cnn",) and RandomCNN(lowpass=8).map_keys == ("sifd_rand_cnn_lowpass8",)
    images = noise(2, 3, 25, 31)
    for backbone in (fid, mobilenet, low, RandomCNN()):
        maps = backbone.maps(images)
        assert tuple(maps) == backbone.map_keys and not any(key.startswith("sifid") for key in maps)
    assert mobilenet.maps(images)[f"sifd_{mobilenet.name}"].shape == (2, 24, 7, 8)
    assert RandomCNN().maps(images)["sifd_rand_cnn"].shape == (2, 64, 7, 8)


def test_own_weights_are_told_from_the_published(imagenet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(f"-{begin}." in Inception_V3_Weights.IMAGENET1K_V1.url for begin in IMAGENET_SHA256_PREFIXES)
    assert "SIFID" in imagenet.caution() and "SIFID" in RandomCNN().caution()
    monkeypatch.setattr(imagenet, "weights_sha256", IMAGENET_SHA256_PREFIXES[0] + "0" * 56)
    assert "SIFID" not in imagenet.caution() and "FID and KID" in imagenet.caution()


def test_fid_input_is_normalized_its_own_way_and_not_resized(fid: Backbone, fid_file: Path) -> None:
    network, images = fid_inception().eval(), picture(27, 33)
    network.load_state_dict(torch.load(fid_file, weights_only=True))
    with torch.no_grad():
        expected = Inception.layers(SimpleNamespace(network=network), (images.float() - 128) / 128)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(fid.maps(images).values(), expected, strict=True))


def test_a_map_depends_on_its_image_alone_and_on_bytes() -> None:
    backbone, images = RandomCNN(), noise(5, 3, 23, 31)
    together = backbone.maps(images)["sifd_rand_cnn"]
    assert torch.equal(together, torch.cat([backbone.maps(image[None])["sifd_rand_cnn"] for image in images]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(backbone.maps(images)["sifd_rand_cnn"], together)
    assert not together.requires_grad
    with pytest.raises(TypeError, match="float32"):
        backbone.maps(torch.rand(1, 3, 8, 8))


# --- the metric ------------------------------------------------------------------------------------------------------


def test_metric_is_mean_and_median_of_the_pairs_in_any_order(imagenet: Backbone) -> None:
    real, fakes = picture(41, 37), torch.cat([noise(4, 3, 41, 37), picture(41, 37)])
    metric = SingleImageFrechet(real, imagenet.maps)
    for part in (fakes[3:], fakes[:0], fakes[:3]):
        metric.update(part)
    values = metric.compute()
    for key, reals in imagenet.maps(real).items():
        pairs = single_image_frechet(reals, imagenet.maps(fakes)[key])
        assert values[key].item() == pytest.approx(pairs.mean().item(), rel=1e-5)
        assert values[f"{key}_median"].item() == pytest.approx(sorted(pairs.tolist())[2], rel=1e-5)
        assert metric.mean(fakes)[key] == pytest.approx(pairs.mean().item(), rel=1e-5)
    assert len(values) == 4


def test_copy_is_zero_mirror_is_little_and_blur_grows() -> None:
    real = picture(48, 57)
    blurred = [F.avg_pool2d(real.float(), 2 * r + 1, 1, r, count_include_pad=False).to(torch.uint8) for r in (1, 2, 4)]
    fakes = torch.cat([real, real.flip(-1), noise(1, 3, 48, 57), *blurred])
    copy, mirror, other, *blur = SingleImageFrechet(real, RandomCNN().maps).measure(fakes)[:, 0].tolist()
    assert abs(copy) < 1e-6 < mirror < other / 4
    assert 0 < blur[0] < blur[1] < blur[2]


def test_same_values_every_time() -> None:
    real, fakes = picture(25, 33), noise(3, 3, 25, 33)
    first, second = (SingleImageFrechet(real, RandomCNN().maps).measure(fakes) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32


def test_remarks_tell_positions_and_singular_covariances(imagenet: Backbone) -> None:
    small = SingleImageFrechet(picture(41, 37), imagenet.maps).remarks(imagenet.map_keys)
    assert small == [
        "sifid_pool1 is over 18×16 positions of 64 features, images not resized",
        "sifid_pool2 is over 6×5 positions of 192 features, images not resized; the covariances are singular",
    ]


def test_reference_network_needs_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.ops.pretrained.PACKAGE", "a-package-that-nobody-has-installed")
    with pytest.raises(FileNotFoundError, match="inception_v3 needs a weight file"):
        load_backbone("inception_v3")


def test_no_sample_is_refused() -> None:
    metric = SingleImageFrechet(noise(1, 3, 23, 31), RandomCNN().maps)
    metric.update(noise(0, 3, 23, 31))
    with pytest.raises(ValueError, match="needs at least 1 sample, got 0"):
        metric.compute()


def test_what_cannot_be_compared_is_refused() -> None:
    for reals, fakes, message in (
        (torch.rand(2, 4, 3, 3), torch.rand(2, 4, 3, 3), "one real map"),
        (torch.rand(1, 4, 3, 3), torch.rand(2, 5, 3, 3), "as many channels"),
        (torch.rand(1, 4, 3, 3), torch.rand(1, 4, 1, 1), "at least 2 rows, got 9 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            single_image_frechet(reals, fakes)
