"""Realism, diversity and novelty of the samples of fixed latents in the course of an adaptation."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.backbones.backbone import Backbone
from metrics.kernel import kernel_distance
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import EmbeddingCache, intra_distances
from metrics.realism import RealismClassifier

MIN_KD_SIZE = 64  # pixels of the images that the backbone sees, twice their own where that is more


class AdaptationValues(NamedTuple):
    """Measurements of a set of samples; NaN where one is not possible.

    `realism` p_t. Perceptual distances: `intra` of pairs around each training image, mean over the `clusters` that have
    pairs, and their deviation `intra_std`; `pairs` of all pairs; `nearest_training` the median to the nearest training image,
    `nearest_heldout` the mean to the nearest held-out one, and `kd` the kernel distance to these (to the training images where
    there are none).
    """

    realism: float = torch.nan
    intra: float = torch.nan
    intra_std: float = torch.nan
    clusters: int = 0
    pairs: float = torch.nan
    kd: float = torch.nan
    nearest_training: float = torch.nan
    nearest_heldout: float = torch.nan


def mean_pair_distance(rows: EmbeddingCache) -> float:
    """Mean squared distance of all pairs of rows, from their sums: Σ_{i<j} |x_i - x_j|² = n Σ |x_i|² - |Σ x_i|²."""
    n, squares, total = len(rows), 0.0, 0.0
    for part in torch.arange(n).split(rows.max_rows):
        block = rows[part].double()
        squares, total = squares + float(block.square().sum()), total + block.sum(0)
    return (n * squares - float(total.square().sum())) / (n * (n - 1) / 2) if n > 1 else torch.nan


def nearest(rows: EmbeddingCache, targets: EmbeddingCache) -> tuple[Tensor, Tensor]:
    """Squared distance [n] to the nearest target of each row, and its index [n], the first of equals."""
    distances = torch.zeros(len(rows), len(targets), dtype=torch.float64)
    for part in torch.arange(len(rows)).split(rows.max_rows):
        block = rows[part]
        for other in torch.arange(len(targets)).split(targets.max_rows):
            there = targets[other]
            products = (block @ there.T).double()
            norms = block.double().square().sum(1)[:, None] + there.double().square().sum(1)
            distances[part[:, None], other] = (norms - 2 * products).clamp(min=0).cpu()
    return distances.min(1)


class AdaptationMeasure:
    """Measures sets of samples against training images and, where given, held-out images of the target: uint8 [N, 3, H, W].
    Each image passes the networks once: `distance`, `backbone` for `kd`, and where there is one `classifier` for `realism`."""

    def __init__(
        self, training: Tensor, heldout: Tensor | None, distance: PerceptualDistance, backbone: Backbone,
        classifier: RealismClassifier | None = None,
    ) -> None:  # fmt: skip
        self.distance, self.backbone, self.classifier = distance, backbone, classifier
        self.training, self.heldout = (None if x is None else EmbeddingCache(x, distance) for x in (training, heldout))
        self.size = max(MIN_KD_SIZE, 2 * max(training.shape[-2:]))
        self.features = self._features(training if heldout is None else heldout)

    def __call__(self, samples: Tensor) -> AdaptationValues:
        rows = EmbeddingCache(samples, self.distance)
        distances, clusters = nearest(rows, self.training)
        values = {"pairs": mean_pair_distance(rows), "nearest_training": float(distances.median())}
        if len(self.training) > 1:
            intra = intra_distances(rows, clusters)
            means = [intra.distances[intra.group == name].mean() for name in intra.group.unique()] or [intra.mean()]
            values |= {"intra": float(intra.mean()), "intra_std": float(torch.stack(means).std(correction=0))}
            values["clusters"] = intra.group.unique().numel()
        if self.heldout is not None:
            values["nearest_heldout"] = float(nearest(rows, self.heldout)[0].mean())
        if min(len(samples), len(self.features)) > 1:
            values["kd"] = float(kernel_distance(self.features, self._features(samples)))
        if self.classifier is not None:
            values["realism"] = float(self.classifier(samples).double().mean())
        return AdaptationValues(**values)

    def _features(self, images: Tensor) -> Tensor:
        return self.backbone(images, size=min(self.size, self.backbone.input_size)).cpu()

    def protocol(self) -> str:
        """The networks of these numbers, and a hash of the images they refer to."""
        names = [f"{self.distance.key} at {self.distance.size_of(*self.training.images.shape[-2:])[0]} pixels"]
        names += [f"{self.backbone.key('kd')} at {min(self.size, self.backbone.input_size)} pixels"]
        names += [f"realism {self.classifier.sha256[:8]}"] if self.classifier and self.classifier.sha256 else []
        images = [part.images for part in (self.training, self.heldout) if part is not None]
        digest = hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in images)).hexdigest()
        return ", ".join([*names, f"reference {digest[:8]}"])
