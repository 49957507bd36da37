"""Perceptual diversity of 1,000 images around ten targets against a plain loop over pairs, as published scripts compare them.

    python -m tests.benchmarks.intra_distance [--images 1000] [--size 64] [--timed 100] [--threads 1]

Both are timed in CPU seconds. The loop passes both images of a pair through the network: each image with each target, then
all pairs of up to 50 members of a cluster. It is timed on `--timed` pairs and multiplied, and their distances are compared.
"""

import argparse
import time

import torch

from metrics.backbones.registry import load_backbone
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import CLUSTER, PerceptualDiversity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--timed", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(options.images + 10, 3, 8, 8, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, (options.size, options.size), mode="bilinear").to(torch.uint8)
    targets, samples, distance = images[:10], images[10:], PerceptualDistance(load_backbone())

    begin = time.process_time()
    metric = PerceptualDiversity(targets, distance)
    metric.update(samples, 0)
    values = metric.compute()
    cached = time.process_time() - begin

    sizes = metric.nearest.bincount(minlength=10).clamp(max=CLUSTER)
    pairs = 10 * len(samples) + int((sizes * (sizes - 1) // 2).sum())
    picks = torch.arange(min(options.timed, len(metric.intra.left)))
    begin, distances = time.process_time(), []
    for left, right in zip(metric.intra.left[picks].tolist(), metric.intra.right[picks].tolist(), strict=True):
        rows = [distance(samples[i : i + 1]) for i in (left, right)]
        distances.append((rows[0] - rows[1]).square().sum())
    pairwise = (time.process_time() - begin) * pairs / len(picks)
    error = (torch.stack(distances) - metric.intra.distances[picks]).abs().max()
    print(f"{options.images} images of {options.size} pixels, {distance.key}: {values[f'{distance.key}_intra']:.4f}")
    print(f"all at once {cached:.1f} s; {pairs} pairs one by one {pairwise:.0f} s, {pairwise / cached:.0f} times as long")
    print(f"network passes {options.images + 10} and {2 * pairs}; largest difference of a distance {error:.1e}")


if __name__ == "__main__":
    main()
