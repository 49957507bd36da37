"""Decoder-only transformer over maps of codes (Esser, Rombach & Ommer 2021, arXiv 2012.09841; architecture of GPT-2).

Names and settings of all layers are those of CompVis' released models, so that their weights fit.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from modules.networks.pixelcnn import draw
from modules.ops.noise import rand


class Cache:
    """Keys and values of all layers for the positions so far, allocated once."""

    def __init__(self, layers: int, batch_size: int, heads: int, length: int, width: int, like: Tensor) -> None:
        self.values = like.new_zeros(layers, 2, batch_size, heads, length, width)
        self.length = 0

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, the new ones [N, heads, l, width] appended."""
        end = self.length + keys.shape[2]
        stored = self.values[layer]
        stored[0, :, :, self.length : end], stored[1, :, :, self.length : end] = keys, values
        return stored[0, :, :, :end], stored[1, :, :, :end]


class Attention(nn.Module):
    """Causal self-attention over features [N, l, C]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        causal = x.shape[1] > 1
        if cache is not None:
            if causal and cache.length:
                raise ValueError("several positions at once only into an empty cache")  # is_causal would align them wrongly
            k, v = cache.extended(layer, k, v)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=causal)
        return F.dropout(self.proj(h.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.attn(self.ln1(x), layer, cache)
        return x + self.mlp(self.ln2(x))


class CodeTransformer(nn.Module):
    """p(codes | token) = prod of p(code_t | token, codes before t in raster order) over maps [N, h, w].

    A sequence begins with one token: the start token, or that of a class. Ids of tokens follow those of the codes.

    Args:
        num_codes: K; codes are 0 ... K - 1.
        grid: height and width of the maps of training.
        num_tokens: number of first tokens; 0: the start token is code 0, as in the released unconditional models.
        positions: number of learned positions, by default those of a map.
        above: each position also sees an embedding of the code above the one that it predicts; not in the paper.
    """

    def __init__(
        self, num_codes: int, grid: tuple[int, int], num_tokens: int = 1, layers: int = 8, width: int = 512, heads: int = 8,
        dropout: float = 0.0, positions: int | None = None, above: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        cells = math.prod(grid)
        if width % heads:
            raise UserError(f"width is {width}; expected a multiple of heads={heads}")
        if positions is not None and positions < cells:
            raise UserError(f"positions is {positions}; expected at least {cells}, the codes of a map")
        self.num_codes, self.grid, self.num_tokens = num_codes, grid, num_tokens
        self.tok_emb = nn.Embedding(num_codes + num_tokens, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, positions or cells, width))
        self.above = nn.Embedding(num_codes, width) if above else None
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes + num_tokens, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """The weights of linear layers with weight decay, everything else without."""
        linear = {id(module.weight) for module in self.modules() if isinstance(module, nn.Linear)}
        decayed = [parameter for parameter in self.parameters() if id(parameter) in linear]
        rest = [parameter for parameter in self.parameters() if id(parameter) not in linear]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]

    def first_tokens(self, batch_size: int, labels: Tensor | None, device: torch.device) -> Tensor:
        """First tokens [N]: the start token, or those of classes [N]."""
        start = self.num_codes if self.num_tokens else 0
        return torch.full((batch_size,), start, device=device) if labels is None else start + labels.to(device)

    def forward(self, codes: Tensor, labels: Tensor | None = None, inputs: Tensor | None = None) -> Tensor:
        """Logits [N, V, h, w] of each code given those before it; `codes` [N, h, w] of the grid of training.

        `inputs`: codes in place of `codes` on the side of the inputs, such as with random ones among them.
        """
        sequence = (codes if inputs is None else inputs).flatten(1)
        tokens = torch.cat([self.first_tokens(len(codes), labels, codes.device)[:, None], sequence[:, :-1]], 1)
        logits = self.steps(tokens, sequence, 0)
        return logits.transpose(1, 2).reshape(len(codes), -1, *codes.shape[1:])

    def steps(self, tokens: Tensor, codes: Tensor, start: int, cache: Cache | None = None) -> Tensor:
        """Logits [N, l, V] after tokens [N, l] at the positions from `start` on; `codes` [N, T] are those of the map as far as
        they are known: before position `start` + l."""
        end = start + tokens.shape[1]
        x = self.tok_emb(tokens) + self.pos_emb[:, start:end]
        if self.above is not None:  # position p predicts code p; the one above it is code p - w
            width = self.grid[1]
            rows = self.above(codes[:, max(start - width, 0) : max(end - width, 0)])
            x = x + F.pad(rows, (0, 0, tokens.shape[1] - rows.shape[1], 0))
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        if cache is not None:
            cache.length = end
        return self.head(self.ln_f(x))

    def log_prob(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-likelihood [N, h, w] of each code, in nats."""
        return -F.cross_entropy(self(codes, labels), codes, reduction="none")

    def empty_cache(self, batch_size: int) -> Cache:
        attention = self.blocks[0].attn
        width = self.tok_emb.weight.shape[1] // attention.heads
        return Cache(len(self.blocks), batch_size, attention.heads, math.prod(self.grid), width, self.tok_emb.weight)

    @torch.no_grad()
    def sample(
        self, batch_size: int, size: tuple[int, int] | None = None, labels: Tensor | None = None, temperature: float = 1.0,
        top_k: int | None = None, top_p: float = 1.0, known: Tensor | None = None, mask: Tensor | None = None,
        progress: Callable[[], object] | None = None, sliding: bool = False,
    ) -> Tensor:  # fmt: skip
        """Draws maps [N, h, w] in raster order; where `mask` [N, h, w] is False the codes of `known` stay.

        Maps of the grid of training with a cache; larger ones by a window of that size that moves along, or with `sliding`
        any. One call consumes exactly `rand(N, h, w)`. `progress` is called after each code.
        """
        size = size or self.grid
        device = self.tok_emb.weight.device
        if size[0] < self.grid[0] or size[1] < self.grid[1]:
            raise UserError(f"a map of {size[0]}×{size[1]} codes is smaller than that of training, {self.grid}")
        if known is None:
            codes, drawn, end = torch.zeros(batch_size, *size, dtype=torch.long, device=device), None, size[0]
        else:  # below the last hole nothing is left to draw
            codes, drawn, end = known.clone(), mask, max(mask.any(2).any(0).nonzero().flatten().tolist(), default=-1) + 1
        uniform = rand(batch_size, *size).to(device)
        first = self.first_tokens(batch_size, labels, device)
        logits_of = self._window_logits if sliding or tuple(size) != self.grid else self._cached_logits(batch_size)
        for t in range(math.prod(size)):
            i, j = divmod(t, size[1])
            if i < end:
                logits = logits_of(codes, first, i, j)[:, : self.num_codes]
                new = draw(logits, uniform[:, i, j], temperature, top_k, top_p)
                codes[:, i, j] = new if drawn is None else torch.where(drawn[:, i, j], new, codes[:, i, j])
            if progress is not None:
                progress()
        return codes

    def _cached_logits(self, batch_size: int) -> Callable[[Tensor, Tensor, int, int], Tensor]:
        """A function of codes, first tokens, row and column for the positions one after the other."""
        cache = self.empty_cache(batch_size)

        def logits_of(codes: Tensor, first: Tensor, i: int, j: int) -> Tensor:
            sequence, t = codes.flatten(1), i * self.grid[1] + j
            token = sequence[:, t - 1] if t else first
            return self.steps(token[:, None], sequence, t, cache)[:, -1]

        return logits_of

    def _window_logits(self, codes: Tensor, first: Tensor, i: int, j: int) -> Tensor:
        """Logits of a cell from the codes before it in a window with the cell in its middle, as far as the borders allow."""
        (height, width), (rows, columns) = codes.shape[1:], self.grid
        top, left = (min(max(at - side // 2, 0), whole - side) for at, side, whole in ((i, rows, height), (j, columns, width)))
        sequence = codes[:, top : top + rows, left : left + columns].flatten(1)
        t = (i - top) * columns + j - left
        return self.steps(torch.cat([first[:, None], sequence[:, :t]], 1), sequence, 0)[:, -1]
