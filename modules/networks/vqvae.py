"""Vector-quantized generator of FewGAN's coarsest scale: encoder, quantizer with positions, decoder."""

import math

import torch
from torch import Tensor, nn

from modules.networks.patch_gan import conv_stack
from modules.networks.quantizer import look_up, nearest_codes, rows_of
from modules.ops.kmeans import kmeans
from modules.ops.positions import coordinate_map


class VectorQuantizer(nn.Module):
    """A code book [K, code_dim + 2] whose entries hold a feature and a position: two coordinates times sqrt(lambda_pos), with
    the squared distances of the paper's lambda_pos-fold concatenation."""

    def __init__(self, num_codes: int, code_dim: int, position_weight: float) -> None:
        super().__init__()
        self.position_scale = math.sqrt(position_weight)
        self.codebook = nn.Parameter(torch.randn(num_codes, code_dim + 2))

    def add_coordinates(self, features: Tensor) -> Tensor:
        """Features [N, C, h, w] → [N, C + 2, h, w]."""
        positions = self.position_scale * coordinate_map(*features.shape[-2:], features)
        return torch.cat([features, positions.expand(len(features), -1, -1, -1)], dim=1)

    def indices(self, features: Tensor) -> Tensor:
        return nearest_codes(features, self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        return look_up(codes, self.codebook)

    @torch.no_grad()
    def initialize(self, features: Tensor, generator: torch.Generator) -> None:
        self.codebook.copy_(kmeans(rows_of(features), len(self.codebook), generator))

    @torch.no_grad()
    def revive(self, features: Tensor, generator: torch.Generator) -> int:
        """Re-seeds every code that no position of `features` uses from random positions of it; returns how many."""
        rows = rows_of(features)
        dead = torch.bincount(self.indices(features).flatten(), minlength=len(self.codebook)) == 0
        order = torch.randperm(len(rows), generator=generator).to(rows.device)[: int(dead.sum())]
        dead = dead.nonzero().squeeze(1)[: len(order)]
        self.codebook[dead] = rows[order]
        return len(dead)


class VQGenerator(nn.Module):
    """Encoder, quantizer, decoder at stride 1: images [N, 3, h, w] <-> codes [N, h, w]. Features have unit root mean square at
    each position, so that `position_weight` has a fixed meaning and they cannot shrink to please the continuity loss."""

    def __init__(
        self, num_codes: int, code_dim: int, position_weight: float, width: int, encoder_depth: int, decoder_depth: int
    ) -> None:
        super().__init__()
        self.encoder = conv_stack(3, width, code_dim, encoder_depth)
        self.quantizer = VectorQuantizer(num_codes, code_dim, position_weight)
        self.decoder = conv_stack(code_dim + 2, width, 3, decoder_depth)
        self.encoder_reach = encoder_depth + 1  # radius of the encoder's receptive field, in cells

    def encode(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        return features * (features.square().mean(1, keepdim=True) + 1e-8).rsqrt()

    def codes(self, images: Tensor) -> Tensor:
        return self.quantizer.indices(self.quantizer.add_coordinates(self.encode(images)))

    def decode_entries(self, entries: Tensor) -> Tensor:
        """Images of code book entries [N, code_dim + 2, h, w]."""
        return torch.tanh(self.decoder(entries))

    def decode(self, codes: Tensor) -> Tensor:
        return self.decode_entries(self.quantizer.lookup(codes))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.codes(images))
