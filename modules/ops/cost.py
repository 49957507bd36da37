"""Time and memory of a network, measured on one image, for the plan that is printed before training."""

import time

import torch
from torch import Tensor, nn


def forward_cost(network: nn.Module, example: Tensor, repeats: int = 2) -> tuple[float, int]:
    """Seconds and bytes kept for backward of one forward pass on `example` [1, C, H, W]; the fastest of `repeats` counts.

    The network's buffers are not changed.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    seconds, training = float("inf"), network.training
    network.eval()
    for _ in range(repeats):
        if example.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = network(example)
        if example.is_cuda:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - start)
        del output
    network.train(training)
    return seconds, sum(kept.values())


def human_time(seconds: float) -> str:
    """Seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def human_bytes(number: float) -> str:
    """Bytes as 12 MB or 3.4 GB."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
