from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception

from metrics.backbones.inception import FIDInception, fid_inception


def resized(images: Tensor, size: int) -> Tensor:
    return FIDInception.resize(None, images, size)


@pytest.mark.parametrize(
    ("block", "theirs", "channels", "arguments"),
    [
        ("Mixed_5b", inception.InceptionA, 192, {"pool_features": 32}),
        ("Mixed_6b", inception.InceptionC, 768, {"channels_7x7": 128}),
        ("Mixed_7b", inception.InceptionE, 1280, {}),
    ],
)
def test_blocks_differ_from_torchvision_at_the_border_of_the_pooled_part_alone(block, theirs, channels, arguments) -> None:
    torch.manual_seed(0)
    original = theirs(channels, **arguments).eval()
    block = getattr(fid_inception(), block).eval()
    block.load_state_dict(original.state_dict())
    x = torch.rand(2, channels, 9, 9) + 1
    with torch.no_grad():
        here, there = block(x), original(x)
        counted = F.avg_pool2d(x, 3, 1, 1) * 9 / F.conv2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, 3, 3), padding=1)
        pooled = original.branch_pool(counted)
    rest = here.shape[1] - pooled.shape[1]
    assert torch.allclose(here[:, :rest], there[:, :rest], atol=1e-6)
    assert torch.allclose(here[:, rest:], pooled, atol=1e-5)
    assert torch.allclose(here[..., 1:-1, 1:-1], there[..., 1:-1, 1:-1], atol=1e-5)
    assert not torch.allclose(here, there, atol=1e-4)


def test_last_block_pools_by_maximum() -> None:
    torch.manual_seed(0)
    block = fid_inception().Mixed_7c.eval()
    x = torch.rand(1, 2048, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x)[:, -192:], block.branch_pool(F.max_pool2d(x, 3, 1, 1)))


def test_parameters_are_those_of_the_published_file() -> None:
    network = fid_inception()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6e.branch7x7dbl_5.bn.running_var"] == (192,)
    assert shapes["Mixed_7c.branch_pool.conv.weight"] == (192, 2048, 1, 1)
    assert shapes["fc.weight"] == (1008, 2048)
    assert not any("Aux" in name for name in shapes)


def one_by_one(image: Tensor, size: int) -> Tensor:
    """TensorFlow 1's rule, pixel by pixel, for one channel."""
    height, width = image.shape
    out = torch.empty(size, size)
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(5, 8, 13), (17, 12, 7), (6, 6, 6)])
def test_resize_is_that_of_tensorflow_1(height: int, width: int, size: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(height, width) * 255
    assert torch.allclose(resized(image[None, None], size)[0, 0], one_by_one(image, size), atol=1e-3)


@pytest.mark.parametrize(("side", "difference"), [(32, 36), (128, 25), (512, 28)])
def test_resize_is_as_far_from_the_smooth_one_as_known(side: int, difference: int) -> None:
    """Mean absolute difference on uniform noise, figures of an independent measurement."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, side, side)).float()
    smooth = F.interpolate(image, (299, 299), mode="bilinear", antialias=True)
    assert (resized(image, 299) - smooth).abs().mean().item() == pytest.approx(difference, abs=1.0)


@pytest.mark.slow
def test_features_and_logits_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    """With the same untrained weights, large enough that no layer vanishes; both take bytes of any size."""
    torch.manual_seed(0)
    network = fid_inception()
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(value)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    ours = FIDInception(network.state_dict(), "0" * 64)
    for height, width in [(64, 48), (320, 310)]:
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        with torch.no_grad():
            features, logits = extractor.eval()(images)
        found = ours(images)
        for here, there in [(found, features), (found @ ours.class_weights.T, logits)]:
            assert (here - there).abs().max() <= 1e-5 * there.abs().max() and there.std() > 0
