"""Which entries an epoch visits (epoch_order), and each rank's part of them (JoinedSampler, StridedSampler).

Samplers derive from DistributedSampler, because Lightning wraps any other one into one that shuffles again (P 5.2).
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import DistributedSampler

from core.errors import UserError

NO_ENTRY = -1  # stands for "no image": a batch of it alone is empty


def epoch_order(size: int, samples: int, seed: int, epoch: int, stream: str = "image") -> list[int]:
    """`samples` indices of 0 … size-1: random permutations one behind the other, so every prefix holds each index equally
    often, up to one. A function of the arguments alone, which a resumed run repeats (P 5.4, 6.5)."""
    digest = hashlib.sha256(f"{seed} {stream} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    orders = torch.rand(-(-samples // size), size, generator=generator, dtype=torch.float64).argsort(dim=1, stable=True)
    return orders.flatten()[:samples].tolist()


class JoinedSampler(DistributedSampler):
    """Orders of several sets side by side: tuples of indices, of which rank r of W gets the positions r, r+W, …

    So step t of W ranks sees the same images as step t of one process with the W-fold batch. `sizes` are numbers of entries by
    the keys of the sets, which are the streams of their orders; `samples` counts over all ranks and is a multiple of `ranks`.
    """

    def __init__(self, sizes: Mapping[str, int], samples: int, seed: int, ranks: int = 1, rank: int = 0) -> None:
        if samples % ranks:
            raise UserError(f"samples per epoch are {samples}; expected a multiple of {ranks}, the number of ranks")
        super().__init__(range(samples), num_replicas=ranks, rank=rank, shuffle=False, seed=seed)
        self.sizes = sizes

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        samples = len(self.dataset)
        orders = [epoch_order(size, samples, self.seed, self.epoch, key) for key, size in self.sizes.items()]
        return iter(list(zip(*orders, strict=True))[self.rank :: self.num_replicas])


class StridedSampler(DistributedSampler):
    """Rank r's part r, r+W, r+2W, … of 0 … size-1, not padded, which would shift the metrics (P 5.6).

    A rank without an index yields NO_ENTRY once: Lightning skips validation on a rank without batches, and the others would
    wait for it for ever.
    """

    def __init__(self, size: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=ranks, rank=rank, shuffle=False)
        self.indices = list(range(rank, size, ranks)) or [NO_ENTRY]
        self.num_samples = len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
