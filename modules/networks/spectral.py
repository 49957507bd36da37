"""Spectral normalization (Miyato et al. 2018, arXiv 1802.05957)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SpectralNorm(nn.Module):
    """W / sigma, sigma = u^T W v by one power iteration in each forward pass in training; u and v rest in eval mode.

    As `torch.nn.utils.parametrizations.spectral_norm`, but a weight of zeros stays zero instead of becoming NaN.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        rows = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(rows.new_empty(rows.shape[0]).normal_(), dim=0))
        self.register_buffer("v", F.normalize(rows.new_empty(rows.shape[1]).normal_(), dim=0))
        self._iterate(rows)

    @torch.no_grad()
    def _iterate(self, rows: Tensor) -> None:
        self.v.copy_(F.normalize(torch.mv(rows.T, self.u), dim=0, eps=self.eps))
        self.u.copy_(F.normalize(torch.mv(rows, self.v), dim=0, eps=self.eps))

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        if self.training:
            self._iterate(rows)
        u, v = self.u.clone(), self.v.clone()  # the next pass changes them before backward
        sigma = torch.dot(u, torch.mv(rows, v))
        return weight / torch.where(sigma == 0, torch.ones_like(sigma), sigma)


def spectral_norm(layer: nn.Module, eps: float = 1e-12) -> nn.Module:
    """`layer` with spectrally normalized weight, whose first dimension is that of outputs."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, eps))
    return layer
