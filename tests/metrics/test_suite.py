"""Which metrics a measurement has, and their intervals."""

from fnmatch import fnmatch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import perceptual_diversity
from metrics.backbones.random_cnn import RandomCNN
from metrics.features import ImageSet
from metrics.intervals import mean_interval
from metrics.nearest_psnr import nearest_psnr
from metrics.suite import FULL, QUICK, Suite, possible_keys, select_metrics

TRIALS = 400  # with fewer the upper bound of the coverage says nothing


class Pixels:
    key = "pd_pixels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255


def without_features(images: Tensor) -> ImageSet:
    nothing = torch.zeros(len(images), 0)
    return ImageSet(nothing, images, nothing[:, :, None], torch.arange(len(images)))


def measured(metrics: list[str], reals: Tensor, samples: Tensor) -> tuple[dict[str, float], dict[str, list[float]], list[str]]:
    """Values, intervals and notes."""
    suite = Suite(metrics, without_features(reals), None, Pixels(), len(samples), 0)
    suite.update(without_features(samples), 0)
    return suite.compute(), suite.intervals(len(samples)), suite.notes


def smooth(number: int) -> Tensor:
    return F.interpolate(torch.rand(number, 3, 4, 4) * 255, (14, 14), mode="bilinear")


@pytest.fixture(scope="module")
def trials() -> list[tuple]:
    """Sets of 30 samples, each a mix of one of three training images, not equally likely, with another picture."""
    torch.manual_seed(0)
    reals, found = smooth(3), []
    for _ in range(TRIALS):
        which, share = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 30, replacement=True), torch.rand(30, 1, 1, 1)
        samples = (share * reals[which] + (1 - share) * smooth(30)).to(torch.uint8)
        found.append(measured(["pixel_diversity", "nearest_psnr", "source_share"], reals.to(torch.uint8), samples))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        "pixel_diversity",
        "pixel_diversity_pooled",
        "pixel_diversity_raw",
        "nearest_psnr_mean",
        "source_share_0",
        "source_share_2",
    ],
)
def test_coverage(trials: list[tuple], key: str) -> None:
    """Of the value that as many samples have on average; 93 to 97 % give or take two deviations of the number of trials."""
    truth = sum(values[key] for values, _, _ in trials) / TRIALS
    covered = sum(intervals[key][0] <= truth <= intervals[key][1] for _, intervals, _ in trials) / TRIALS
    noise = 2 * (0.05 * 0.95 / TRIALS) ** 0.5
    assert 0.93 - noise <= covered <= 0.97 + noise


def test_intervals_of_one_set_are_those_of_its_kind_of_number() -> None:
    """Of a mean Student's; of the spread around its value, in the same proportion for each of its units."""
    values, intervals, _ = measured(["pixel_diversity", "nearest_psnr"], pictures(3, 0), pictures(30, 1))
    psnr = nearest_psnr(pictures(30, 1), pictures(3, 0))
    assert intervals["nearest_psnr_mean"] == pytest.approx(mean_interval(psnr), rel=1e-6)
    low, high = intervals["pixel_diversity_raw"]
    assert low < values["pixel_diversity_raw"] < high < 1.3 * low
    ratios = {key: values[key] / values["pixel_diversity_raw"] for key in ("pixel_diversity", "pixel_diversity_pooled")}
    for key, ratio in ratios.items():
        assert intervals[key] == pytest.approx([ratio * low, ratio * high], rel=1e-6)


def pictures(number: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_no_interval_of_pairs_above_the_table_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual_diversity, "MAX_IN_TABLE", 39)
    values, intervals, notes = measured(["perceptual"], pictures(2, 0), pictures(40, 1))
    assert {"pd_pixels_pairs", "pd_pixels_ratio", "pd_pixels_intra"} <= values.keys()
    assert intervals.keys() == {"pd_pixels_intra"}
    assert [note.partition(",")[0] for note in notes] == [
        f"no interval of pd_pixels_{kind}: above 39 samples" for kind in ("pairs", "ratio")
    ]
    values, intervals, notes = measured(["perceptual"], pictures(1, 0), pictures(40, 1))
    assert not intervals and notes[0].startswith("no interval of pd_pixels_pairs: above 39 samples")


def test_intervals_of_diversity_stand_without_a_note() -> None:
    values, intervals, notes = measured(["perceptual"], pictures(2, 0), pictures(40, 1))
    assert intervals.keys() == {"pd_pixels_pairs", "pd_pixels_ratio", "pd_pixels_intra"} and notes == []
    for key, (low, high) in intervals.items():
        assert low < values[key] < high


def test_too_few_samples_around_a_training_image_are_a_note() -> None:
    reals = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 7, 7)
    samples = torch.cat([pictures(20, 0) // 4, 255 - pictures(3, 1) // 4])
    values, intervals, notes = measured(["perceptual"], reals, samples)
    assert (values["pd_pixels_cluster_0"], values["pd_pixels_cluster_1"]) == (20, 3)
    assert notes == ["no interval of pd_pixels_intra: it needs 4 samples around each training image"]
    assert "pd_pixels_intra" not in intervals


def test_too_few_samples_have_no_intervals() -> None:
    _, intervals, notes = measured(["nearest_psnr"], pictures(2, 0), pictures(9, 1))
    assert not intervals and notes == ["no intervals: they need 10 samples, got 9"]


@pytest.mark.parametrize(
    ("number", "included", "excluded"),
    [(1, "sifid kd_crops", "fd kd source_share manifold"), (2, "fd kd source_share", "sifid manifold fd_infinity"),
     (101, "fd manifold", "sifid source_share fd_infinity inception_score")],
)  # fmt: skip
def test_metrics_are_selected_by_the_reference(number: int, included: str, excluded: str) -> None:
    images = pictures(number, 0)
    reference = ImageSet(torch.zeros(number, 2), images, torch.zeros(number, 2, 2), torch.arange(number))
    names = select_metrics(FULL, reference, None)
    assert {*included.split(), "pixel_diversity", "nearest_psnr", "perceptual"} <= {*names}
    assert not {*excluded.split()} & {*names}
    assert select_metrics(QUICK, reference, None) == [name for name in QUICK if name in names]


def test_the_possible_keys_are_those_that_are_computed() -> None:
    computed, possible = set(), set()
    for number in (1, 60):
        images = pictures(number, 0).repeat(1, 1, 3, 3)
        names = [name for name in FULL if name not in ("fd_infinity", "inception_score")]
        suite = Suite(names, featured(images, 0), RandomCNN(), Pixels(), 60, 2, lambda images: images[:, 0, 0, 0] / 255)
        suite.update(featured(pictures(60, 1).repeat(1, 1, 3, 3), 1), 0)
        computed |= suite.compute().keys()
        possible |= {key for name in suite.metrics for key in possible_keys(name, RandomCNN(), Pixels())}
    assert all(any(fnmatch(key, pattern) for pattern in possible) for key in computed)
    numbered = {"source_share_*", "pd_pixels_cluster_*"}  # of fewer training images
    assert all(any(fnmatch(key, pattern) for key in computed) for pattern in possible - numbered)


def featured(images: Tensor, seed: int) -> ImageSet:
    rows = torch.randn(len(images), 8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(rows, images, rows[:, None].repeat(1, 2, 1), torch.arange(len(images)))
