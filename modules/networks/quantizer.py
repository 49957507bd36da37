"""Vector quantizer of VQGAN, with a code book that learns by gradients or as a moving average (van den Oord et al. 2017)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.ops.nearest import nearest

EPSILON = 1e-5


def rows_of(maps: Tensor) -> Tensor:
    """Vectors [N h w, L] of maps [N, L, h, w], in float32."""
    return maps.float().permute(0, 2, 3, 1).flatten(0, 2)


def nearest_codes(maps: Tensor, entries: Tensor) -> Tensor:
    """Index [N, h, w] of the nearest entry [K, L], of equals the first, for maps [N, L, h, w]; in float32 in any precision."""
    with torch.autocast(maps.device.type, enabled=False):
        indices = nearest(rows_of(maps.detach()), entries.detach().float())[1]
    return indices.view(len(maps), *maps.shape[-2:])


def look_up(codes: Tensor, entries: Tensor) -> Tensor:
    """Entries [N, L, h, w] of codes [N, h, w]."""
    return entries[codes].permute(0, 3, 1, 2)


class VectorQuantizer(nn.Module):
    """Replaces each vector of a map by its nearest code book entry; gradients pass straight through.

    `usage` [K] is a moving average of how many vectors an iteration gives each code. Computes in float32 in any precision.

    Args:
        beta: weight of the commitment.
        legacy: `beta` weighs the other term, as in the released code by mistake.
        ema: the code book is the average of the vectors that chose an entry, instead of learning by gradients.
        decay: of the averages.
    """

    def __init__(
        self, num_codes: int, dim: int, beta: float = 0.25, legacy: bool = False, ema: bool = False, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.beta, self.legacy, self.ema, self.decay = beta, legacy, ema, decay
        weight = torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)
        self.embedding = nn.Module()  # the entries `weight` [K, L], under the name in released checkpoints
        self.register_buffer("usage", torch.ones(num_codes))
        if ema:
            self.embedding.register_buffer("weight", weight)
            self.register_buffer("sums", weight.clone())
        else:
            self.embedding.weight = nn.Parameter(weight)

    @property
    def num_codes(self) -> int:
        return len(self.embedding.weight)

    def codes(self, latents: Tensor) -> Tensor:
        return nearest_codes(latents, self.embedding.weight)

    def lookup(self, codes: Tensor) -> Tensor:
        return look_up(codes, self.embedding.weight)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents [N, L, h, w], codes [N, h, w], and the loss of encoder and code book."""
        codes = self.codes(latents)
        with torch.autocast(latents.device.type, enabled=False):
            latents, entries = latents.float(), self.lookup(codes).float()
            loss = commitment = F.mse_loss(latents, entries.detach())
            if self.ema:
                loss = self.beta * commitment
            else:
                codebook = F.mse_loss(entries, latents.detach())
                loss = commitment + self.beta * codebook if self.legacy else codebook + self.beta * commitment
            return latents + (entries - latents).detach(), codes, loss

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Averages after an iteration; `total` adds a tensor up over ranks, before it counts."""
        rows, codes = rows_of(latents), codes.flatten()
        counts = torch.bincount(codes, minlength=self.num_codes).float()
        sums = torch.zeros_like(self.embedding.weight, dtype=torch.float32).index_add_(0, codes, rows)
        counts, sums = total(torch.cat([counts[:, None], sums], 1)).split([1, sums.shape[1]], 1)
        self.usage.lerp_(counts[:, 0], 1 - self.decay)
        if self.ema:
            self.sums.lerp_(sums, 1 - self.decay)
            total_usage = self.usage.sum()
            smoothed = (self.usage + EPSILON) / (total_usage + self.num_codes * EPSILON) * total_usage
            self.embedding.weight.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def replace(self, chosen: Tensor, entries: Tensor, usage: float) -> None:
        """New entries [n, L] for the codes `chosen` [n], with averages to match: else the next update would undo it."""
        self.embedding.weight[chosen] = entries.to(self.embedding.weight.dtype)
        self.usage[chosen] = usage
        if self.ema:
            self.sums[chosen] = entries * usage
