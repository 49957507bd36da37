"""Normalized positions in a map."""

import torch
from torch import Tensor


def coordinate_map(height: int, width: int, like: Tensor) -> Tensor:
    """[1, 2, height, width]: x then y, exactly -1 and 1 at opposite ends, 0 along a side of length 1; type of `like`."""

    def axis(length: int) -> Tensor:
        steps = torch.arange(length, device=like.device, dtype=like.dtype)
        return 2 * steps / (length - 1) - 1 if length > 1 else steps

    y, x = torch.meshgrid(axis(height), axis(width), indexing="ij")
    return torch.stack([x, y]).unsqueeze(0)
