"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): color, translation and cutout on reals and fakes, differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError, nearest_hint


def color(images: Tensor) -> Tensor:
    """Brightness + U(-0.5, 0.5), saturation × U(0, 2) around the channels' mean, contrast × U(0.5, 1.5) around the image's."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + brightness - 0.5
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor, share: float = 0.125) -> Tensor:
    """Shifts by whole pixels, up to a share of the side, zeros moved in."""
    batch_size, _, height, width = images.shape
    reach = [int(side * share + 0.5) for side in (height, width)]
    rows, columns = (
        torch.arange(side, device=images.device) + torch.randint(-most, most + 1, (batch_size, 1), device=images.device)
        for side, most in zip((height, width), reach, strict=True)
    )
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    index = torch.arange(batch_size, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def cutout(images: Tensor, share: float = 0.5) -> Tensor:
    """A square of zeros with half the side, its center anywhere."""
    batch_size, _, height, width = images.shape
    inside = []
    for side in (height, width):
        size = int(side * share + 0.5)
        center = torch.randint(0, side + (1 - size % 2), (batch_size, 1), device=images.device)
        distance = torch.arange(side, device=images.device) - center + size // 2
        inside.append((distance >= 0) & (distance < size))
    hole = inside[0][:, :, None] & inside[1][:, None]
    return images * ~hole[:, None]


POLICIES = {"color": color, "translation": translation, "cutout": cutout}


class DiffAugment(nn.Module):
    """Applies each operation of `policy`, names separated by commas, to every image."""

    def __init__(self, policy: str = "color,translation,cutout") -> None:
        super().__init__()
        self.names = [name.strip() for name in policy.split(",") if name.strip()]
        for name in self.names:
            if name not in POLICIES:
                allowed = f"allowed are {', '.join(POLICIES)}.{nearest_hint(name, POLICIES)}"
                raise UserError(f"policy: unknown operation {name!r}; {allowed}")

    def forward(self, images: Tensor) -> Tensor:
        for name in self.names:
            images = POLICIES[name](images)
        return images.contiguous()
