"""EfficientNet-Lite0 and the trunk of ST-LPIPS as extractors of priors: sizes, padding, files."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.errors import UserError
from modules.ops.pretrained import ARCHITECTURES, load_extractor
from modules.ops.trunks import EfficientNetLite0, _LiteBlock, _same


def test_lite0_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = EfficientNetLite0()
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)
    assert sum(p.numel() for p in net.parameters()) == 4_652_008 - 1_281_000  # without the classifier


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (9, 5, 1), (1, 5, 2)])
def test_padding_puts_the_odd_pixel_behind(side, kernel, stride):
    torch.manual_seed(0)
    convolution, image = nn.Conv2d(1, 1, kernel, stride, bias=False), torch.randn(1, 1, side, side + 2)
    result = _same(image, convolution)
    assert result.shape[-2:] == (-(-side // stride), -(-(side + 2) // stride))
    missing = [(n - 1) * stride + kernel - length for n, length in zip(result.shape[-2:], image.shape[-2:], strict=True)]
    before = [max(0, value) // 2 for value in missing]
    for row in range(result.shape[-2]):
        for column in range(result.shape[-1]):
            total = 0.0
            for i in range(kernel):
                for j in range(kernel):
                    y, x = row * stride + i - before[0], column * stride + j - before[1]
                    if 0 <= y < side and 0 <= x < side + 2:
                        total += float(image[0, 0, y, x] * convolution.weight[0, 0, i, j])
            assert float(result[0, 0, row, column]) == pytest.approx(total, abs=1e-5)


def test_a_block_written_out():
    torch.manual_seed(0)
    block, maps = _LiteBlock(4, 3, 1, 6, 4).eval(), torch.randn(2, 4, 8, 8)

    def normed(maps, norm):
        view = [tensor.view(1, -1, 1, 1) for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
        return (maps - view[0]) / (view[1] + 1e-3).sqrt() * view[2] + view[3]

    wide = normed(F.conv2d(maps, block._expand_conv.weight), block._bn0).clamp(0, 6)
    wide = normed(F.conv2d(wide, block._depthwise_conv.weight, padding=1, groups=24), block._bn1).clamp(0, 6)
    expected = maps + normed(F.conv2d(wide, block._project_conv.weight), block._bn2)
    assert torch.allclose(block(maps), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "other"), [("efficientnet_lite0", "st_lpips_alex"), ("st_lpips_alex", "efficientnet_lite0")])
def test_features_come_from_the_file_of_this_network_alone(name, other, tmp_path):
    torch.manual_seed(0)
    network = ARCHITECTURES[name].network().eval()
    torch.save({**network.state_dict(), "head.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    extractor, _ = load_extractor(name, str(tmp_path / "weights.pth"))
    extractor.input_size = 64
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    inputs = images if name == "st_lpips_alex" else ((images + 1) * 127.5 - 127) / 128
    with torch.no_grad():
        assert torch.allclose(extractor(images), network(inputs), atol=1e-5)
    assert extractor(images).shape == (2, ARCHITECTURES[name].dim)
    with pytest.raises(UserError, match=f"it does not hold the weights of {other}"):
        load_extractor(other, str(tmp_path / "weights.pth"))
