"""Distance between the patch distributions of images, direction by direction (GPDM: Elnekave & Weiss, ECCV 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_directions(number: int, patch: int, device: torch.device | str = "cpu") -> Tensor:
    """`number` random unit vectors in the space of RGB patches, as filters [number, 3, patch, patch]."""
    directions = torch.randn(number, 3, patch, patch, device=device)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def sliced_wasserstein(images: Tensor, references: Tensor, directions: Tensor) -> Tensor:
    """Mean over `directions` of the distance [N] between the projected patches of each image [N, 3, H, W] and those of all
    references [n, 3, H', W'] together: mean absolute difference of the sorted lists.

    With fewer patches in an image than in the references their random part is compared; with more they are repeated. Draws
    from the global generator unless the numbers are equal.
    """
    own = F.conv2d(images, directions).flatten(2)
    others = F.conv2d(references, directions).transpose(0, 1).flatten(1)
    number, available = own.shape[2], others.shape[1]
    if number != available:
        whole = torch.arange(available, device=others.device).repeat(number // available)
        picks = torch.randperm(available, device=others.device)[: number % available]
        others = others[:, torch.cat([whole, picks])]
    return (own.sort(2).values - others.sort(1).values).abs().mean((1, 2))
