"""PatchGAN discriminator (Isola et al. 2017, arXiv 1611.07004) as VQGAN uses it."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from modules.networks.patch_gan import dcgan_init


class PatchDiscriminator(nn.Module):
    """Logits [N, 1, h, w] of overlapping patches; receptive field 16, 34, 70 pixels for 1, 2, 3 `layers`. `width`: channels of
    the first convolution. With spectral norm a logit does not depend on the batch."""

    def __init__(self, layers: int = 3, width: int = 64, norm: Literal["batch", "spectral"] = "batch") -> None:
        super().__init__()
        widths = [width * min(2**n, 8) for n in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, layers + 1):
            stride, biased = (2 if n < layers else 1), norm == "spectral"
            main.append(nn.Conv2d(widths[n - 1], widths[n], 4, stride, padding=1, bias=biased))
            main += [nn.BatchNorm2d(widths[n]), nn.LeakyReLU(0.2)] if norm == "batch" else [nn.LeakyReLU(0.2)]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        for layer in self.main:
            dcgan_init(layer)
            if norm == "spectral" and isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)
