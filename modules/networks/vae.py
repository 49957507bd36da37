"""Patch VAE and refinement blocks of HP-VAE-GAN: 3x3 convolutions, stride 1, same padding, so any size works."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from core.errors import UserError

SLOPE = 0.2
SQUASH = ("sum", "residual")
BN_MODES = ("eval", "batch")


def normalized_stack(inputs: int, width: int, outputs: int, depth: int, bn_mode: str) -> nn.Sequential:
    """`depth` times convolution, batch norm, LeakyReLU, then a linear convolution; receptive field 2 * depth + 3.

    `bn_mode: eval` keeps running statistics for eval mode. `batch` keeps none and always uses those of the batch at
    hand, as a network that is never switched to eval, so that the images of a batch influence each other.
    """
    if bn_mode not in BN_MODES:
        raise UserError(f"bn_mode is {bn_mode!r}; allowed are {' and '.join(map(repr, BN_MODES))}")
    layers: list[nn.Module] = []
    for i in range(depth):
        norm = nn.BatchNorm2d(width, track_running_stats=bn_mode == "eval")
        layers += [nn.Conv2d(width if i else inputs, width, 3, padding=1), norm, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))


class PatchEncoder(nn.Module):
    """Images [N, 3, h, w] to mean and log-variance of a spatial latent, both [N, latent_dim, h, w].

    Spectral norm in the hidden layers; receptive field 2 * depth + 3.
    """

    def __init__(self, latent_dim: int, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [spectral_norm(nn.Conv2d(width if i else 3, width, 3, padding=1)), nn.LeakyReLU(SLOPE)]
        self.features = nn.Sequential(*layers)
        self.mean = nn.Conv2d(width, latent_dim, 3, padding=1)
        self.log_variance = nn.Conv2d(width, latent_dim, 3, padding=1)

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
        """Images in [-1, 1] of latents [N, latent_dim, h, w]."""
        return torch.tanh(self.decoder(latents))

    def forward(self, images: Tensor) -> Tensor:
        """The images through the latent's mean."""
        return self.decode(self.encoder(images)[0])


class RefinementBlock(nn.Module):
    """Adds detail to an upsampled image [N, 3, H, W], with noise on the body's input only.

    `squash: sum` is tanh(body + y), as the released code has it: bounded, but 0.9 becomes 0.72 where the body gives 0.
    `squash: residual` is y + tanh(body), as in SinGAN: the identity can be represented, the range is not bounded.
    """

    def __init__(self, width: int, depth: int, squash: str = "sum", bn_mode: str = "eval") -> None:
        super().__init__()
        if squash not in SQUASH:
            raise UserError(f"squash is {squash!r}; allowed are {' and '.join(map(repr, SQUASH))}")
        self.squash = squash
        self.body = normalized_stack(3, width, 3, depth, bn_mode)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        detail = self.body(images if noise is None else images + noise)
        return torch.tanh(detail + images) if self.squash == "sum" else images + torch.tanh(detail)
