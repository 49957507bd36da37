"""Maps of codes composed of patches of other maps: the synthesis of LatentPatch (Samuth et al. 2023), without a network.

B source maps have h x w cells; a cell's feature is its code's row of a code book projected to r dimensions. At a scale of
m cells (numbered row by row) the sources are interpolated. Windows are patches of cells in raster order; each takes the cells
that are still missing from a source whose window is one of the nearest.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RERANKED = 16  # candidates of an approximate search that are compared exactly
LOW_BITS = 2**32 - 1


class Window(NamedTuple):
    """A window of side x side cells at (top, left): the cells that are compared with the sources, and those written."""

    top: int
    left: int
    side: int
    compared: Tensor
    written: Tensor


def plan_windows(
    size: tuple[int, int], patch: int, stride: int, known: Tensor | None = None, masked: bool = True
) -> list[Window]:
    """Windows of `patch` x `patch` cells that write each cell of a map once, but for those `known` (bool [h, w]). A window
    writes what is missing when its turn comes, and compares the cells known by then if `masked`, else all."""
    cells = torch.arange(size[0] * size[1]).view(size)
    known = torch.zeros(size, dtype=torch.bool) if known is None else known.cpu().clone()
    tops, lefts = (sorted({*range(0, side - patch + 1, stride), side - patch}) for side in size)
    windows = []
    for top, left in product(tops, lefts):
        inside = slice(top, top + patch), slice(left, left + patch)
        done = known[inside].clone()
        if not done.all():
            compared = cells[inside][done] if masked else cells[inside].flatten()
            windows.append(Window(top, left, patch, compared, cells[inside][~done]))
        known[inside] = True
    return windows


def latent_sizes(size: tuple[int, int], scales: int, coarsest: float = 0.625) -> list[tuple[int, int]]:
    """Heights and widths from a share `coarsest` of `size` up to it in equal ratios: for 16 and 5 scales 10, 11, 13, 14, 16."""
    if scales == 1:
        return [tuple(size)]
    return [tuple(round(side * coarsest ** (1 - scale / (scales - 1))) for side in size) for scale in range(scales)]


def project_codebook(codes: Tensor, codebook: Tensor, rank: int) -> Tensor:
    """The code book [K, L] in the first principal axes of the latents of `codes`: [K, min(rank, L)], centered, not whitened."""
    # Mean and covariance of all latents are those of the code book weighted by the histogram of the codes.
    weights = torch.bincount(codes.flatten(), minlength=len(codebook)).to(codebook.device, torch.float64)
    weights /= weights.sum()
    centered = codebook.double() - weights @ codebook.double()
    axes = torch.linalg.eigh(centered.T * weights @ centered).eigenvectors.flip(1)[:, :rank]
    return (centered @ axes).to(codebook.dtype)


def interpolate(features: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Features [N, m, r] of a map of `size`, bilinearly at `new_size`."""
    if size == new_size:
        return features
    maps = features.transpose(1, 2).unflatten(2, size)
    return F.interpolate(maps, new_size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2).contiguous()


class LatentSources:
    """Source maps of codes, int [B, h, w], and the projected code book [K, r]; `at` gives them at a scale."""

    def __init__(self, codes: Tensor, book: Tensor) -> None:
        self.size = tuple(codes.shape[1:])
        self.codes, self.book = codes.flatten(1), book
        self.at = cache(partial(SourceScale, self))  # the sources interpolated to a size

    def __len__(self) -> int:
        return len(self.codes)

    def codes_of(self, origin: Tensor) -> Tensor:
        """The codes of cells, by source * h * w + cell; those without a source (-1) are 0."""
        return self.codes.flatten()[origin.clamp(min=0)].long()


