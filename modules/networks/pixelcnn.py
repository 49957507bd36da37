"""Gated PixelCNN over maps of codes (van den Oord et al. 2016, arXiv 1606.05328; Eq. 2, Figure 2): likelihood and sampler.

Differences: causality comes from one-sided padding; the vertical stack is strictly above from its first layer on; positions.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from modules.ops.noise import rand
from modules.ops.positions import coordinate_map

# Root mean square of tanh(a)·sigmoid(b) for a, b ~ N(0, 1). Weights that read gated features are divided by it, so that
# pre-activations start with variance one in every layer.
GATED_RMS = 0.34


def gate(features: Tensor) -> Tensor:
    a, b = features.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def at_one_position(convolution: nn.Conv2d, window: Tensor) -> Tensor:
    """Output [B, C'] of a convolution where its kernel covers `window` [B, C, …]; several times quicker than a call of it."""
    return F.linear(window.flatten(1), convolution.weight.flatten(1), convolution.bias)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None, top_p: float = 1.0) -> Tensor:
    """Codes [B] from logits [B, K] by inverting the distribution function at `uniform` [B] in [0, 1), of the `top_k` likeliest
    codes (None: of all), and of these of the fewest likeliest that have the probability `top_p` together."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits.shape[1]:
        values, top = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, -math.inf).scatter_(1, top, values)
    if top_p < 1:
        values, order = logits.sort(dim=1, descending=True, stable=True)
        shares = values.softmax(1)
        values = values.masked_fill(shares.cumsum(1) - shares >= top_p, -math.inf)
        logits = torch.empty_like(logits).scatter_(1, order, values)
    cumulative = logits.softmax(1).cumsum(1)
    # Divided by its own end the sum reaches exactly 1 > uniform: no index K, never a code of probability 0.
    return (cumulative / cumulative[:, -1:] <= uniform[:, None]).sum(1)


class GatedLayer(nn.Module):
    """`vertical` sees rows i-half … i (first layer: … i-1) of its stack, `horizontal` columns j-half … j (first: … j-1)."""

    def __init__(self, width: int, kernel: int, dropout: float, first: bool, last: bool):
        super().__init__()
        self.half = kernel // 2
        self.span = self.half if first else self.half + 1
        self.first = first
        self.vertical = nn.Conv2d(width, 2 * width, (self.span, kernel), padding=(0, self.half))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.span))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.position_bias = nn.Conv2d(2, 4 * width, 1, bias=False)
        self.out = None if last else nn.Conv2d(width, width, 1)  # nothing reads the last horizontal features
        self.dropout = nn.Dropout(dropout)
        above = 1.0 if first else 1 / GATED_RMS  # the first layer reads embeddings, the others gated features
        gains = {self.vertical: above, self.horizontal: math.sqrt(0.5), self.link: math.sqrt(0.5)}
        if self.out is not None:
            gains[self.out] = 1 / GATED_RMS if first else 1.0
        for convolution, gain in gains.items():
            nn.init.normal_(convolution.weight, std=gain / math.sqrt(convolution.weight[0].numel()))
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.position_bias.weight, std=0.5)

    def from_above(self, rows: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack one layer on, and its input to the horizontal stack; `rows` begin `half` above the output's."""
        features = self.vertical(rows)
        for_vertical, for_horizontal = self.position_bias(coordinates).chunk(2, dim=1)
        features = features + for_vertical
        return gate(features), self.link(features) + for_horizontal

    def forward(self, v: Tensor, h: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Both stacks [B, C, h, w] one layer on (`h` None after the last), and the gated features."""
        crop = -1 if self.first else 0
        v, context = self.from_above(F.pad(v, (0, 0, self.half, crop)), coordinates)
        gated = self.dropout(gate(self.horizontal(F.pad(h, (self.half, crop))) + context))
        if self.out is None:
            return v, None, gated
        # A residual in the first layer would hand the current code to its own prediction.
        return self.dropout(v), self.out(gated) if self.first else h + self.out(gated), gated


class GatedPixelCNN(nn.Module):
    """p(codes) = Π p(code_t | codes before t in raster order) over int64 maps [B, h, w] of K = `num_codes` codes, of any size.

    A position sees what precedes it within first_kernel // 2 + num_layers · (kernel // 2) cells, and its own (x, y) in [-1, 1]:
    landscapes have their sky above.

    Args:
        width: channels C of both stacks and of the embedding; `head`: of the hidden layer before the logits.
        num_layers: gated layers after the first one.
        first_kernel, kernel: side of the neighborhood of the first and of the other layers, odd, at least 3.
    """

    def __init__(
        self, num_codes: int, width: int = 64, num_layers: int = 8, first_kernel: int = 7, kernel: int = 3, head: int = 128,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes, width)
        self.layers = nn.ModuleList(
            GatedLayer(width, kernel if index else first_kernel, dropout, index == 0, index == num_layers)
            for index in range(num_layers + 1)
        )
        self.skip = nn.Conv2d((num_layers + 1) * width, width, 1)  # the sum of one 1×1 convolution per layer, as one
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, head, 1), nn.ReLU(), nn.Conv2d(head, num_codes, 1))
        # Almost flat logits: the first loss is ln K, and gradients already reach every layer.
        nn.init.normal_(self.head[-1].weight, std=0.1 / math.sqrt(head))
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, K, h, w] of every position given the codes before it, 0 … K-1."""
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        coordinates, skips = coordinate_map(*codes.shape[-2:], h), []
        for layer in self.layers:
            v, h, gated = layer(v, h, coordinates)
            skips.append(gated)
        return self.head(self.skip(torch.cat(skips, dim=1)))

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log-likelihood [B] of whole maps in nats, differentiable; call it in eval mode to measure (dropout)."""
        return -F.cross_entropy(self(codes), codes, reduction="none").sum(dim=(1, 2))

    @torch.no_grad()
    def bits_per_code(self, codes: Tensor) -> Tensor:
        """Mean negative log2-likelihood of a code; map by map, so that memory does not grow with their number."""
        nats = torch.stack([self.log_prob(row.unsqueeze(0)).sum() for row in codes])
        return -nats.sum() / codes.numel() / math.log(2)

    @torch.no_grad()
    def sample(
        self, num: int, size: tuple[int, int], temperature: float = 1.0, top_k: int | None = None,
        known: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Code maps int64 [num, h, w], without dropout in either mode. With `known` codes and `mask` (True = draw this cell),
        both [num or 1, h, w], the other cells keep their known codes. Consumes `rand(num, h, w)` whatever the mask."""
        if top_k is not None and top_k > self.num_codes:
            raise UserError(f"top_k={top_k}: allowed are 1 to {self.num_codes} (the number of codes) and null")
        device = self.embedding.weight.device
        mask = torch.ones(num, *size, dtype=torch.bool, device=device) if mask is None else mask.expand(num, *size)
        codes = torch.zeros(num, *size, dtype=torch.int64, device=device) if known is None else known.expand(num, *size)
        codes, uniform = codes.masked_fill(mask, 0), rand(num, *size).to(device)
        ends = {row: column + 1 for row, column in mask.any(dim=0).nonzero().tolist()}  # of the drawn cells of a row
        with torch.autocast(device.type, enabled=False):
            for row, column, logits in self._scan(codes, [ends.get(row, 0) for row in range(size[0])]):
                drawn = draw(logits, uniform[:, row, column], temperature, top_k)
                codes[:, row, column] = torch.where(mask[:, row, column], drawn, codes[:, row, column])
        return codes

    def _scan(self, codes: Tensor, ends: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
        """Row, column and logits [B, K] of the first `ends[row]` cells of each row, in raster order; the caller writes what it
        draws into `codes` before it continues. Every feature is computed once."""
        num, height, width = codes.shape
        weight, layers = self.embedding.weight, self.layers
        coordinates = coordinate_map(height, width, weight)
        # What the vertical convolutions read, below their padding; lines: the horizontal ones in one row, right of theirs.
        maps = [weight.new_zeros(num, weight.shape[1], layer.half + height, width) for layer in layers]
        for row, end in enumerate(ends):
            v, contexts = None, []
            for layer, rows in zip(layers, maps, strict=True):
                if v is not None:
                    rows[:, :, layer.half + row, None] = v
                v, context = layer.from_above(rows[:, :, row : row + layer.span], coordinates[:, :, row, None])
                contexts.append(context)
            lines = [weight.new_zeros(num, weight.shape[1], layer.half + end) for layer in layers]
            for column in range(end):
                h, skips = 0, []
                for layer, line, context in zip(layers, lines, contexts, strict=True):
                    if skips:
                        line[:, :, layer.half + column] = h
                    window = line[:, :, column : column + layer.span]
                    skips.append(gate(at_one_position(layer.horizontal, window) + context[:, :, 0, column]))
                    h = h if layer.out is None else h + at_one_position(layer.out, skips[-1])
                features = at_one_position(self.skip, torch.cat(skips, dim=1))
                for part in self.head:
                    features = at_one_position(part, features) if isinstance(part, nn.Conv2d) else part(features)
                yield row, column, features
                lines[0][:, :, layers[0].half + column] = self.embedding(codes[:, row, column])
            maps[0][:, :, layers[0].half + row] = self.embedding(codes[:, row]).transpose(1, 2)
