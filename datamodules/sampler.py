"""Which entries an epoch visits (EpochSampler), and each rank's part of them (JoinedSampler, StridedSampler).

Loaders get samplers derived from DistributedSampler, because Lightning leaves those as they are. Any other training
sampler it wraps into one that shuffles the positions again, by a seed from the environment (P 5.2): two ranks would no
longer see in step t what one process with the double batch sees.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DistributedSampler, Sampler

from core.errors import UserError

NO_ENTRY = -1  # stands for "no image": a batch of it alone is empty


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """`samples_per_epoch` indices of 0 … size-1: random permutations, one behind the other, cut at the end.

    Every prefix of an epoch holds each index equally often, up to one; drawing with replacement would let 4000 samples
    of 5 images stray by some 25 each. The order is a function of (seed, stream, epoch) alone: no state to save, and a
    resumed run repeats it (P 5.4, 6.5). `stream` names independent orders from the same seed.
    """

    size: int
    samples_per_epoch: int
    seed: int
    stream: str = "image"
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __iter__(self) -> Iterator[int]:
        digest = hashlib.sha256(f"{self.seed} {self.stream} {self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        passes = -(-self.samples_per_epoch // self.size)
        orders = torch.rand(passes, self.size, generator=generator, dtype=torch.float64).argsort(dim=1, stable=True)
        return iter(orders.flatten()[: self.samples_per_epoch].tolist())


class JoinedSampler(DistributedSampler):
    """Epoch samplers of equal length side by side: tuples of indices, of which rank r of W gets the positions r, r+W, …

    So step t of W ranks sees the same images as step t of one process with the W-fold batch, and over the ranks
    together every number of steps is without skew. Each position of an image falls on each rank with chance 1/W, so the
    ranks share an image evenly on average; which rank saw it does not matter, gradients are averaged in every step.

    `ranks` must divide the length (ValueError): padding would show the first images more often.
    """

    def __init__(self, samplers: Sequence[EpochSampler], ranks: int = 1, rank: int = 0) -> None:
        positions = range(len(samplers[0]))
        lengths = [len(sampler) for sampler in samplers]
        if len(positions) % ranks or len(set(lengths)) > 1:
            raise UserError(f"the lengths {lengths} must be equal and divisible by {ranks} ranks")
        super().__init__(positions, num_replicas=ranks, rank=rank, shuffle=False)
        self.samplers = samplers

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every training epoch; handed on to every sampler."""
        super().set_epoch(epoch)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        rows = list(zip(*self.samplers, strict=True))
        return iter(rows[self.rank :: self.num_replicas])


class StridedSampler(DistributedSampler):
    """Rank r's part r, r+W, r+2W, … of 0 … size-1: in order, each index on one rank only, nothing repeated.

    Padding to equal length would count some reference images twice and shift the metrics (P 5.6). A rank without an
    index yields NO_ENTRY once: Lightning skips validation with all its hooks on a rank without batches, and the others
    would wait for it in their first collective call for ever.
    """

    def __init__(self, size: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=ranks, rank=rank, shuffle=False)
        self.indices = list(range(rank, size, ranks)) or [NO_ENTRY]
        self.num_samples = len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
