"""Does an autoencoder reconstruct the images of its training better than others? After Webster et al., "Detecting Overfitting
of Deep Generative Networks via Latent Recovery", 2019, whose latents are optimized; here they are encoded."""

from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import ks_2samp
from torch import Tensor

MAX_GAP, MAX_P = 0.1, 0.01  # a larger gap at a smaller p-value is called memorization


def reconstruction_gap(training: Tensor, heldout: Tensor) -> dict[str, Any]:
    """From errors [n] of images of the training and [m] of held-out ones: medians, their ratio, the gap in parts of the
    held-out median (`signed_gap` above 0 for smaller errors in training), and the p-value of the two-sample
    Kolmogorov-Smirnov test."""
    first, second = (float(errors.double().median()) for errors in (training, heldout))
    signed = (second - first) / second if second > 0 else 0.0
    p = float(ks_2samp(training.double().cpu().numpy(), heldout.double().cpu().numpy()).pvalue)
    values = {"median_training": first, "median_heldout": second, "ratio": first / second if second > 0 else 1.0}
    values |= {"gap": abs(signed), "signed_gap": signed, "p": p}
    return values | {"memorizes": signed > MAX_GAP and p < MAX_P}


def autoencoder_test(errors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """`errors` by kind (mse, …) and set: `training` and `heldout` images of the autoencoder, and `sources`, which a generator
    uses. The sources' gap mixes memorization with the difference of the domains, so that it gets no verdict."""
    result: dict[str, Any] = {}
    for kind, sets in errors.items():
        result[kind] = reconstruction_gap(sets["training"], sets["heldout"])
        sources = reconstruction_gap(sets["sources"], sets["heldout"])
        result[kind]["median_sources"] = sources["median_training"]
        result[kind] |= {f"sources_{key}": sources[key] for key in ("signed_gap", "p")}
        result[kind]["num_images"] = {name: len(values) for name, values in sets.items()}
    return {**result, "memorizes": any(values["memorizes"] for values in result.values())}


def squared_errors(images: Tensor, outputs: Tensor) -> Tensor:
    """Mean squared error [N] of images [N, 3, H, W]."""
    return torch.stack([(a - b).square().mean() for a, b in zip(images, outputs, strict=True)])
