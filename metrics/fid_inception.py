"""The Inception-v3 of published FID and KID numbers: torchvision's layers, pooled as the network of 2015 pools."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception

CLASSES = 1008
STEM = (  # the layers before each of the two first poolings, a pooling beginning the second part
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
)
SMALLEST = 7  # pixels that either part needs on both sides


def _mean_pool(maps: Tensor) -> Tensor:
    """3 x 3 mean over the pixels inside the map; torchvision counts the zeros around it too."""
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(inception.InceptionA):
    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean_pool(x))], 1)


class _BlockC(inception.InceptionC):
    def forward(self, x: Tensor) -> Tensor:
        seven, double = x, x
        for name in ("branch7x7_1", "branch7x7_2", "branch7x7_3"):
            seven = getattr(self, name)(seven)
        for number in range(1, 6):
            double = getattr(self, f"branch7x7dbl_{number}")(double)
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class _BlockE(inception.InceptionE):
    """The first of the two last blocks; the very last pools by maximum."""

    def pool(self, x: Tensor) -> Tensor:
        return _mean_pool(x)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        three = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        double = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *three, *double, self.branch_pool(self.pool(x))], 1)


class _LastBlock(_BlockE):
    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


def fid_inception() -> nn.Module:
    """Untrained network [N, 3, H, W] -> logits [N, 1008], input in [-1, 1], at least 75 pixels high and wide.

    Parameter names are torchvision's, without the auxiliary classifier. Before `fc` come the 2048 features ("pool3").
    """
    blocks = [
        inception.BasicConv2d,
        _BlockA,
        inception.InceptionB,
        _BlockC,
        inception.InceptionD,
        _BlockE,
        inception.InceptionAux,
    ]
    network = inception.Inception3(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c = _LastBlock(2048)
    return network


def pooling_inputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps of an Inception-v3 before its first pooling (64 channels) and before its second (192 channels).

    Images [N, 3, H, W] as the network takes them, not resized. Below 7 pixels on a side there is no map, below 19 there is
    the first alone.
    """
    maps = []
    for part in STEM:
        if min(images.shape[-2:]) < SMALLEST:
            break
        for name in part:
            images = getattr(network, name)(images)
        maps.append(images)
    return maps


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Images [N, C, H, W] at `size` x `size` by TensorFlow 1's bilinear rule: pixel i of n lies at i * H / n, no half
    pixel added and nothing smoothed. Published numbers depend on it."""
    rows, columns = (_tf1_weights(length, size, images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _tf1_weights(length: int, size: int, like: Tensor) -> Tensor:
    """Matrix [size, length] of interpolation weights along one axis."""
    position = torch.arange(size, device=like.device, dtype=like.dtype) * (length / size)
    lower = position.long().clamp(max=length - 1)
    upper = (lower + 1).clamp(max=length - 1)
    share = (position - lower)[:, None]
    eye = torch.eye(length, device=like.device, dtype=like.dtype)
    return eye[lower] * (1 - share) + eye[upper] * share
