"""Standing statistics of batch norm: those of samples, for networks whose weights are averages."""

from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def standing_statistics(net: nn.Module, draw: Callable[[], object], batches: int) -> None:
    """Gives every batch norm of `net` the mean statistics of `batches` calls of `draw`, which passes samples through `net`; all
    else stays in eval mode. The random state is fixed inside, so that ranks stay equal, and restored."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if not batches or not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the mean over all batches
        for _ in range(batches):
            draw()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
