import math
from itertools import combinations

import pytest
import torch

from metrics.adaptation import AdaptationMeasure, mean_pair_distance, nearest
from metrics.backbones.random_cnn import RandomCNN
from metrics.kernel import kernel_distance
from metrics.perceptual_diversity import EmbeddingCache


class Pixels:
    """Squared distances of pixels, which counts the images that it sees."""

    key = "pd_pixels"

    def __init__(self):
        self.passes = 0

    def __call__(self, images):
        self.passes += len(images)
        return images.flatten(1).float() / 255

    def size_of(self, height, width):
        return height, width


def noise(number, seed):
    return torch.randint(256, (number, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def distance(a, b):
    return float(((a.double() - b.double()) / 255).square().sum())


@pytest.mark.parametrize("max_values", [2**28, 200])
def test_values_are_those_of_the_loops(max_values):
    samples, targets = noise(9, 0), noise(4, 1)
    rows = [EmbeddingCache(images, Pixels(), max_values) for images in (samples, targets)]
    expected = [distance(a, b) for a, b in combinations(samples, 2)]
    assert mean_pair_distance(rows[0]) == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    table = [[distance(a, b) for b in targets] for a in samples]
    values, indices = nearest(*rows)
    assert values.tolist() == pytest.approx([min(row) for row in table], rel=1e-5)
    assert indices.tolist() == [row.index(min(row)) for row in table]


def test_a_set_of_samples_against_training_and_heldout_images():
    training, heldout, samples = noise(3, 0), noise(6, 1), noise(30, 2)
    values = AdaptationMeasure(training, heldout, Pixels(), RandomCNN())(samples)
    table = [[distance(a, b) for b in training] for a in samples]
    near = [row.index(min(row)) for row in table]
    clusters = [[s for s, n in zip(samples, near, strict=True) if n == i] for i in range(3)]
    means = [torch.tensor([distance(a, b) for a, b in combinations(c, 2)]).mean() for c in clusters if len(c) > 1]
    assert values.intra == pytest.approx(float(torch.stack(means).mean()), rel=1e-5) and values.clusters == len(means)
    assert values.intra_std == pytest.approx(float(torch.stack(means).std(correction=0)), rel=1e-4)
    lowest = sorted(min(row) for row in table)
    assert values.nearest_training == pytest.approx(lowest[14], rel=1e-5)
    held = [min(distance(a, b) for b in heldout) for a in samples]
    assert values.nearest_heldout == pytest.approx(sum(held) / 30, rel=1e-5)
    expected = kernel_distance(RandomCNN()(heldout, size=64), RandomCNN()(samples, size=64))
    assert math.isnan(values.realism) and values.kd == pytest.approx(float(expected), rel=1e-5)


def test_copies_are_near_the_training_images_and_have_no_diversity_around_them():
    training = noise(3, 0)
    values = AdaptationMeasure(training, None, Pixels(), RandomCNN())(training.repeat(5, 1, 1, 1))
    assert values.intra == pytest.approx(0, abs=1e-6) and values.nearest_training == pytest.approx(0, abs=1e-5)
    assert values.clusters == 3 and values.pairs > 1 and math.isnan(values.nearest_heldout)


def test_each_image_passes_the_network_once():
    distance = Pixels()
    measure = AdaptationMeasure(noise(3, 0), noise(6, 1), distance, RandomCNN())
    measure(noise(40, 2))
    assert distance.passes == 3 + 6 + 40
    measure(noise(40, 3))
    assert distance.passes == 3 + 6 + 80
