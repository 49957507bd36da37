"""A network of random weights, for machines without any weight file."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.backbones.backbone import Backbone


class RandomCNN(Backbone):
    """Four layers of seeded random weights: sensitive to collapse and to coarse color and texture, not to semantics."""

    name, input_size = "rand_cnn", 128
    widths = (32, 64, 128, 256)

    def __init__(self, lowpass: int | None = None) -> None:
        super().__init__(lowpass)
        generator = torch.Generator().manual_seed(0)
        for number, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"weight{number}", weight)
        self.eval().requires_grad_(False)

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for weight in self.buffers():
            maps.append(F.conv2d(maps[-1], weight, stride=2, padding=1).relu())
        return maps[1:]

    def embed(self, images: Tensor) -> Tensor:
        return torch.cat([maps.mean((2, 3)) for maps in self.stages(images)], 1)

    def layers(self, images: Tensor) -> list[Tensor]:
        return self.stages(images)[1:2]  # a quarter of the size, as the second layer of SIFID
