"""Adversarial losses on critic outputs of any shape; every value is a mean over all of the critic's outputs."""

from torch import Tensor


def wasserstein_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Critic's loss E[D(fake)] - E[D(real)] (Arjovsky et al. 2017)."""
    return fake_logits.mean() - real_logits.mean()


def wasserstein_g(fake_logits: Tensor) -> Tensor:
    """Generator's loss -E[D(fake)]."""
    return -fake_logits.mean()
