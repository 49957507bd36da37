"""Networks that torchvision lacks, with the names of weights in their authors' files; without their heads."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of EfficientNet-Lite0 (Tan and Le 2019, "lite"): kernel, stride, expansion, channels of each block.
LITE0 = [
    (3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80),
    (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112), (5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192),
    (3, 1, 6, 320),
]  # fmt: skip
# Of the trunks of ST-LPIPS, VGG-16 and AlexNet: kernel, and name and channels of each convolution, layer by layer.
SHIFT_TOLERANT = (
    [
        (3, {"0": 64, "2": 64}), (3, {"6": 128, "8": 128}), (3, {"12": 256, "14": 256, "16": 256}),
        (3, {"20": 512, "22": 512, "24": 512}), (3, {"28": 512, "30": 512, "32": 512}),
    ],
    [(11, {"0": 64}), (5, {"5": 192}), (3, {"9": 384}), (3, {"11": 256}), (3, {"13": 256})],
)  # fmt: skip


_convolution, _norm = partial(nn.Conv2d, bias=False), partial(nn.BatchNorm2d, eps=1e-3)


def _same(images: Tensor, convolution: nn.Module) -> Tensor:
    """A convolution whose output is ceil(side / stride), the odd pixel of padding at the right and below, as TensorFlow's."""
    (kernel, _), (stride, _) = convolution.kernel_size, convolution.stride
    pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in images.shape[:-3:-1]]
    return convolution(F.pad(images, [part for pad in pads for part in (pad // 2, pad - pad // 2)]))


class _LiteBlock(nn.Module):
    """Expansion, depthwise convolution, projection; what is added where nothing changes its shape."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _convolution(inputs, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = _convolution(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = _convolution(width, outputs, 1), _norm(outputs)
        self.adds, self.expands = stride == 1 and inputs == outputs, expansion > 1

    def forward(self, inputs: Tensor) -> Tensor:
        maps = F.relu6(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        maps = F.relu6(self._bn1(_same(maps, self._depthwise_conv)))
        maps = self._bn2(self._project_conv(maps))
        return maps + inputs if self.adds else maps


class EfficientNetLite0(nn.Module):
    """Normalized images -> pooled features [N, 1280]; names as in efficientnet-lite-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _convolution(3, 32, 3, 2), _norm(32)
        inputs = [32, *(block[-1] for block in LITE0)]
        self._blocks = nn.Sequential(*(_LiteBlock(channels, *block) for channels, block in zip(inputs, LITE0, strict=False)))
        self._conv_head, self._bn1 = _convolution(320, 1280, 1), _norm(1280)

    def forward(self, images: Tensor) -> Tensor:
        maps = self._blocks(F.relu6(self._bn0(_same(images, self._conv_stem))))
        return F.relu6(self._bn1(self._conv_head(maps))).mean((2, 3))


class ShiftTolerantTrunk(nn.Module):
    """Images in [-1, 1] -> the maps of the five layers of AlexNet or VGG-16 that blur before they halve (Ghildyal and Liu,
    "Shift-tolerant Perceptual Similarity Metric", 2022); names as in stlpips-pytorch."""

    def __init__(self, alex: bool) -> None:
        super().__init__()
        self.alex, self.net, inputs = alex, nn.ModuleDict(), 3
        for number, (kernel, convolutions) in enumerate(SHIFT_TOLERANT[alex], 1):
            layer = self.net[f"slice{number}"] = nn.ModuleDict()
            for name, outputs in convolutions.items():
                layer[name] = nn.Conv2d(inputs, outputs, kernel, padding=min(2, kernel // 2))
                inputs = outputs
        self.scaling_layer = nn.ParameterDict({name: torch.ones(1, 3, 1, 1) for name in ("shift", "scale")})

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, layers = (images - self.scaling_layer["shift"]) / self.scaling_layer["scale"], []
        for number, layer in enumerate(self.net.values()):
            if number in (1, 2) or (number and not self.alex):
                maps = _half_blurred(F.max_pool2d(maps, 3 if self.alex else 2, 1))
            for convolution in layer.values():
                maps = convolution(maps)
                maps = (_half_blurred(maps) if self.alex and number == 0 else maps).relu()
            layers.append(maps)
        return layers


class ShiftTolerantAlexNet(ShiftTolerantTrunk):
    """Normalized images -> the pooled last layer [N, 256]."""

    def __init__(self) -> None:
        super().__init__(alex=True)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[-1].mean((2, 3))


def _half_blurred(maps: Tensor) -> Tensor:
    """Binomial blur over 3 x 3, then every second pixel; two reflected pixels around."""
    line = torch.tensor([0.25, 0.5, 0.25], device=maps.device)
    kernel = (line[:, None] * line).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=maps.shape[1])
