"""Adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676), pipeline "bgc": flips, rotations, shifts, scales,
and color, each for an image with probability p, which follows how much the discriminator overfits."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _matrices(batch_size: int, size: int, device: torch.device) -> Tensor:
    return torch.eye(size, device=device).repeat(batch_size, 1, 1)


def _rotation(angles: Tensor) -> Tensor:
    matrices = _matrices(len(angles), 3, angles.device)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angles.sin(), angles.sin()
    return matrices


def _scale(x: Tensor, y: Tensor) -> Tensor:
    matrices = _matrices(len(x), 3, x.device)
    matrices[:, 0, 0], matrices[:, 1, 1] = x, y
    return matrices


def _shift(x: Tensor, y: Tensor) -> Tensor:
    matrices = _matrices(len(x), 3, x.device)
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    return matrices


class ADA(nn.Module):
    """Augments reals and fakes; `p` and the statistics of its controller are buffers, so that a resume is exact.

    Paper: reflection, a 12-tap filter around the resampling, crop; here: bilinear `grid_sample` with reflection, the same
    distributions. Skipped as a whole while p is 0.

    Args:
        target: of the overfitting statistic E[sign(D(real))].
        kimg: thousands of images in which p may rise from 0 to 1; the authors use 100 for transfer.
        interval: iterations between two updates of p.
        p: initial probability.
    """

    def __init__(self, target: float = 0.6, kimg: float = 500.0, interval: int = 4, p: float = 0.0) -> None:
        super().__init__()
        self.target, self.kimg, self.interval = target, kimg, interval
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("sign_sum", torch.tensor(0.0))
        self.register_buffer("sign_count", torch.tensor(0.0))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("overfitting", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, real_logits: Tensor, mean: Callable[[Tensor], Tensor] = lambda values: values, ranks: int = 1) -> None:
        """Adds the logits [N, …] of augmented reals; every `interval`-th call moves p. `mean` is over the ranks."""
        self.sign_sum += real_logits.sign().reshape(len(real_logits), -1).mean(1).sum()
        self.sign_count += len(real_logits)  # images, of which p counts the thousands
        self.calls += 1
        if int(self.calls) % self.interval == 0:
            total, count = mean(torch.stack([self.sign_sum, self.sign_count]))
            self.overfitting.copy_(total / count)
            step = (self.overfitting - self.target).sign() * count * ranks / (self.kimg * 1000)
            self.p.copy_((self.p + step).clamp(0, 1))
            self.sign_sum.zero_()
            self.sign_count.zero_()

    def forward(self, images: Tensor) -> Tensor:
        p = float(self.p)
        if p == 0:
            return images
        geometry, color = self._geometry(images, p), self._color(images, p)
        grid = F.affine_grid(geometry[:, :2], list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
        pixels = moved.flatten(2)
        return (color[:, :3, :3] @ pixels + color[:, :3, 3:]).view_as(moved)

    def _geometry(self, images: Tensor, p: float) -> Tensor:
        """Inverse maps [N, 3, 3] in normalized coordinates (for square images)."""
        batch_size, device, (height, width) = len(images), images.device, images.shape[-2:]

        def chosen(values: Tensor, neutral: float, chance: float = p) -> Tensor:
            return torch.where(torch.rand(batch_size, device=device) < chance, values, torch.full_like(values, neutral))

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(batch_size, device=device)

        def normal(deviation: float) -> Tensor:
            return deviation * torch.randn(batch_size, device=device)

        one, rotations = torch.ones(batch_size, device=device), 1 - math.sqrt(1 - min(p, 1))
        flip = chosen(1 - 2 * torch.randint(0, 2, (batch_size,), device=device).float(), 1.0)
        matrix = _scale(flip, one)
        matrix = matrix @ _rotation(chosen(math.pi / 2 * torch.randint(0, 4, (batch_size,), device=device).float(), 0.0))
        shift_x, shift_y = ((uniform(-0.125, 0.125) * side).round() / side * 2 for side in (width, height))
        matrix = matrix @ _shift(chosen(shift_x, 0.0), chosen(shift_y, 0.0))
        scale = chosen(2 ** normal(0.2), 1.0)
        matrix = matrix @ _scale(scale, scale)
        matrix = matrix @ _rotation(chosen(uniform(-math.pi, math.pi), 0.0, rotations))
        scale = chosen(2 ** normal(0.2), 1.0)
        matrix = matrix @ _scale(scale, 1 / scale)
        matrix = matrix @ _rotation(chosen(uniform(-math.pi, math.pi), 0.0, rotations))
        return matrix @ _shift(chosen(2 * normal(0.125), 0.0), chosen(2 * normal(0.125), 0.0))

    def _color(self, images: Tensor, p: float) -> Tensor:
        """Maps [N, 4, 4] of homogeneous colors."""
        batch_size, device = len(images), images.device
        axis = torch.full((3,), 1 / math.sqrt(3), device=device)
        outer, identity = torch.outer(axis, axis), torch.eye(3, device=device)

        def chosen(values: Tensor, neutral: float) -> Tensor:
            return torch.where(torch.rand(batch_size, device=device) < p, values, torch.full_like(values, neutral))

        def embed(matrices: Tensor) -> Tensor:
            result = _matrices(batch_size, 4, device)
            result[:, :3, :3] = matrices
            return result

        brightness = chosen(0.2 * torch.randn(batch_size, device=device), 0.0)
        color = _matrices(batch_size, 4, device)
        color[:, :3, 3] = brightness[:, None]
        contrast = chosen(2 ** (0.5 * torch.randn(batch_size, device=device)), 1.0)
        color = embed(contrast[:, None, None] * identity) @ color
        flip = chosen(torch.randint(0, 2, (batch_size,), device=device).float(), 0.0)
        color = embed(identity - 2 * flip[:, None, None] * outer) @ color
        angle = chosen(math.pi * (2 * torch.rand(batch_size, device=device) - 1), 0.0)[:, None, None]
        cross = torch.zeros(3, 3, device=device)
        cross[0, 1], cross[0, 2], cross[1, 2] = -axis[2], axis[1], -axis[0]
        cross = cross - cross.T
        color = embed(angle.cos() * identity + angle.sin() * cross + (1 - angle.cos()) * outer) @ color
        saturation = chosen(2 ** torch.randn(batch_size, device=device), 1.0)[:, None, None]
        return embed(outer + saturation * (identity - outer)) @ color
