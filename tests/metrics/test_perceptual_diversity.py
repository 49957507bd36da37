from itertools import combinations

import pytest
import torch
from torch import Tensor

from metrics.backbones.random_cnn import RandomCNN
from metrics.intervals import subsample_interval
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import EmbeddingCache, PerceptualDiversity, intra_distances, random_pairs, sweep, walk


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


@pytest.mark.parametrize("max_values", [2**28, 400, 100, 1])
def test_equals_the_naive_way(max_values: int) -> None:
    """With memory for all 60 rows of 12 values, for 33, for 8 and for one."""
    samples, targets, wanted = noise(60, 3, 2, 2), noise(5, 3, 2, 2, seed=1), random_pairs(60, 100)
    targets[4] = 255  # nobody is near
    rows = EmbeddingCache(samples, Counting(), max_values)
    single, nearest = sweep(rows, wanted, EmbeddingCache(targets, Counting(), max_values))
    flat = samples.flatten(1).double() / 255
    assert single.distances.tolist() == pytest.approx([(flat[a] - flat[b]).square().sum().item() for a, b in wanted], rel=1e-5)
    pairs = intra_distances(rows, nearest)
    exact = [(flat[a] - flat[b]).square().sum().item() for a, b in zip(pairs.left, pairs.right, strict=True)]
    assert pairs.distances.tolist() == pytest.approx(exact, rel=1e-5)
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
    assert [values[f"pd_pixels_cluster_{i}"].item() for i in range(4)] == sizes and sizes[3] == 0
    assert distance.passes == 44  # each image once


