"""Planted copiers are always flagged, planted independent samplers at most one time in twenty."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.backbones.random_cnn import RandomCNN
from metrics.features import ImageSet
from metrics.memorization import (
    COMPARISONS,
    MAX_COMPARED,
    MAX_SAMPLES,
    DistanceSet,
    feature_distances,
    intrinsic_dimension,
    is_copying,
    memorization,
    memorization_verdict,
    nearest_pairs,
    patch_distances,
    pixel_distances,
    reconstruction_test,
    relative_distances,
    verdict_line,
)
from modules.ops.images import to_uint8

SIDE, SAMPLES = 24, 40


def to_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def clouds(number: int) -> Tensor:
    """Many degrees of freedom, the coarse ones strongest, as in photographs."""
    sizes = (1, 2, 4, 8, SIDE)
    parts = [F.interpolate(torch.randn(number, 3, k, k), (SIDE, SIDE), mode="bicubic") / k for k in sizes]
    return to_bytes(0.5 + 0.12 * sum(parts))


def discs(number: int) -> Tensor:
    """Two degrees of freedom: where the disc is. Two such images can be nearly equal by chance."""
    y, x = (torch.rand(number, 1, 1) * SIDE for _ in range(2))
    lines = torch.arange(float(SIDE))
    inside = (lines.view(1, -1, 1) - y).square() + (lines.view(1, 1, -1) - x).square() < 36
    return to_bytes(0.1 + 0.8 * inside[:, None].float().expand(-1, 3, -1, -1))


def grays(number: int) -> Tensor:
    """One degree of freedom, the hardest case."""
    return to_bytes(torch.rand(number, 1, 1, 1).expand(-1, 3, SIDE, SIDE))


def chosen(training: Tensor) -> Tensor:
    return training[torch.randint(len(training), (SAMPLES,))]


def noisy(images: Tensor) -> Tensor:
    return to_bytes(images / 255 + 0.03 * torch.randn(images.shape))


NETWORK = RandomCNN()
KINDS = {"clouds": clouds, "discs": discs, "grays": grays}


def images_of(pixels: Tensor, features: bool = True) -> ImageSet:
    whole = NETWORK(pixels) if features else torch.zeros(len(pixels), 0)
    return ImageSet(whole, pixels, torch.zeros(len(pixels), 0, 1), torch.arange(len(pixels)))


def verdict_of(samples: Tensor, training: Tensor, comparisons: Sequence[str] = COMPARISONS) -> dict:
    return memorization(images_of(samples), images_of(training), NETWORK, comparisons)[0]


COPIERS = {
    "equal": lambda training, kind: chosen(training),
    "mirrored": lambda training, kind: chosen(training).flip(-1),
    "noisy": lambda training, kind: noisy(chosen(training)),
    "one image only": lambda training, kind: training[:1].expand(SAMPLES, -1, -1, -1),
    "some samples": lambda training, kind: torch.cat([chosen(training)[:16], kind(SAMPLES - 16)]),
}


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("clouds", (2,)), pytest.param("clouds", (1, 3, 5, 10), marks=pytest.mark.slow),
     pytest.param("discs", (1, 2, 3, 5, 10), marks=pytest.mark.slow)],
)  # fmt: skip
def test_copiers_are_flagged(kind: str, numbers: tuple[int, ...], copier: str) -> None:
    for seed, number in enumerate(numbers):
        torch.manual_seed(seed)
        training = KINDS[kind](number)
        found = verdict_of(COPIERS[copier](training, KINDS[kind]), training)
        assert found["copies"], (kind, copier, number)
        assert found["line"].startswith("COPIES") and found["duplicate_share"] > 0.3


@pytest.mark.parametrize("number", [2, 5, 10])
def test_a_single_copy_among_rich_samples_is_flagged(number: int) -> None:
    torch.manual_seed(number)
    training = clouds(number)
    found = verdict_of(torch.cat([training[:1], clouds(19)]), training)
    assert found["copies"] and not found["undecided"]


def test_near_images_that_may_be_chance_are_told_as_undecided() -> None:
    training, samples = toy(0, 4, 10), toy(0.5, *range(20, 31))
    distances = DistanceSet((samples - training.T).abs(), (training - training.T).abs(), toy(1, 1, 1)[:, 0])
    found = memorization_verdict({"pixel": distances}, 3)
    assert found["undecided"] and not found["copies"]
    assert verdict_line(found).startswith("UNDECIDED: 1 of 12 samples")
    far = memorization_verdict({"pixel": distances._replace(samples=distances.samples[1:])}, 3)
    assert not far["undecided"] and verdict_line(far).startswith("no copying found: 0 of 11")


@pytest.mark.parametrize("copier", ["equal", "mirrored", "one image only"])
def test_copiers_are_flagged_from_small_pictures_alone(copier: str) -> None:
    for number in (1, 2, 5):
        torch.manual_seed(number)
        training = clouds(number)
        assert verdict_of(COPIERS[copier](training, clouds), training, ["pixel"])["copies"]


def test_moved_copies_are_flagged_by_their_regions() -> None:
    torch.manual_seed(0)
    training = clouds(5)
    found = verdict_of(chosen(training).roll((1, 2), (2, 3)), training)
    assert found["copies"] and "patch" in found["copies_in"]
    assert found["patch_copy_share"] > 0.6 > 0.3 > found["patch_copy_baseline"]


@pytest.mark.parametrize(("kind", "number"), [("clouds", 2), ("discs", 5)])
def test_an_independent_sampler_is_not_flagged(kind: str, number: int) -> None:
    torch.manual_seed(number)
    training = KINDS[kind](number)
    assert not verdict_of(KINDS[kind](SAMPLES), training)["copies"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("clouds", 1), ("grays", 2), ("clouds", 5), ("discs", 5), ("grays", 12)])
def test_independent_samplers_are_not_flagged(kind: str, number: int) -> None:
    """At most 5 % of 100 training sets. The region test is too slow for so many and has its own."""
    flagged = 0
    for seed in range(100):
        torch.manual_seed(1000 + seed)
        training, samples = KINDS[kind](number), KINDS[kind](SAMPLES)
        rows = [NETWORK(images) for images in (samples, training, training.flip(-1), training.flip(-2))]
        sets = pixel_distances(samples, training), feature_distances(*rows)
        flagged += any(is_copying(*relative_distances(distances), number, distances.intrinsic_dim) for distances in sets)
    assert flagged <= 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 8, 12])
@pytest.mark.parametrize(("freedom", "noise"), [(1, 0.0), (1, 0.05), (2, 0.0), (4, 0.0)])
def test_independent_points_are_not_flagged(freedom: int, noise: float, number: int) -> None:
    """At most 5 % of 200 training sets of uniform points, with noise in many more dimensions: 0.05 · 200 = 10."""
    flagged, dimensions = 0, 300 if noise else 1
    torch.manual_seed(0)
    for _ in range(200):
        training, drawn = (torch.rand(n, freedom, dtype=torch.float64) for n in (number, 100))
        rows = [
            torch.cat([points, noise * torch.randn(len(points), dimensions, dtype=torch.float64) / dimensions**0.5], 1)
            for points in (drawn, training, 1 - training)
        ]
        distances = feature_distances(rows[0], rows[1], rows[1], rows[2])
        flagged += is_copying(*relative_distances(distances), number, distances.intrinsic_dim)
    assert flagged <= 10


def test_intrinsic_dimension_of_known_samples() -> None:
    torch.manual_seed(0)
    for freedom, low, high in ((1, 1.0, 1.1), (2, 1.6, 2.2), (4, 2.8, 4.4)):
        points = torch.rand(200, freedom, dtype=torch.float64)
        assert low <= intrinsic_dimension(torch.cdist(points, points)) <= high
    assert intrinsic_dimension(torch.zeros(20, 20)) == 1  # copies of one image
    assert intrinsic_dimension(torch.rand(5, 5)) == 1  # too few


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_independent_samples_are_not_flagged(kind: str) -> None:
    flagged = 0
    for seed in range(40):
        torch.manual_seed(2000 + seed)
        training, samples = KINDS[kind](3), KINDS[kind](SAMPLES)
        distances = patch_distances(samples, training, torch.zeros(SAMPLES, dtype=torch.long))
        flagged += is_copying(*relative_distances(distances), 3, distances.intrinsic_dim)
    assert flagged <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("clouds", 5), ("discs", 2)])
def test_whole_verdicts_of_independent_samples(kind: str, number: int) -> None:
    """By pixels, features and regions at once; at most 5 % of 40."""
    flagged = 0
    for seed in range(40):
        torch.manual_seed(3000 + seed)
        training = KINDS[kind](number)
        flagged += verdict_of(KINDS[kind](SAMPLES), training)["copies"]
    assert flagged <= 2


def test_one_image_that_is_its_own_mirror_image_gives_no_verdict() -> None:
    gray = grays(1)
    found = verdict_of(gray.expand(SAMPLES, -1, -1, -1), gray)
    assert not found["copies"] and found["pixel_ratio"] is None


def toy(*rows: float) -> Tensor:
    return torch.tensor(rows).view(-1, 1)


def test_authentic_share_on_a_line() -> None:
    """Training {0, 1, 5}; 0.4 and 5.05 are nearer to their neighbor than that is to others, 2.8 is not."""
    training, samples = toy(0, 1, 5), toy(0.4, 2.8, 5.05)
    distances = DistanceSet((samples - training.T).abs(), (training - training.T).abs(), toy(1, 1, 1)[:, 0])
    ratios, baseline = relative_distances(distances)
    assert ratios.tolist() == pytest.approx([0.4 / 1, 1.8 / 1, 0.05 / 4], rel=1e-5)
    assert (ratios > 1).double().mean().item() == pytest.approx(1 / 3)
    # Left out: 0 is 1 from 1, which is 4 from 5; 1 is 1 from 0, which is 5 from 5; 5 is 4 from 1, which is 1 from 0.
    assert baseline.tolist() == pytest.approx([1 / 4, 1 / 5, 4 / 1])


def test_the_picture_shows_what_is_suspected() -> None:
    """Moved copies are near by their regions only, a mix with another image is nearer than they are by pixels."""
    torch.manual_seed(1)
    training = clouds(5)
    mix = to_bytes((0.63 * training[:1] + 0.37 * clouds(1)) / 255)
    samples = torch.cat([mix, clouds(11), training[2:3].roll((2, 3), (2, 3)).expand(8, -1, -1, -1)])
    assert pixel_distances(samples, training).samples.min(1).values.argmin() == 0
    found, picture = memorization(images_of(samples, False), images_of(training, False), None)
    assert found["undecided"] and found["duplicate_share"] == 8 / 20
    pixels = to_uint8(picture)
    assert torch.equal(pixels[:, :SIDE, :SIDE], samples[-1])
    assert torch.equal(pixels[:, SIDE + 2 : 2 * SIDE + 2, :SIDE], training[2])


def test_training_images_that_are_there_twice_are_no_scale() -> None:
    torch.manual_seed(0)
    training = clouds(4)
    doubled = torch.cat([training, training[:1]])
    assert verdict_of(chosen(doubled), doubled)["copies"]
    assert not verdict_of(clouds(SAMPLES), doubled)["copies"]


def test_of_many_training_images_those_near_the_samples_are_compared() -> None:
    torch.manual_seed(0)
    training = clouds(MAX_COMPARED + 4)
    samples = training[-2:]
    distances = patch_distances(samples, training, torch.tensor([len(training) - 2, len(training) - 1]))
    assert distances.samples.shape == (2, MAX_COMPARED) and distances.samples.amin(1).tolist() == [0, 0]
    many = samples[:1].expand(MAX_SAMPLES + 1, -1, -1, -1)
    assert len(patch_distances(many, training[:1], torch.zeros(len(many), dtype=torch.long)).samples) == MAX_SAMPLES
    assert patch_distances(samples[:, :, :4], training[:, :, :4], torch.zeros(2, dtype=torch.long)) is None  # no patch of 5


def test_pairs_show_the_nearest_first() -> None:
    torch.manual_seed(0)
    training, samples = clouds(3), clouds(13)
    samples[7] = training[2]
    picture = nearest_pairs(samples, training, pixel_distances(samples, training), columns=5)
    pixels = to_uint8(picture)
    assert picture.shape == (3, 6 * (SIDE + 2) - 2, 5 * (SIDE + 2) - 2)
    assert torch.equal(pixels[:, :SIDE, :SIDE], samples[7])
    assert torch.equal(pixels[:, SIDE + 2 : 2 * SIDE + 2, :SIDE], training[2])
    assert (pixels[:, 4 * (SIDE + 2) :, 3 * (SIDE + 2) :] == 255).all()  # 13 = 5 + 5 + 3


def test_reconstruction_test_has_its_level_and_sees_a_lookup() -> None:
    torch.manual_seed(0)
    values = [reconstruction_test(torch.rand(5), torch.rand(8), 200)["p"] for _ in range(200)]
    assert sum(p <= 0.05 for p in values) <= 18  # mean 10, deviation 3
    assert sum(p <= 0.5 for p in values) == pytest.approx(100, abs=22)
    found = reconstruction_test(0.1 * torch.rand(6), 0.5 + torch.rand(6))
    assert found["p"] < 0.01 and found["training"] < found["heldout"] and found["num_heldout"] == 6


def test_line_names_the_images_that_were_compared() -> None:
    verdict = memorization_verdict({}, 3) | {"num_samples": 9}
    test = {"p": 0.001, "of": "side"}
    line = verdict_line(verdict | {"reconstruction": test})
    assert line.startswith("no copying found: 0 of 9 samples are near-duplicates of the 3 training images")
    assert line.endswith("; reconstructs side images of the training better than held-out ones (p = 0.001)")
    line = verdict_line(verdict | {"reconstruction": {"p": 0.5, "of": "image"}})
    assert line.endswith("; reconstructs training images as well as held-out ones (p = 0.5)")
    for changes in ({}, {"copies": True, "copies_in": ["pixel"]}, {"undecided": True}):
        found = verdict | changes | {"patch_copy_share": 0.5, "patch_copy_baseline": 0.1}
        line = verdict_line(found | {"reconstruction": test | {"of": "image"}}, "reference images")
        assert "reference images" in line and "training" not in line
