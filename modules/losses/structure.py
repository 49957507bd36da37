"""Losses on structure: SSIM of images and spatial continuity of feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.ops.images import luma


def ssim_loss(images: Tensor, references: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """1 - SSIM of the luma of two batches in [-1, 1] (Wang et al. 2004), from 0 to 2, so that color is free. K1 = 0.01, K2 =
    0.03, Gaussian window that is shrunk to the largest odd size that fits; no padding."""
    x, y = luma(images), luma(references)
    reach = (min(window, *x.shape[-2:]) - 1) // 2
    kernel = torch.exp(-torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype).square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return 1 - (luminance * structure).mean()


def continuity_loss(features: Tensor) -> Tensor:
    """Mean absolute difference of neighboring positions of a map [N, C, H, W] (Kim, Kanezaki & Tanaka 2020)."""
    # Paper: a sum over positions; here: the mean over positions and channels, so that the weight does not depend on size.
    down = (features[..., 1:, :] - features[..., :-1, :]).abs()
    right = (features[..., :, 1:] - features[..., :, :-1]).abs()
    return sum((d.mean() for d in (down, right) if d.numel()), features.new_zeros(()))
