"""Ranges, conversion to uint8, resizing and grids of images. Inside the project an image is float32 NCHW in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, clamped and rounded; the only conversion from float to uint8 (P 10.4)."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    return images.float().div(127.5).sub(1)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] brought to `size` (height, width), antialiased bicubic, and clamped to [-1, 1]. One operator for
    training, sampling and injection, since a generator learns the properties of its resized input."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if images.dtype in (torch.bfloat16, torch.float16):  # which a CPU has no such operator for
        images = images.float()
    return F.interpolate(images, tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def luma(images: Tensor) -> Tensor:
    """Brightness [N, 1, H, W] of RGB images by the Rec. 601 weights, same range as the input."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def image_grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """One picture [3, H', W'] of images [N, 3, H, W], row by row, `gap` white pixels between; empty cells are white."""
    columns = max(1, min(columns, len(images)))
    cells = F.pad(images, (0, gap, 0, gap, 0, 0, 0, -len(images) % columns), value=1.0)
    rows = [torch.cat(list(row), 2) for row in cells.split(columns)]
    return F.pad(torch.cat(rows, 1), (0, -gap, 0, -gap))


def rmse_by_image(outputs: Tensor, images: Tensor) -> Tensor:
    """Root mean squared errors [N] of reconstructions of [N, C, H, W]."""
    return (outputs - images).square().mean((1, 2, 3)).sqrt()
