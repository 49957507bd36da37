"""Layers with equalized learning rate (Karras et al. 2018): weights N(0, 1), scaled by their fan-in when they are used."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2


def activate(values: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU, slope 0.2, times sqrt(2), which keeps the variance; clamped to ± `clamp`."""
    return limit(F.leaky_relu(values, SLOPE) * math.sqrt(2), clamp)


def limit(values: Tensor, clamp: float | None) -> Tensor:
    """Clamped to ± `clamp`, where given."""
    return values if clamp is None else values.clamp(-clamp, clamp)


class EqualLinear(nn.Module):
    """Linear layer; `lr_mul` scales the learning rate of weight and bias."""

    def __init__(self, inputs: int, outputs: int, lr_mul: float = 1.0, bias: float = 0.0, activation: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_mul))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(inputs), lr_mul, activation

    def forward(self, values: Tensor) -> Tensor:
        values = F.linear(values, self.weight * self.scale, self.bias * self.lr_mul)
        return activate(values) if self.activation else values


class EqualConv(nn.Module):
    """Convolution with odd kernel; "same" padding unless given. What is activated is clamped to ± `clamp`."""

    clamp: float | None = None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None, bias: bool = True,
        activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.stride = 1 / math.sqrt(inputs * kernel**2), stride
        self.padding, self.activation = kernel // 2 if padding is None else padding, activation

    def forward(self, images: Tensor) -> Tensor:
        images = F.conv2d(images, self.weight * self.scale, self.bias, self.stride, self.padding)
        return activate(images, self.clamp) if self.activation else images