def test_no_more_than_fifty_of_a_cluster_by_a_fixed_choice() -> None:
    samples = torch.cat([noise(70, 3, 2, 2), noise(20, 3, 2, 2) // 255 + 254])
    centers = torch.tensor([100, 255]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    rows, targets = (EmbeddingCache(images, Counting()) for images in (samples, centers))
    nearest = sweep(rows, random_pairs(90), targets)[1]
    pairs = intra_distances(rows, nearest)
    assert nearest.bincount().tolist() == [70, 20] and pairs.group.bincount().tolist() == [50 * 49 // 2, 20 * 19 // 2]
    again = intra_distances(rows, nearest)
    assert torch.equal(pairs.left, again.left) and pairs.left[pairs.group == 0].max() > 50


def test_copies_have_no_diversity_within_clusters() -> None:
    reals = noise(5, 3, 2, 2)
    metric = PerceptualDiversity(reals, Counting())
    metric.update(reals.repeat(4, 1, 1, 1), 0)
    values = metric.compute()
    assert values["pd_pixels_intra"] == 0 and values["pd_pixels_clusters"] == 5 and values["pd_pixels_pairs"] > 0
    metric = PerceptualDiversity(reals, Counting())
    metric.update(reals[2:3].repeat(20, 1, 1, 1), 0)
    values = metric.compute()
    assert values["pd_pixels_intra"] == 0 and values["pd_pixels_clusters"] == 1 and values["pd_pixels_cluster_2"] == 20


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples, reals, values = noise(60, 3, 2, 2), noise(4, 3, 2, 2, seed=1), []
    for order in (torch.arange(60), torch.randperm(60, generator=torch.Generator().manual_seed(0))):
        metric = PerceptualDiversity(reals, Counting())
        metric.update(samples[order], 0)
        values.append(metric.compute()["pd_pixels_intra"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_one_training_image_has_no_ratio_and_lone_samples_no_intra() -> None:
    metric = PerceptualDiversity(noise(1, 3, 2, 2), Counting())
    metric.update(noise(3, 3, 2, 2, seed=1), 0)
    assert metric.compute().keys() == {"pd_pixels_pairs"}  # nor clusters
    metric = PerceptualDiversity(noise(2, 3, 2, 2), Counting())
    metric.update(noise(2, 3, 2, 2), 0)
    values = metric.compute()
    assert values["pd_pixels_intra"].isnan() and values["pd_pixels_intra_all"] == 0 and values["pd_pixels_clusters"] == 0


def test_many_training_images_are_not_named_one_by_one() -> None:
    metric = PerceptualDiversity(noise(17, 3, 2, 2), Counting())
    metric.update(noise(20, 3, 2, 2, seed=1), 0)
    assert not any("_cluster_" in key for key in metric.compute())


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_samples_are_refused(number: int) -> None:
    metric = PerceptualDiversity(noise(3, 3, 2, 2), Counting())
    metric.update(noise(number, 3, 2, 2), 0)
    with pytest.raises(ValueError, match=f"^PerceptualDiversity needs at least 2 samples, got {number}$"):
        metric.compute()


def test_walk_goes_from_partner_to_partner() -> None:
    assert walk(torch.tensor([[0, 3], [1, 3], [1, 4]]), 5).tolist() == [0, 3, 1, 4, 2]


def pairwise_passes(metric: PerceptualDiversity, samples: int, targets: int) -> int:
    """Of a script that sends both images of a pair through the network each time."""
    clusters = sum(min(size, 50) * (min(size, 50) - 1) // 2 for size in metric.nearest.bincount().tolist())
    return 2 * (samples * targets + clusters + len(random_pairs(samples)) + len(random_pairs(targets)))


@pytest.mark.parametrize(("rows", "ratio"), [(1000, 44), (33, 25)], ids=["all rows fit", "33 rows fit"])
def test_a_thousand_images_and_ten_targets_take_twenty_times_fewer_passes(rows: int, ratio: float) -> None:
    """Of rows of VGG-16 at 256 pixels 33 fit into 1 GB. The ratios are 44.8 and 25.3."""
    samples, reals, distance = noise(1000, 3, 2, 2), noise(10, 3, 2, 2, seed=1), Counting()
    metric = PerceptualDiversity(reals, distance, max_values=12 * rows)
    metric.update(samples, 0)
    values = metric.compute()
    assert distance.passes == 1010 or rows < 1000
    assert pairwise_passes(metric, 1000, 10) / distance.passes > ratio
    plain = PerceptualDiversity(reals, Counting())
    plain.update(samples, 0)
    for key, value in plain.compute().items():
        assert values[key].item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.slow
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


def clustered(number: int, shares: list[float], spreads: list[float]) -> tuple[Tensor, Tensor]:
    """Training images far apart, and samples around them in these shares, spread that far."""
    reals = torch.tensor([[30, 30], [30, 220], [220, 30], [220, 220]], dtype=torch.uint8).repeat_interleave(6, 1)
    which = torch.multinomial(torch.tensor(shares), number, replacement=True)
    samples = reals[which] + torch.tensor(spreads)[which, None] * torch.randn(number, 12)
    return reals.view(4, 3, 2, 2), samples.clamp(0, 255).to(torch.uint8).view(-1, 3, 2, 2)


def measured(reals: Tensor, samples: Tensor) -> tuple[float, list[float] | None]:
    metric = PerceptualDiversity(reals, Counting(), pairs=1)
    metric.update(samples, 0)
    intra = {"pd_pixels_intra": metric.compute()["pd_pixels_intra"].item()}
    metric.table = None  # of the other intervals, which need more than one pair
    interval = metric.intervals(intra, len(samples))["pd_pixels_intra"]
    return intra["pd_pixels_intra"], interval if isinstance(interval, list) else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "shares", "spreads", "given"),
    [
        (100, [0.25, 0.25, 0.25, 0.25], [10, 10, 10, 10], 1.0),
        (100, [0.25, 0.25, 0.25, 0.25], [4, 8, 16, 30], 1.0),
        (100, [0.85, 0.05, 0.05, 0.05], [10, 10, 10, 10], 0.41),
        (100, [0.85, 0.05, 0.05, 0.05], [20, 10, 20, 30], 0.41),
        (400, [0.97, 0.01, 0.01, 0.01], [10, 10, 10, 10], 0.2),
        (300, [0.85, 0.05, 0.05, 0.05], [10, 10, 10, 10], 1.0),
    ],
    ids=["even", "even, spread unlike", "uneven", "uneven, spread unlike", "very uneven", "more than fifty"],
)
def test_coverage_of_the_interval_around_training_images(
    number: int, shares: list[float], spreads: list[float], given: float
) -> None:
    """Of the value on average; where an interval is `given`, at least four members of each cluster, it covers."""
    torch.manual_seed(0)
    found = [measured(*clustered(number, shares, spreads)) for _ in range(250)]
    truth = sum(value for value, _ in found) / len(found)
    intervals = [interval for _, interval in found if interval]
    assert len(intervals) / len(found) == pytest.approx(given, abs=0.12)
    assert 0.9 <= sum(low <= truth <= high for low, high in intervals) / len(intervals) <= 0.99


def test_no_interval_around_training_images_where_hardly_anybody_is_near() -> None:
    torch.manual_seed(0)
    reals, most = clustered(96, [1.0, 0, 0, 0], [10] * 4)
    _, few = clustered(4, [0, 1.0, 0, 0], [10] * 4)
    assert measured(reals, torch.cat([most, few]))[1] is not None  # empty clusters stay empty
    for number in (1, 2, 3):
        assert measured(reals, torch.cat([most, few[:number]]))[1] is None
    assert measured(reals, reals.repeat(5, 1, 1, 1)) == (0, [0, 0])


def test_distances_of_pairs_on_a_network() -> None:
    images, distance = noise(4, 3, 64, 64), PerceptualDistance(RandomCNN())
    rows = distance(images)
    found, _ = sweep(EmbeddingCache(images, distance), torch.tensor([[0, 1], [2, 3]]))
    assert found.distances.tolist() == pytest.approx([(rows[i] - rows[i + 1]).square().sum().item() for i in (0, 2)], rel=1e-5)