class SourceScale:
    """The sources at a size. Nothing is stored but norms [B, m] at interpolated scales, whatever r is.

    A window's distance to all sources is a sum over tables [code, query] of its cells, as in product quantization: at the
    sources' own size of squared distances to each code; at another one, as interpolation is linear, of the products of
    the codes with the query spread to the sources' cells, with norms added, which loses digits: the nearest are compared
    exactly afterwards."""

    def __init__(self, sources: LatentSources, size: tuple[int, int]) -> None:
        self.sources, self.size, self.own = sources, size, size == sources.size
        if not self.own:
            unit = torch.eye(sources.codes.shape[1], dtype=sources.book.dtype, device=sources.book.device).unsqueeze(0)
            matrix = interpolate(unit, sources.size, size)[0]  # [m, h w], at most four entries in a row
            self.weights, self.taps = matrix.topk(min(4, matrix.shape[1]), 1)
            maps = (interpolate(sources.book[part.long()], sources.size, size) for part in sources.codes.split(1024))
            self.norms = torch.cat([features.square().sum(2) for features in maps])

    def features(self, images: Tensor, cells: Tensor) -> Tensor:
        """Features [..., r] at cells of sources; the indices are broadcast."""
        if self.own:
            return self.sources.book[self.sources.codes[images, cells].long()]
        taps = self.sources.book[self.sources.codes[images.unsqueeze(-1), self.taps[cells]].long()]
        return (taps * self.weights[cells].unsqueeze(-1)).sum(-2)

    def distances(self, query: Tensor, cells: Tensor) -> Tensor:
        """Squared distances [G, B] of queries [G, n, r] to the sources' features at `cells` [n]; see the class."""
        book = self.sources.book
        if self.own:
            columns, tables = cells, torch.cdist(query, book, compute_mode="donot_use_mm_for_euclid_dist").square_()
        else:
            columns, position = self.taps[cells].unique(return_inverse=True)
            spread = query.new_zeros(len(query), len(columns), query.shape[2])
            spread.index_add_(1, position.flatten(), (query.unsqueeze(2) * self.weights[cells].unsqueeze(-1)).flatten(1, 2))
            tables = -2 * spread @ book.T
        codes = self.sources.codes.index_select(1, columns).T.int().contiguous()
        sums = query.new_zeros(codes.shape[1], len(query))
        for table, column in zip(tables.permute(1, 2, 0).contiguous(), codes, strict=True):  # embedding_bag takes twice as long
            sums += table.index_select(0, column)
        if self.own:
            return sums.T
        return (sums.T + self.norms.index_select(1, cells).sum(1) + query.square().sum((1, 2)).unsqueeze(1)).clamp(min=0) + 0.0

    def nearest(
        self, query: Tensor, cells: Tensor, shifts: Sequence[tuple[int, int]], neighbors: int, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sources, and what to add to `cells`, [G, k] of the nearest windows, in order, among those moved by `shifts` (rows and
        columns). Of equals the earlier shift counts, then the source that follows first on `start` [G], cyclically."""
        images, width = len(self.sources), self.size[1]
        order = (torch.arange(images, device=query.device) - start.unsqueeze(1)) % images
        offsets = torch.tensor([dy * width + dx for dy, dx in shifts], device=query.device)
        amount = neighbors if self.own else max(neighbors, RERANKED)
        best = torch.cat([
            _keys(self.distances(query, cells + offset), order + number * images).topk(min(amount, images), 1, False).values
            for number, offset in enumerate(offsets)
        ], 1)  # fmt: skip
        ranks = best.topk(min(amount, best.shape[1]), 1, False, True).values & LOW_BITS
        found, shift = (ranks + start.unsqueeze(1)) % images, ranks // images
        if not self.own:
            features = self.features(found.unsqueeze(2), cells + offsets[shift].unsqueeze(2))
            exact = (features - query.unsqueeze(1)).square().sum((2, 3))
            chosen = _keys(exact, ranks).argsort(1)[:, :neighbors]
            found, shift = found.gather(1, chosen), shift.gather(1, chosen)
        return found, offsets[shift]


def _keys(distances: Tensor, ranks: Tensor) -> Tensor:
    """Integers that are ordered as (distance >= 0 in float32, rank below 2^32)."""
    return distances.float().contiguous().view(torch.int32).long() << 32 | ranks


def compose(
    scale: SourceScale, features: Tensor, windows: Sequence[Window], draws: Tensor, neighbors: int, rho: int = 0,
    progress: Callable[[], object] | None = None,
) -> Tensor:  # fmt: skip
    """Writes windows of sources into `features` [G, m, r], one after the other, and returns their origin.

    Args:
        draws: uniform [G, windows, 2] in [0, 1): which of the nearest sources is taken, and the order of equally near ones.
        neighbors: one of so many is taken; of all sources where a window compares nothing.
        rho: the sources' windows may lie so many cells away in both directions.
    Returns int64 [G, m], the source * m + its cell; -1 where nothing was written.
    """
    # Paper: ties are not mentioned; here: a random order, as with many equal patches the first sources would fill all.
    images, cells = len(scale.sources), features.shape[1]
    origin = features.new_full(features.shape[:2], -1, dtype=torch.long)
    for number, window in enumerate(windows):
        compared, written = window.compared.to(features.device), window.written.to(features.device)
        choice, start = draws[:, number].unbind(1)
        if len(compared) == 0 or (neighbors >= images and rho == 0):
            image, offset = _pick(choice, images), torch.zeros_like(choice, dtype=torch.long)
        else:
            shifts = shifts_inside(window, scale.size, rho)
            found, offsets = scale.nearest(features[:, compared], compared, shifts, neighbors, _pick(start, images))
            chosen = _pick(choice, found.shape[1]).unsqueeze(1)
            image, offset = found.gather(1, chosen)[:, 0], offsets.gather(1, chosen)[:, 0]
        cell = written + offset.unsqueeze(1)
        features[:, written] = scale.features(image.unsqueeze(1), cell)
        origin[:, written] = image.unsqueeze(1) * cells + cell
        if progress is not None:
            progress()
    return origin


def shifts_inside(window: Window, size: tuple[int, int], rho: int) -> list[tuple[int, int]]:
    """Rows and columns by which a window can be moved inside a map of `size`, at most `rho`, the smallest first."""
    rows, columns = (
        range(max(-rho, -start), min(rho, side - window.side - start) + 1)
        for start, side in zip((window.top, window.left), size, strict=True)
    )
    return sorted(product(rows, columns), key=lambda shift: (shift[0] ** 2 + shift[1] ** 2, shift))


def verbatim_scores(codes: Tensor, sources: LatentSources) -> Tensor:
    """The largest share [G] of cells in which maps of codes [G, h, w] equal one source; 1 is a copy."""
    return torch.stack([(sources.codes == row).double().mean(1).max() for row in codes.flatten(1)])


def _pick(draws: Tensor, num_choices: int) -> Tensor:
    """Indices below `num_choices` from uniform draws in [0, 1)."""
    return (draws * num_choices).long().clamp(max=num_choices - 1)
