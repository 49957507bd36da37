"""Numbers of fixed images. If one of them moves, `CODE_VERSION` has to rise: stored numbers are no longer comparable."""

import pytest
import torch
from torch import Tensor

from callbacks.metrics.backbones import RandomCNN
from callbacks.metrics.features import Features, extract_features
from callbacks.metrics.perceptual import load_perceptual
from callbacks.metrics.protocol import CODE_VERSION
from callbacks.metrics.suite import NAMES, Images, new_suite
from callbacks.metrics.trust import memorisation

VERSION, GOLDEN = 2, {
    "authentic_share": 1,
    "copies": 0,
    "duplicate_share": 0,
    "fd_rand_cnn": 3.88644,
    "kd_rand_cnn": 0.0204953,
    "kd_rand_cnn_crops": 0.0837604,
    "nearest_psnr_max": 12.1907,
    "nearest_psnr_mean": 9.81098,
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
    "pd_rand_cnn_ratio": 1.34334,
    "perceptual_ratio": 1.59694,
    "perceptual_ratio_baseline": 0.927203,
    "pixel_diversity": 0.688399,
    "pixel_diversity_pooled": 0.674534,
    "pixel_diversity_raw": 0.156738,
    "pixel_ratio": 1.5255,
    "pixel_ratio_baseline": 0.559446,
    "source_share_0": 0.0555556,
    "source_share_1": 0.215278,
    "source_share_2": 0.180556,
    "source_share_3": 0.548611,
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
    sides = [Images(x, extract_features(backbone, x, range(len(x)), 2, seed)) for seed, x in enumerate((reals, fakes))]
    names = [name for name in NAMES if name not in ("manifold", "fd_infinity", "inception_score", "sifid")]
    suite = new_suite(names, sides[0], backbone, load_perceptual(backbone, None), len(fakes), 2, False, [])
    suite.update(fakes, Features(*sides[1].features), 0)
    verdict, _ = memorisation(sides[1], sides[0], backbone, thorough=True)
    told = {key: value for key, value in verdict.items() if isinstance(value, float | bool)}
    return {key: float(value) for key, value in (suite.compute(backbone) | told).items()}


def test_the_numbers_of_this_version() -> None:
    assert VERSION == CODE_VERSION, "the golden numbers belong to another version: measure them again"
    found = measured()
    assert found.keys() == GOLDEN.keys()
    for key, value in GOLDEN.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4), f"{key} has changed: raise CODE_VERSION"
