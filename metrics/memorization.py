"""Does a model repeat its training images? Near-duplicates beyond what chance and the training images explain."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.backbones.backbone import Backbone
from metrics.copied_regions import PATCH, copied_shares, shrink
from metrics.features import ImageSet
from metrics.intervals import MIN_SAMPLES, share_bounds
from metrics.nearest_psnr import exact_distances
from modules.ops.images import from_uint8, image_grid

LEVELS = (1 / 3, 1 / 10, 1 / 30, 1 / 100, 1 / 300, 1 / 1000)  # parts of the distance between training images: near … equal
CAUTION = 2 / 3  # part of the estimated intrinsic dimension that is used
MAX_COMPARED = 16  # training images whose regions are compared with samples
MAX_SAMPLES = 200  # whose regions are searched, and whose distances among themselves are measured
PAIRS = 20  # nearest pairs that are shown
COMPARISONS = ("pixel", "perceptual", "patch")  # as small pictures, by features, by copied regions


class DistanceSet(NamedTuple):
    """Distances of samples to training images [n, m], among these [m, m], and of each to itself flipped upside down [m], which
    stands in where there is no other; and how many numbers describe a sample."""

    samples: Tensor
    training: Tensor
    flipped: Tensor
    intrinsic_dim: float = 1.0


def relative_distances(distances: DistanceSet) -> tuple[Tensor, Tensor]:
    """Distance of each sample [n], and of each training image [m] as a baseline, to the nearest (other) training image, in
    parts of the distance from that one to its own nearest neighbor: float64. With fewer than three there is no baseline."""
    among = distances.training.double().clone().fill_diagonal_(torch.inf)
    unequal = among.where(among > 0, torch.inf)  # a set that holds an image twice is no scale
    scale = unequal.amin(1) if len(among) > 1 else distances.flipped.double()
    near = distances.samples.double().min(1)
    without = unequal[among.argmin(1)].fill_diagonal_(torch.inf)  # distances of its neighbor to all but each image
    baseline = _parts(among.amin(1), without.amin(1)) if len(among) > 2 else torch.zeros(0, dtype=torch.float64)
    return _parts(near.values, scale[near.indices]), baseline


def _parts(distances: Tensor, scales: Tensor) -> Tensor:
    """Infinity where there is no scale, because all images are equal."""
    return (distances / scales).where(scales.isfinite() & (scales > 0), torch.inf)


def intrinsic_dimension(distances: Tensor) -> float:
    """Number of dimensions that describe the samples, from their distances [n, n] among themselves; 1 if that is unknown.

    Levina and Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension", 2004, eq. 8, averaged as logarithms (MacKay and
    Ghahramani, 2005). Over the nearest fifth of all samples: biased downwards for rich images, unmoved by noise in the pixels.
    """
    num_samples = len(distances)
    if num_samples < MIN_SAMPLES:
        return 1.0
    near = distances.double().clone().fill_diagonal_(torch.inf).topk(max(num_samples // 5, 2), largest=False).values
    near = near[near[:, 0] > 0]  # repeated samples carry no information
    spread = (near[:, -1:] / near[:, :-1]).log().mean().item() if len(near) else 0.0
    return max(1.0, 1 / spread) if spread > 0 else 1.0


def near_share(ratios: Tensor) -> float:
    return float((ratios < LEVELS[0]).double().mean()) if len(ratios) else 0.0


def is_copying(ratios: Tensor, baseline: Tensor, num_training: int, intrinsic_dim: float = 1.0) -> bool:
    """True if more of the `ratios` [n] are small than can be by chance, at any of the levels.

    Chance is bounded from the training images: how many of them are near-duplicates of the others, at a third of their
    usual distance. Nearer ones become rarer at least like the distance to the power of two thirds of `intrinsic_dim`, and at
    least in proportion to it. In simulations (`test_memorization.py`) at most 5 % of independent samplers were flagged.
    """
    num_samples = len(baseline) or max(num_training, 2)  # one image and itself upside down are two
    alpha = 0.015 if len(baseline) else 0.05  # that the bound of chance is wrong
    chance = share_bounds(int((baseline < LEVELS[0]).sum()), num_samples, alpha)[1]
    power = max(1.0, CAUTION * intrinsic_dim)
    for level in LEVELS if power > 1 else LEVELS[:3]:  # uint8 images that one number describes are equal by chance
        observed = share_bounds(int((baseline < level).sum()), num_samples, alpha)[1]
        low = share_bounds(int((ratios < level).sum()), len(ratios), 0.01)[0]
        if low > min(observed, chance * (level / LEVELS[0]) ** power):
            return True
    return False


def pixel_distances(samples: Tensor, training: Tensor) -> DistanceSet:
    """Distances between uint8 [n, 3, H, W] and [m, 3, H, W] averaged down to 32 pixels; mirrored images count as equal."""
    small = [shrink(images) for images in (samples, training, training.flip(-1), training.flip(-2))]
    return feature_distances(*(images.flatten(1) for images in small))


def feature_distances(samples: Tensor, training: Tensor, mirrored: Tensor, flipped: Tensor) -> DistanceSet:
    """Distances between rows [n, d] of samples and [m, d] of training images, of these mirrored and flipped upside down."""
    samples, training, mirrored, flipped = (rows.cpu() for rows in (samples, training, mirrored, flipped))
    both = [exact_distances(rows, training).minimum(exact_distances(rows, mirrored)) for rows in (samples, training)]
    dimension = intrinsic_dimension(exact_distances(samples[:MAX_SAMPLES], samples[:MAX_SAMPLES]))
    return DistanceSet(*both, (flipped - training).norm(dim=1), dimension)


def patch_distances(samples: Tensor, training: Tensor, near: Tensor) -> DistanceSet | None:
    """One minus the largest share of a picture that is copied from another with a constant offset; None for images smaller than
    a patch. Of many training images those that are nearest (`near` [n], indices) to most samples are compared."""
    picks = torch.bincount(near, minlength=len(training)).argsort(descending=True, stable=True)[:MAX_COMPARED].sort().values
    small, sources = shrink(samples[:MAX_SAMPLES]).cpu(), shrink(training[picks.to(training.device)]).cpu()
    if min(small.shape[-2:]) < PATCH:
        return None
    flipped = 1 - torch.cat([copied_shares(image.flip(-2)[None], image[None])[0] for image in sources])
    return DistanceSet(1 - copied_shares(small, sources), 1 - copied_shares(sources, sources), flipped)


def memorization(
    samples: ImageSet, reference: ImageSet, backbone: Backbone | None, comparisons: Sequence[str] = COMPARISONS,
    reconstruction: Mapping[str, Any] | None = None, reference_name: str = "training images",
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """The verdict (see `memorization_verdict`) with its `line`, and the picture [3, H, W] of the nearest pairs: by features,
    or by what shows copies, or most near-duplicates, in their place. `reconstruction` is a result of `reconstruction_test`."""
    sets, images = {"pixel": pixel_distances(samples.images, reference.images)}, reference.images
    if "perceptual" in comparisons and backbone is not None and samples.whole.shape[1]:
        mirrored, flipped = (backbone(images.flip(side)) for side in (-1, -2))
        sets["perceptual"] = feature_distances(samples.whole, reference.whole[reference.indices], mirrored, flipped)
    near = sets.get("perceptual", sets["pixel"]).samples.argmin(1)
    if "patch" in comparisons and (patch := patch_distances(samples.images, images, near)) is not None:
        sets["patch"] = patch
    verdict = memorization_verdict(sets, len(images))
    if reconstruction is not None:
        verdict["reconstruction"] = dict(reconstruction)
    complete = (len(samples.images), len(images))  # regions may be compared of a part only
    ranked = [name for name in ("perceptual", "pixel", "patch") if name in sets and sets[name].samples.shape == complete]
    shares = {name: near_share(relative_distances(sets[name])[0]) for name in ranked}
    suspected = max(ranked, key=lambda name: (name in verdict["copies_in"], shares[name]))  # of equals the first
    picture = nearest_pairs(samples.images, images, sets[suspected])
    return verdict | {"line": verdict_line(verdict, reference_name)}, picture


def memorization_verdict(sets: Mapping[str, DistanceSet], num_training: int) -> dict[str, Any]:
    """The verdict from the distances "pixel", "perceptual", "patch", whichever there are.

    `copies` is True if any shows it, `undecided` if none does although a larger share of samples than of training images
    is near to one, so few that it may be chance; `duplicate_share` the largest `near_share`; `<name>_ratio` the median of
    the relative distances, near 1 for new images and 0 for copies; `authentic_share` the share of samples farther from their
    nearest training image than that is from the others (Alaa et al., "How Faithful is your Synthetic Data?", 2022);
    `patch_copy_share` the mean largest copied region of a sample, `patch_copy_baseline` of a training image.
    """
    verdict: dict[str, Any] = {"copies_in": [], "undecided": False, "duplicate_share": 0.0, "num_training": num_training}
    for name, distances in sets.items():
        ratios, baseline = relative_distances(distances)
        verdict["copies_in"] += [name] * is_copying(ratios, baseline, num_training, distances.intrinsic_dim)
        share = near_share(ratios)
        verdict["undecided"] |= share > near_share(baseline)
        verdict["duplicate_share"] = max(verdict["duplicate_share"], share)
        for key, values in ((f"{name}_ratio", ratios), (f"{name}_ratio_baseline", baseline)):
            verdict[key] = float(values.median()) if len(values) and values.median().isfinite() else None
        if name != "patch":
            verdict["authentic_share"] = float((ratios > 1).double().mean())
            verdict["num_samples"] = len(ratios)
    verdict["copies"] = bool(verdict["copies_in"])
    verdict["undecided"] &= not verdict["copies"]
    if "patch" in sets:
        among = sets["patch"].training.clone().fill_diagonal_(torch.inf)
        verdict["patch_copy_share"] = float((1 - sets["patch"].samples.amin(1)).mean())
        verdict["patch_copy_baseline"] = float((1 - among.amin(1)).mean()) if len(among) > 1 else None
    return verdict


def verdict_line(verdict: Mapping[str, Any], reference_name: str = "training images") -> str:
    near = f"{round(verdict['duplicate_share'] * verdict['num_samples'])} of {verdict['num_samples']} samples"
    near += f" are near-duplicates of the {verdict['num_training']} {reference_name} (distance below 1/3 of the typical one)"
    if verdict["copies"]:
        line = f"COPIES {reference_name} ({', '.join(verdict['copies_in'])}): {near}"
    elif verdict["undecided"]:
        line = f"UNDECIDED: {near}; with so few images this may be chance"
    else:
        line = f"no copying found: {near}"
    if "patch_copy_share" in verdict:
        baseline = verdict["patch_copy_baseline"]
        among = f" ({baseline:.0%} among {reference_name})" if baseline is not None else ""
        line += f"; the largest copied region covers {verdict['patch_copy_share']:.0%} of a sample{among}"
    if test := verdict.get("reconstruction"):
        kind = reference_name if test["of"] == "image" else f"{test['of']} images of the training"
        quality = "better than" if test["p"] < 0.05 else "as well as"
        line += f"; reconstructs {kind} {quality} held-out ones (p = {test['p']:.2g})"
    return line


def reconstruction_test(training: Tensor, heldout: Tensor, permutations: int = 2000) -> dict[str, float]:
    """Means of the errors [a] and [b], and the one-sided p-value of a permutation test that the former are smaller."""
    errors, n = torch.cat([training, heldout]).double().cpu(), len(training)
    generator = torch.Generator().manual_seed(0)
    picks = [torch.arange(n), *(torch.randperm(len(errors), generator=generator)[:n] for _ in range(permutations))]
    means = torch.stack([errors[pick].mean() for pick in picks])  # scipy's test refuses a single image
    as_small = int((means <= means[0] + 1e-12).sum())  # the observed one is counted in
    values = {"training": float(means[0]), "heldout": float(errors[n:].mean()), "num_heldout": len(heldout)}
    return values | {"p": as_small / len(picks)}


def nearest_pairs(samples: Tensor, training: Tensor, distances: DistanceSet, columns: int = 10) -> Tensor:
    """One picture [3, H, W] in [-1, 1] of the samples nearest to training images, each above the training image."""
    order = relative_distances(distances)[0].argsort(stable=True)[:PAIRS]
    rows = []
    for part in order.split(columns):
        above, below = samples.cpu()[part], training.cpu()[distances.samples[part].argmin(1)]
        blank = torch.full((min(columns, len(order)) - len(part), *above.shape[1:]), 255, dtype=torch.uint8)
        rows += [above, blank, below, blank]
    return image_grid(from_uint8(torch.cat(rows)), min(columns, len(order)))
