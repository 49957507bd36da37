"""Gated PixelCNN over maps of codes: an exact likelihood and an exact, cached ancestral sampler.

Conditional Image Generation with PixelCNN Decoders, van den Oord et al. 2016, https://arxiv.org/abs/1606.05328
(gate: Eq. 2; two stacks without a blind spot: Section 2.2 and Figure 2). Differences: causality comes from one-sided
padding, not from masked weights; the vertical stack is strictly above from its first layer on; positions can be read.
"""

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from modules.ops.noise import rand
from modules.ops.positions import coordinate_map

# Root mean square of tanh(a)·sigmoid(b) for a, b ~ N(0, 1). Weights that read gated features are divided by it, so
# that every layer starts with pre-activations of variance one and deep gates neither vanish nor saturate.
GATED_RMS = 0.34


def gate(features: Tensor) -> Tensor:
    """tanh(a) · sigmoid(b) of the two halves of the channels, [B, 2C, …] → [B, C, …]."""
    a, b = features.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Codes [B] from logits [B, K] by inverting the distribution function at `uniform` [B] in [0, 1).

    Exactly `top_k` codes can be drawn (all for None); ties at the border are cut by index.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits.shape[1]:
        values, top = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, -math.inf).scatter_(1, top, values)
    cumulative = logits.softmax(1).cumsum(1)
    # Divided by its own end the sum reaches exactly 1 > uniform: no index K, never a code of probability 0.
    return (cumulative / cumulative[:, -1:] <= uniform[:, None]).sum(1)


