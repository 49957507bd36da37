import math
import statistics
from itertools import combinations

import pytest
import torch
from torch import Tensor

from callbacks.metrics.backbones import RandomCNN
from callbacks.metrics.intervals import subsample_interval
from callbacks.metrics.pairs import Embedded, PerceptualDiversity, intra_distances, pair_distances, random_pairs
from callbacks.metrics.perceptual import PerceptualDistance


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Counting:
    """Pixels as rows, and how many images went through."""

    key = "pd_pixels"

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return images.flatten(1).float() / 255


@pytest.mark.parametrize("number", [2, 3, 37, 38, 100])
def test_random_pairs_are_distinct_and_in_range(number: int) -> None:
    pairs = random_pairs(number)
    total = number * (number - 1) // 2
    assert len(pairs) == min(total, 700) == len({tuple(pair) for pair in pairs.tolist()})
    assert (pairs[:, 0] < pairs[:, 1]).all() and pairs.min() >= 0 and pairs.max() < number
    if total <= 700:
        assert {tuple(pair) for pair in pairs.tolist()} == set(combinations(range(number), 2))


def test_random_pairs_are_uniform() -> None:
    counts = torch.zeros(6, 6)
    for seed in range(600):
        for left, right in random_pairs(6, 5, seed).tolist():
            counts[left, right] += 1
    found = counts[counts > 0]
    assert len(found) == 15 and (found - 200).abs().max() < 60  # deviation 11.5


def naive_intra(samples: Tensor, targets: Tensor) -> tuple[list[float], list[int]]:
    """Sample by sample and pair by pair, as a script would."""
    clusters: list[list[Tensor]] = [[] for _ in targets]
    for sample in samples:
        gaps = [(sample - target).square().sum().item() for target in targets]
        clusters[gaps.index(min(gaps))].append(sample)
    means = []
    for cluster in clusters:
        pairs = [(a - b).square().sum().item() for a, b in combinations(cluster, 2)]
        means += [sum(pairs) / len(pairs)] if pairs else []
    return means, [len(cluster) for cluster in clusters]


@pytest.mark.parametrize("most_values", [2**28, 100])
def test_intra_equals_the_naive_way(most_values: int) -> None:
    samples, targets = noise(60, 3, 2, 2), noise(5, 3, 2, 2, seed=1)
    targets[4] = 255  # nobody is near
    pairs, nearest = intra_distances(Embedded(samples, Counting(), most_values), Counting()(targets))
    means, expected = naive_intra(samples.flatten(1).double() / 255, targets.flatten(1).double() / 255)
    assert nearest.bincount(minlength=5).tolist() == expected and len(means) == pairs.group.unique().numel() < 5
    assert pairs.mean().item() == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_values_of_the_metric() -> None:
    samples, reals, distance = noise(40, 3, 2, 2), noise(4, 3, 2, 2, seed=1), Counting()
    reals[3] = 255
    metric = PerceptualDiversity(reals, distance)
    for first, last in ((30, 40), (0, 0), (0, 30)):
        metric.update(samples[first:last], first)
    values = metric.compute()
    rows = samples.flatten(1).double() / 255
    pairs = sum((rows[a] - rows[b]).square().sum().item() for a, b in random_pairs(40).tolist()) / 700
    among = sum((a - b).square().sum().item() for a, b in combinations(reals.flatten(1).double() / 255, 2)) / 6
    means, sizes = naive_intra(rows, reals.flatten(1).double() / 255)
    assert values["pd_pixels_pairs"].item() == pytest.approx(pairs, rel=1e-5)
    assert values["pd_pixels_ratio"].item() == pytest.approx(pairs / among, rel=1e-5)
    assert values["pd_pixels_intra"].item() == pytest.approx(sum(means) / len(means), rel=1e-5)
    assert values["pd_pixels_intra_all"].item() == pytest.approx(sum(means) / 4, rel=1e-5)
    assert values["pd_pixels_clusters"] == len(means) and metric.nearest.bincount(minlength=4).tolist() == sizes
    assert metric.intra_of(torch.arange(40)) == pytest.approx(values["pd_pixels_intra"].item())
    some = torch.arange(0, 40, 3)
    assert metric.intra_of(some) == pytest.approx(statistics.mean(naive_intra(rows[some], reals.flatten(1).double() / 255)[0]))
    assert math.isnan(metric.intra_of(some[:1]))
    assert distance.passes == 44  # each image once


