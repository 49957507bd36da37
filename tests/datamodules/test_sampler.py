"""Counts, orders and shares of the samplers."""

from collections import Counter

import pytest
from torch.utils.data import DistributedSampler

from datamodules.sampler import NO_ENTRY, JoinedSampler, StridedSampler, epoch_order


def test_orders_are_a_function_of_seed_stream_and_epoch() -> None:
    orders = [epoch_order(5, 40, 3, epoch) for epoch in range(4)]
    assert epoch_order(5, 40, 3, 2) == orders[2]
    others = [epoch_order(5, 40, 4, 0), epoch_order(5, 40, 3, 0, stream="side")]
    assert len({tuple(row) for row in orders + others}) == 6


def test_the_order_is_pinned() -> None:
    """A change would make resumed runs differ from the run they continue."""
    assert epoch_order(5, 12, seed=0, epoch=1) == [1, 3, 2, 0, 4, 0, 4, 2, 3, 1, 4, 0]


@pytest.mark.parametrize(("size", "samples"), [(5, 4000), (5, 23), (7, 3), (1, 9), (10, 10), (4000, 100)])
def test_every_prefix_is_without_skew(size: int, samples: int) -> None:
    for epoch in range(3):
        indices = epoch_order(size, samples, 0, epoch)
        assert len(indices) == samples
        counts = Counter(dict.fromkeys(range(size), 0))
        for index in indices:
            counts[index] += 1
            assert 0 <= index < size
        assert max(counts.values()) - min(counts.values()) <= 1
        for start in range(0, samples, size):
            assert len(set(indices[start : start + size])) == len(indices[start : start + size])


def test_permutations_of_an_epoch_are_not_all_the_same() -> None:
    indices = epoch_order(4, 400, 0, 0)
    assert len({tuple(indices[start : start + 4]) for start in range(0, 400, 4)}) == 24  # all of 4!


def joined(samples: int, ranks: int = 1, rank: int = 0, epoch: int = 6) -> list[tuple[int, int]]:
    sampler = JoinedSampler({"image": 5, "side": 7}, samples, 1, ranks, rank)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert len(rows) == len(sampler) == samples // ranks
    return rows


def test_joined_samplers_are_independent() -> None:
    rows = joined(900)
    assert [image for image, _ in rows] == epoch_order(5, 900, 1, 6)
    assert [side for _, side in rows] == epoch_order(7, 900, 1, 6, "side")
    assert len(set(rows)) == 35  # every combination comes
    assert rows != joined(900, epoch=7)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_take_the_steps_of_one_process(ranks: int) -> None:
    samples = 1200
    parts = [joined(samples, ranks, rank) for rank in range(ranks)]
    assert [row for step in zip(*parts, strict=True) for row in step] == joined(samples)
    spread = (samples / 5 * (1 / ranks) * (1 - 1 / ranks)) ** 0.5  # of a binomial share
    for part in parts:
        for index in range(5):
            assert abs(sum(image == index for image, _ in part) - samples / 5 / ranks) < 4 * spread


def test_ranks_must_divide_the_samples() -> None:
    with pytest.raises(ValueError, match="samples per epoch are 6; expected a multiple of 4"):
        JoinedSampler({"image": 3}, 6, 0, ranks=4, rank=0)


@pytest.mark.parametrize(("size", "ranks"), [(13, 3), (6, 2), (5, 1), (3, 3)])
def test_strided_subset_is_a_partition_without_padding(size: int, ranks: int) -> None:
    parts = [StridedSampler(size, ranks, rank) for rank in range(ranks)]
    assert sorted(index for part in parts for index in part) == list(range(size))
    assert [list(part) for part in parts] == [list(range(rank, size, ranks)) for rank in range(ranks)]
    assert all(isinstance(part, DistributedSampler) and len(part) == len(list(part)) for part in parts)


def test_a_rank_without_reference_image_has_one_empty_entry() -> None:
    assert [list(StridedSampler(2, 3, rank)) for rank in range(3)] == [[0], [1], [NO_ENTRY]]
    assert len(StridedSampler(2, 3, 2)) == 1