class GatedLayer(nn.Module):
    """One layer of both stacks.

    `vertical` sees rows i-half … i (first layer: … i-1) of its stack, `horizontal` columns j-half … j (first: … j-1).
    """

    def __init__(self, width: int, kernel: int, dropout: float, coordinates: bool, first: bool, last: bool):
        super().__init__()
        self.half = kernel // 2
        self.span = self.half if first else self.half + 1
        self.first = first
        self.vertical = nn.Conv2d(width, 2 * width, (self.span, kernel), padding=(0, self.half))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.span))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.position_bias = nn.Conv2d(2, 4 * width, 1, bias=False) if coordinates else None
        self.out = None if last else nn.Conv2d(width, width, 1)  # nothing reads the last horizontal features
        self.dropout = nn.Dropout(dropout)
        self._initialize()

    def _initialize(self) -> None:
        above = 1.0 if self.first else 1 / GATED_RMS  # the first layer reads embeddings, the others gated features
        gains = {self.vertical: above, self.horizontal: math.sqrt(0.5), self.link: math.sqrt(0.5)}
        if self.out is not None:
            gains[self.out] = 1 / GATED_RMS if self.first else 1.0
        for convolution, gain in gains.items():
            nn.init.normal_(convolution.weight, std=gain / math.sqrt(convolution.weight[0].numel()))
            nn.init.zeros_(convolution.bias)
        if self.position_bias is not None:
            nn.init.normal_(self.position_bias.weight, std=0.5)

    def from_above(self, rows: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Vertical features [B, C, n, w] and their input to the horizontal stack [B, 2C, n, w], for n output rows.

        `rows` [B, C, n + span - 1, w] starts `half` rows above the first output row; `coordinates` [1, 2, n, w].
        """
        features = self.vertical(rows)
        if self.position_bias is None:
            return gate(features), self.link(features)
        for_vertical, for_horizontal = self.position_bias(coordinates).chunk(2, dim=1)
        features = features + for_vertical
        return gate(features), self.link(features) + for_horizontal

    def forward(self, v: Tensor, h: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Both stacks [B, C, h, w] → both stacks one layer on (h None after the last) and the gated features."""
        crop = -1 if self.first else 0
        v, context = self.from_above(F.pad(v, (0, 0, self.half, crop)), coordinates)
        gated = self.dropout(gate(self.horizontal(F.pad(h, (self.half, crop))) + context))
        if self.out is None:
            return v, None, gated
        # A residual in the first layer would hand the current code to its own prediction.
        return self.dropout(v), self.out(gated) if self.first else h + self.out(gated), gated


class GatedPixelCNN(nn.Module):
    """p(codes) = Π p(code_t | codes before t in raster order) over int64 maps [B, h, w] of any size.

    A position sees everything before it when first_kernel // 2 + num_layers · (kernel // 2) ≥ max(h, w) - 1; beyond
    that it sees the nearest neighborhood of this radius and, with `coordinates`, always where it is.

    Args:
        num_codes: K; codes are 0 … K-1.
        width: channels C of both stacks and of the embedding.
        num_layers: gated layers after the first one.
        first_kernel: side of the first layer's neighborhood, odd, at least 3.
        kernel: the same of the other layers.
        head: channels of the hidden 1×1 layer before the logits.
        dropout: probability, on gated features, in training mode only.
        coordinates: condition every position on its (x, y) in [-1, 1]: landscapes have their sky above.
    """

    def __init__(
        self,
        num_codes: int,
        width: int = 64,
        num_layers: int = 8,
        first_kernel: int = 7,
        kernel: int = 3,
        head: int = 128,
        dropout: float = 0.1,
        coordinates: bool = True,
    ):
        super().__init__()
        for name, value in (("first_kernel", first_kernel), ("kernel", kernel)):
            if value < 3 or value % 2 == 0:
                raise UserError(f"{name}={value}: the side of a causal neighborhood is an odd number from 3 on")
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes, width)
        self.layers = nn.ModuleList(
            GatedLayer(width, kernel if index else first_kernel, dropout, coordinates, index == 0, index == num_layers)
            for index in range(num_layers + 1)
        )
        self.skip = nn.Conv2d((num_layers + 1) * width, width, 1)  # the sum of one 1×1 convolution per layer, as one
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, head, 1), nn.ReLU(), nn.Conv2d(head, num_codes, 1))
        # Almost flat logits: the first loss is ln K, and gradients already reach every layer.
        nn.init.normal_(self.head[-1].weight, std=0.1 / math.sqrt(head))
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, K, h, w] of every position given the codes before it; `codes` int64 [B, h, w] in 0 … K-1."""
        return self.logits_of(self.embedding(codes).permute(0, 3, 1, 2))

    def logits_of(self, embedded: Tensor) -> Tensor:
        """The network after its embedding: [B, C, h, w] → [B, K, h, w]."""
        coordinates = coordinate_map(*embedded.shape[-2:], embedded)
        v = h = embedded
        skips = []
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
        self,
        num: int,
        size: tuple[int, int],
        temperature: float = 1.0,
        top_k: int | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draws code maps int64 [num, h, w] in raster order, without dropout in either mode.

        With `known` (int64 [num or 1, h, w]) and `mask` (bool, the same shape, True = draw this cell) the other cells
        keep their known codes and are context for the cells after them. One call consumes exactly
        `torch.rand(num, h, w)` (see `modules.ops.noise`), so a map depends neither on the device nor on `mask`.

        Raises:
            ValueError: temperature ≤ 0, top_k outside 1 … K, `known` without `mask` or of another shape.
        """
        codes, mask = self._canvas(num, size, known, mask)
        if temperature <= 0:
            raise UserError(f"temperature={temperature}: must be above 0 (top_k=1 takes the most likely code)")
        if top_k is not None and not 1 <= top_k <= self.num_codes:
            raise UserError(f"top_k={top_k}: allowed are 1 to {self.num_codes} (the number of codes) and null")
        uniform = rand(num, *size).to(codes.device)
        drawn_columns = mask.any(dim=0).tolist()
        with torch.autocast(codes.device.type, enabled=False):
            scan = RasterScan(self, num, size)
            for row, columns in enumerate(drawn_columns):
                scan.enter_row()
                # Horizontal features serve their own row only: nothing is needed after its last drawn column.
                for column in range(max((j + 1 for j, is_drawn in enumerate(columns) if is_drawn), default=0)):
                    if columns[column]:
                        drawn = draw(scan.logits(column), uniform[:, row, column], temperature, top_k)
                        codes[:, row, column] = torch.where(mask[:, row, column], drawn, codes[:, row, column])
                    else:
                        scan.advance(column)
                    scan.put(column, codes[:, row, column])
                scan.leave_row(codes[:, row])
                if progress:
                    print(f"\rcodes: row {row + 1} of {size[0]}", end="", file=sys.stderr, flush=True)
        if progress:
            print(file=sys.stderr)
        return codes

    def _canvas(self, num: int, size: tuple[int, int], known: Tensor | None, mask: Tensor | None) -> tuple[Tensor, ...]:
        device = self.embedding.weight.device
        if (known is None) != (mask is None):
            raise UserError("known codes and the mask of cells to draw must be given together")
        if known is None or mask is None:
            empty = torch.zeros(num, *size, dtype=torch.int64, device=device)
            return empty, torch.ones_like(empty, dtype=torch.bool)
        for name, tensor in (("known", known), ("mask", mask)):
            if tuple(tensor.shape) not in {(num, *size), (1, *size)}:
                raise UserError(f"{name} has shape {list(tensor.shape)}; expected {[num, *size]} or {[1, *size]}")
        mask = mask.to(device).bool().expand(num, *size)
        return known.to(device).expand(num, *size).masked_fill(mask, 0), mask