def test_no_more_than_fifty_of_a_cluster_by_a_fixed_choice() -> None:
    samples = torch.cat([noise(70, 3, 2, 2), noise(20, 3, 2, 2) // 255 + 254])
    targets = torch.tensor([[100.0] * 12, [255.0] * 12]) / 255
    pairs, nearest = intra_distances(Embedded(samples, Counting()), targets)
    assert nearest.bincount().tolist() == [70, 20] and pairs.group.bincount().tolist() == [50 * 49 // 2, 20 * 19 // 2]
    again, _ = intra_distances(Embedded(samples, Counting()), targets)
    assert torch.equal(pairs.left, again.left) and pairs.left[pairs.group == 0].max() > 50


def test_copies_have_no_diversity_within_clusters() -> None:
    reals = noise(5, 3, 2, 2)
    metric = PerceptualDiversity(reals, Counting())
    metric.update(reals.repeat(4, 1, 1, 1), 0)
    values = metric.compute()
    assert values["pd_pixels_intra"] == 0 and values["pd_pixels_clusters"] == 5 and values["pd_pixels_pairs"] > 0


def test_one_training_image_has_no_ratio_and_lone_samples_no_intra() -> None:
    metric = PerceptualDiversity(noise(1, 3, 2, 2), Counting())
    metric.update(noise(3, 3, 2, 2, seed=1), 0)
    assert metric.compute().keys() == {"pd_pixels_pairs"}  # nor clusters
    metric = PerceptualDiversity(noise(2, 3, 2, 2), Counting())
    metric.update(noise(2, 3, 2, 2), 0)
    values = metric.compute()
    assert values["pd_pixels_intra"].isnan() and values["pd_pixels_intra_all"] == 0 and values["pd_pixels_clusters"] == 0


def test_a_thousand_images_and_ten_targets_take_twenty_times_fewer_passes() -> None:
    """A script that compares pair by pair sends both images through the network each time."""
    samples, reals, distance = noise(1000, 3, 2, 2), noise(10, 3, 2, 2, seed=1), Counting()
    metric = PerceptualDiversity(reals, distance)
    metric.update(samples, 0)
    metric.compute()
    clusters = sum(min(size, 50) * (min(size, 50) - 1) // 2 for size in metric.nearest.bincount().tolist())
    assert distance.passes == 1010
    assert 2 * (1000 * 10 + clusters) / distance.passes > 20
    bounded = Counting()
    intra_distances(Embedded(samples, bounded, most_values=100), Counting()(reals))
    assert bounded.passes == 1 + 1000 + metric.nearest.bincount().clamp(max=50).sum()  # memory for hardly any rows
    assert 2 * (1000 * 10 + clusters) / bounded.passes > 20


def test_interval_of_the_pairs_covers_them() -> None:
    """Of 60 sets about 57 intervals hold the mean over many; at least 52 is three deviations below."""
    torch.manual_seed(0)
    sets = [(torch.randn(40, 3, 2, 2) * 40 + 128).clamp(0, 255).to(torch.uint8) for _ in range(60)]
    found = []
    for images in sets:
        metric = PerceptualDiversity(images[:2], Counting())
        metric.update(images, 0)
        value = metric.compute()["pd_pixels_pairs"].item()
        found.append((value, subsample_interval(metric.pairs_of, 40, value)))
    truth = sum(value for value, _ in found) / len(found)
    assert 52 <= sum(low <= truth <= high for _, (low, high) in found)


def test_distances_of_pairs_on_a_network() -> None:
    images, distance = noise(4, 3, 64, 64), PerceptualDistance(RandomCNN())
    rows = distance(images)
    found = pair_distances(Embedded(images, distance), torch.tensor([[0, 1], [2, 3]]))
    assert found.distances.tolist() == pytest.approx([(rows[i] - rows[i + 1]).square().sum().item() for i in (0, 2)], rel=1e-5)
