"""Vector quantizer of VQGAN, with a code book that learns by gradients or as a moving average (van den Oord et al. 2017)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.ops.nearest import nearest

EPSILON = 1e-5


class CodeBook(nn.Module):
    """The entries `weight` [K, L]: a parameter, or a buffer if they are a moving average."""

    def __init__(self, num_codes: int, dim: int, trained: bool) -> None:
        super().__init__()
        weight = torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


class VectorQuantizer(nn.Module):
    """Replaces each vector of a map by its nearest code book entry; gradients pass straight through.

    `usage` [K] is a moving average of how many vectors an iteration gives each code, for the average code book and for
    revival. Computes in float32 whatever the precision of training.

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
        self.embedding = CodeBook(num_codes, dim, trained=not ema)
        self.register_buffer("usage", torch.ones(num_codes))
        if ema:
            self.register_buffer("sums", self.embedding.weight.clone())

    @property
    def num_codes(self) -> int:
        return len(self.embedding.weight)

    def codes(self, latents: Tensor) -> Tensor:
        """Index [N, h, w] of the nearest entry for latents [N, L, h, w]; the first of equally near ones."""
        with torch.autocast(latents.device.type, enabled=False):
            rows = rows_of(latents.detach())
            return nearest(rows, self.embedding.weight.detach().float())[1].view(len(latents), *latents.shape[-2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Entries [N, L, h, w] of codes [N, h, w]."""
        return self.embedding.weight[codes].permute(0, 3, 1, 2)

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


def rows_of(latents: Tensor) -> Tensor:
    """Vectors [N h w, L] of latents [N, L, h, w], in float32."""
    return latents.float().permute(0, 2, 3, 1).flatten(0, 2)
