"""Encoder and decoder of VQGAN (Esser, Rombach & Ommer 2021, arXiv 2012.09841, appendix; from Ho et al. 2020's U-Net).

Names, shapes and settings of all layers are those of CompVis' released models, so that their weights fit.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of group norm: all numbers of channels are multiples of it


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class ResBlock(nn.Module):
    """Two convolutions with norm and SiLU before each, added to the input."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs), conv(outputs, outputs)
        self.dropout = nn.Dropout(dropout)
        if inputs != outputs:
            self.nin_shortcut = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [N, positions, C]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """`num_blocks` residual blocks at one resolution, each with attention after it where asked for."""

    def __init__(self, inputs: int, outputs: int, num_blocks: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(outputs if i else inputs, outputs, dropout) for i in range(num_blocks))
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(num_blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Images [N, in_channels, H, W] -> maps [N, z_channels, H / f, W / f], f = unshuffle · 2^(levels - 1).

    Args:
        ch, ch_mult: channels of level l are ch · ch_mult[l].
        num_res_blocks: of each level; the decoder has one more.
        attn_resolutions: levels with attention, by the side of their maps at images of `resolution`.
        unshuffle: pixels are folded into channels so many times per axis before the first convolution; 1 in the paper.
    """

    def __init__(
        self, resolution: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, attn_resolutions: Sequence[int],
        z_channels: int, dropout: float = 0.0, unshuffle: int = 1, in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        self.unshuffle = unshuffle
        self.conv_in = conv(in_channels * unshuffle**2, ch)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            attention = resolution // unshuffle // 2**i in attn_resolutions
            level = Level(widths[i - 1] if i else ch, width, num_res_blocks, attention, dropout)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], dropout)
        self.norm_out, self.conv_out = norm(widths[-1]), conv(widths[-1], z_channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(images, self.unshuffle))
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Maps [N, z_channels, h, w] -> images [N, out_channels, f h, f w], not clamped; see `Encoder`."""

    def __init__(
        self, resolution: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, attn_resolutions: Sequence[int],
        z_channels: int, dropout: float = 0.0, unshuffle: int = 1, out_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        self.unshuffle = unshuffle
        self.conv_in = conv(z_channels, widths[-1])
        self.mid = Middle(widths[-1], dropout)
        self.up = nn.ModuleList()  # the first is the one with the highest resolution, which comes last
        for i, width in enumerate(widths):
            attention = resolution // unshuffle // 2**i in attn_resolutions
            level = Level(widths[min(i + 1, len(widths) - 1)], width, num_res_blocks + 1, attention, dropout)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], out_channels * unshuffle**2)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.unshuffle)
