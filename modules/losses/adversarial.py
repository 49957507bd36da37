"""Adversarial losses on critic outputs of any shape; every value is a mean over all of the critic's outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def wasserstein_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Critic's loss E[D(fake)] - E[D(real)] (Arjovsky et al. 2017)."""
    return fake_logits.mean() - real_logits.mean()


def wasserstein_g(fake_logits: Tensor) -> Tensor:
    """Generator's loss -E[D(fake)]."""
    return -fake_logits.mean()


def nonsaturating_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's logistic loss E[softplus(-D(real))] + E[softplus(D(fake))] (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def nonsaturating_g(fake_logits: Tensor) -> Tensor:
    """Generator's loss E[softplus(-D(fake))]."""
    return F.softplus(-fake_logits).mean()


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's hinge loss E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))] (Lim & Ye 2017)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def soft_hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss with a margin U(0.8, 1) of each logit (FastGAN's code)."""
    margins = (0.8 + 0.2 * torch.rand_like(logits) for logits in (real_logits, fake_logits))
    return F.relu(next(margins) - real_logits).mean() + F.relu(next(margins) + fake_logits).mean()
