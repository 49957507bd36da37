"""Patch VAE and refinement blocks of HP-VAE-GAN: 3x3 convolutions, stride 1, same padding, so any size works."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from modules.networks.patch_gan import hidden_layers

conv3 = partial(nn.Conv2d, kernel_size=3, padding=1)


def normalized_stack(inputs: int, width: int, outputs: int, depth: int, bn_mode: str) -> nn.Sequential:
    """`depth` hidden layers with batch norm, then a linear convolution. `bn_mode: eval` keeps running statistics for eval mode;
    `batch` always uses those of the batch, so that its images influence each other."""
    norm = partial(nn.BatchNorm2d, track_running_stats=bn_mode == "eval")
    return nn.Sequential(*hidden_layers(inputs, width, depth, conv3, norm), conv3(width, outputs))


class PatchEncoder(nn.Module):
    """Images [N, 3, h, w] to mean and log-variance [N, latent_dim, h, w]; spectral norm in the hidden layers."""

    def __init__(self, latent_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*hidden_layers(3, width, depth, lambda *channels: spectral_norm(conv3(*channels))))
        self.mean, self.log_variance = (conv3(width, latent_dim) for _ in range(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.mean(features), self.log_variance(features)


class PatchVAE(nn.Module):
    """Scale 0: images [N, 3, h, w] <-> a latent of the same height and width."""

    def __init__(self, latent_dim: int, width: int, depth: int, encoder_depth: int, bn_mode: str = "eval") -> None:
        super().__init__()
        self.encoder = PatchEncoder(latent_dim, width, encoder_depth)
        self.decoder = normalized_stack(latent_dim, width, 3, depth, bn_mode)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.decoder(latents))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encoder(images)[0])


class RefinementBlock(nn.Module):
    """Adds detail to an upsampled image y [N, 3, H, W], with noise on the body's input only. `squash: sum` is tanh(body + y),
    as released: bounded, but 0.9 becomes 0.72 where the body gives 0; `residual` is y + tanh(body), as in SinGAN."""

    def __init__(self, width: int, depth: int, squash: str = "sum", bn_mode: str = "eval") -> None:
        super().__init__()
        self.squash = squash
        self.body = normalized_stack(3, width, 3, depth, bn_mode)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        detail = self.body(images if noise is None else images + noise)
        return torch.tanh(detail + images) if self.squash == "sum" else images + torch.tanh(detail)
