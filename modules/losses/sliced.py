"""Distance between the patch distributions of images, direction by direction (GPDM: Elnekave & Weiss, ECCV 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_directions(num_directions: int, patch: int, device: torch.device | str = "cpu") -> Tensor:
    """Random unit vectors in the space of RGB patches, as filters [num_directions, 3, patch, patch]."""
    directions = torch.randn(num_directions, 3, patch, patch, device=device)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def sliced_wasserstein(images: Tensor, references: Tensor, directions: Tensor) -> Tensor:
    """Mean over `directions` of the distance [N] between the projected patches of each image [N, 3, H, W] and those of all
    references together: mean absolute difference of the sorted lists. Of more reference patches a random part is compared,
    fewer are repeated."""
    projected = F.conv2d(images, directions).flatten(2)
    targets = F.conv2d(references, directions).transpose(0, 1).flatten(1)
    count, available = projected.shape[2], targets.shape[1]
    if count != available:
        whole = torch.arange(available, device=targets.device).repeat(count // available)
        picks = torch.randperm(available, device=targets.device)[: count % available]
        targets = targets[:, torch.cat([whole, picks])]
    return (projected.sort(2).values - targets.sort(1).values).abs().mean((1, 2))
