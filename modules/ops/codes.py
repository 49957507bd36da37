"""Numbers about maps of code indices."""

import torch
from torch import Tensor


def code_usage(codes: Tensor, num_codes: int) -> tuple[float, float]:
    """Share of the code book that occurs in `codes`, and perplexity of the codes' frequencies (1 ... num_codes)."""
    counts = torch.bincount(codes.flatten(), minlength=num_codes).double()
    shares = counts[counts > 0] / counts.sum()
    return float((counts > 0).double().mean()), float(torch.exp(-(shares * shares.log()).sum()))


def order0_bits(train: Tensor, heldout: Tensor, num_codes: int) -> float:
    """Bits per code of held-out codes under the frequencies of `train` with add-one smoothing: what a prior has to beat."""
    counts = torch.bincount(train.flatten(), minlength=num_codes).double() + 1
    return float(-(counts / counts.sum()).log2()[heldout].mean())
