"""Inception score (Salimans et al., "Improved Techniques for Training GANs", 2016)."""

import math

import torch
from torch import Tensor

from metrics.feature_metric import FeatureMetric

SPLITS = 10


def inception_score(logits: Tensor, splits: int = SPLITS) -> Tensor:
    """exp of the mean KL divergence between the classes of an image and those of all: mean over random splits of the rows
    [N, classes], the same on every call; float64 scalar between 1 and the number of classes."""
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0)).to(logits.device)
    scores = []
    for part in logits[order].double().log_softmax(1).chunk(splits):
        mean = part.logsumexp(0, keepdim=True) - math.log(len(part))
        scores.append((part.exp() * (part - mean)).sum(1).mean().exp())
    return torch.stack(scores).mean()


class InceptionScore(FeatureMetric):
    """Inception Score by the classifier `weights` [classes, d], without its bias as in the code of published numbers."""

    min_samples, min_reference = 5000, 0  # the score of fewer is biased low

    def __init__(self, reals: Tensor, weights: Tensor) -> None:
        super().__init__(reals)
        self.weights = weights.cpu()

    def value(self, reals: Tensor, fakes: Tensor) -> Tensor:
        return inception_score(fakes @ self.weights.T)