class RasterScan:
    """Logits of one position after the other, each network feature computed once (the cache behind `sample`).

    Call, row after row: `enter_row`; for every column from the left `logits` (or `advance`, where no prediction is
    needed) and `put`; then `leave_row`. Equal to the network's forward pass up to rounding, without dropout.
    """

    def __init__(self, network: GatedPixelCNN, num: int, size: tuple[int, int]):
        height, width = size
        weight = network.embedding.weight
        channels = weight.shape[1]
        self.network, self.row = network, -1
        self.coordinates = coordinate_map(height, width, weight)
        # The last rows of what each vertical convolution reads, zeros where the padding is.
        self.above = [weight.new_zeros(num, channels, layer.half, width) for layer in network.layers]
        # The current row of what each horizontal convolution reads, behind its left padding.
        self.left = [weight.new_zeros(num, layer.half + width, channels) for layer in network.layers]
        self.context: list[Tensor] = []
        self.gated = weight.new_empty(num, len(network.layers), channels)
        # Columns first, channels second: the order of a flattened window of `left`.
        self.horizontal = [layer.horizontal.weight[:, :, 0].transpose(1, 2).flatten(1).t() for layer in network.layers]
        self.out = [layer.out.weight.flatten(1).t() for layer in network.layers if layer.out is not None]
        readers = (network.skip, network.head[1], network.head[3])
        self.readout = [(convolution.weight.flatten(1), convolution.bias) for convolution in readers]

    def enter_row(self) -> None:
        """The whole vertical stack of the next row: it depends on the rows above alone."""
        self.row += 1
        self.context = []
        position = self.coordinates[:, :, self.row : self.row + 1]
        v = None
        for index, layer in enumerate(self.network.layers):
            rows = self.above[index]
            if v is not None:
                rows = torch.cat((rows, v), dim=2)
                self.above[index] = rows[:, :, 1:]
            v, context = layer.from_above(rows, position)
            context = context + layer.horizontal.bias[:, None, None]
            self.context.append(context[:, :, 0].permute(2, 0, 1).contiguous())

    def advance(self, column: int) -> None:
        """The horizontal stack at this column."""
        h = None
        for index, layer in enumerate(self.network.layers):
            if h is not None:
                self.left[index][:, layer.half + column] = h
            window = self.left[index][:, column : column + layer.span].flatten(1)
            features = gate(torch.addmm(self.context[index][column], window, self.horizontal[index]))
            self.gated[:, index] = features
            if layer.out is not None:
                change = torch.addmm(layer.out.bias, features, self.out[index])
                h = change if h is None else h + change

    def logits(self, column: int) -> Tensor:
        """Logits [num, K] of this column of the current row."""
        self.advance(column)
        skip, hidden, last = self.readout
        features = F.linear(self.gated.flatten(1), *skip).relu_()
        return F.linear(F.linear(features, *hidden).relu_(), *last)

    def put(self, column: int, codes: Tensor) -> None:
        """Passes the codes [num] of this column."""
        self.left[0][:, self.network.layers[0].half + column] = self.network.embedding(codes)

    def leave_row(self, codes: Tensor) -> None:
        """Passes all codes [num, w] of the row, which the next row depends on."""
        embedded = self.network.embedding(codes).transpose(1, 2)[:, :, None]
        self.above[0] = torch.cat((self.above[0][:, :, 1:], embedded), dim=2)
