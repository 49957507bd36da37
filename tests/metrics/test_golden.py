"""Numbers of fixed images. If one of them moves, `CODE_VERSION` has to rise: stored numbers are no longer comparable."""

import pytest
import torch
from torch import Tensor

from metrics.backbones.random_cnn import RandomCNN
from metrics.features import ImageSet, crop_features
from metrics.manifold import manifold_scores
from metrics.memorization import memorization
from metrics.perceptual_distance import load_perceptual
from metrics.protocol import CODE_VERSION
from metrics.sifid import SingleImageFrechet
from metrics.suite import FULL, Suite

VERSION, GOLDEN = 3, {
    "authentic_share": 1,
    "copies": 0,
    "coverage": 0.983333,
    "density": 0.902778,
    "duplicate_share": 0,
    "fd_rand_cnn": 3.88644,
    "fd_rand_cnn_high": 4.30152,
    "fd_rand_cnn_low": 3.47135,
    "kd_rand_cnn": 0.0204953,
    "kd_rand_cnn_crops": 0.0837604,
    "kd_rand_cnn_crops_high": 0.10332,
    "kd_rand_cnn_crops_low": 0.0642009,
    "kd_rand_cnn_high": 0.022887,
    "kd_rand_cnn_low": 0.0181035,
    "nearest_psnr_max": 12.1907,
    "nearest_psnr_mean": 9.81098,
    "nearest_psnr_mean_high": 10.7114,
    "nearest_psnr_mean_low": 8.9106,
    "patch_copy_baseline": 0.0571429,
    "patch_copy_share": 0.027381,
    "patch_ratio": 1.02256,
    "patch_ratio_baseline": 0.992537,
    "pd_rand_cnn_cluster_0": 2,
    "pd_rand_cnn_cluster_1": 3,
    "pd_rand_cnn_cluster_2": 2,
    "pd_rand_cnn_cluster_3": 5,
    "pd_rand_cnn_clusters": 4,
    "pd_rand_cnn_intra": 0.0435492,
    "pd_rand_cnn_intra_all": 0.0435492,
    "pd_rand_cnn_pairs": 0.0643438,
    "pd_rand_cnn_pairs_high": 0.0714188,
    "pd_rand_cnn_pairs_low": 0.0572689,
    "pd_rand_cnn_ratio": 1.34334,
    "pd_rand_cnn_ratio_high": 1.49104,
    "pd_rand_cnn_ratio_low": 1.19563,
    "perceptual_ratio": 1.59694,
    "perceptual_ratio_baseline": 0.927203,
    "pixel_diversity": 0.688399,
    "pixel_diversity_high": 0.739674,
    "pixel_diversity_low": 0.637124,
    "pixel_diversity_pooled": 0.674534,
    "pixel_diversity_pooled_high": 0.724776,
    "pixel_diversity_pooled_low": 0.624291,
    "pixel_diversity_raw": 0.156738,
    "pixel_diversity_raw_high": 0.168413,
    "pixel_diversity_raw_low": 0.145063,
    "pixel_ratio": 1.5255,
    "pixel_ratio_baseline": 0.559446,
    "precision": 0.986111,
    "recall": 1,
    "sifd_rand_cnn": 4.90607,
    "source_share_0": 0.0555556,
    "source_share_0_high": 0.0900104,
    "source_share_0_low": 0.0211007,
    "source_share_1": 0.215278,
    "source_share_1_high": 0.267976,
    "source_share_1_low": 0.16258,
    "source_share_2": 0.180556,
    "source_share_2_high": 0.235034,
    "source_share_2_low": 0.126078,
    "source_share_3": 0.548611,
    "source_share_3_high": 0.621556,
    "source_share_3_low": 0.475666,
    "source_share_min": 0.0555556,
    "undecided": 0,
}


def waves(number: int, phase: float) -> Tensor:
    """Bytes [number, 3, 24, 32] from integers alone, the same on every machine."""
    y, x = torch.arange(24).view(-1, 1), torch.arange(32)
    images = [
        torch.stack([(y * (2 + i) + x * (3 + c) + 37 * i + int(100 * phase) * c + (x * y) // (2 + i)) % 256 for c in range(3)])
        for i in range(number)
    ]
    return torch.stack(images).to(torch.uint8)


def measured() -> dict[str, float]:
    backbone = RandomCNN()
    reals, fakes = waves(4, 0.0), waves(12, 0.3)
    sides = [
        ImageSet(backbone(x), x, crop_features(backbone, x, range(len(x)), 2, seed), torch.arange(len(x)))
        for seed, x in enumerate((reals, fakes))
    ]
    names = [name for name in FULL if name not in ("manifold", "fd_infinity", "inception_score", "sifid", "realism")]
    suite = Suite(names, sides[0], backbone, load_perceptual(backbone, None), len(fakes), 2)
    suite.update(sides[1], 0)
    values = suite.compute()
    intervals = suite.intervals(len(fakes))
    ends = {f"{key}_{end}": value for key, pair in intervals.items() for end, value in zip(("low", "high"), pair, strict=True)}
    verdict, _ = memorization(sides[1], sides[0], backbone)
    verdicts = {key: value for key, value in verdict.items() if isinstance(value, float | bool)}
    single = SingleImageFrechet(reals[:1], backbone.maps).mean(fakes)
    numbers = torch.arange(60), torch.arange(5, 77)
    rows = [torch.stack([x % 7, x % 11, x % 13], 1).double() + 0.01 * x[:, None] for x in numbers]
    results = values | ends | verdicts | single | manifold_scores(*rows)
    return {key: float(value) for key, value in results.items()}


def test_the_numbers_of_this_version() -> None:
    assert VERSION == CODE_VERSION, "the golden numbers belong to another version: measure them again"
    found = measured()
    assert found.keys() == GOLDEN.keys()
    for key, value in GOLDEN.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4), f"{key} has changed: raise CODE_VERSION"
