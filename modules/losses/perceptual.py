"""Perceptual distance as a loss: LPIPS from a local file, or a distance without learned weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.backbones.registry import CHOICES, load_backbone
from metrics.perceptual_distance import load_perceptual


class PerceptualLoss:
    """Sum over layers of the weighted squared difference of unit-length features, as `metrics.perceptual_distance`, with
    gradients for the first argument. Not a module: no part of checkpoints, never in training mode (LPIPS has dropout).

    Args:
        choice: file of torchvision's AlexNet or VGG-16 for LPIPS, or of ST-LPIPS; or the name of a backbone: `rand_cnn`
            (random weights), `mobilenet_v2` (an optional package). UserError where it is neither, never something else.
    """

    def __init__(self, choice: str, device: torch.device | None = None) -> None:
        named = choice in CHOICES and choice != "auto"
        self.distance = load_perceptual(load_backbone(choice), None) if named else load_perceptual(None, choice)
        self.name = self.distance.key + (f" {self.distance.sha256[:12]}" if self.distance.sha256 else "")
        if device is not None:
            self.distance.to(device)

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances [N] of images [N, 3, H, W] in [-1, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                targets = self._layers(references)
            layers = zip(self._layers(images), targets, strict=True)
            return sum((weight * (a - b).square().mean((2, 3))).sum(1) for (a, weight), (b, _) in layers)

    def _layers(self, images: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        images, size = images.float().add(1).mul(127.5), self.distance.size_of(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return [(F.normalize(maps, dim=1, eps=1e-10), weight) for maps, weight in self.distance.layers(images)]
