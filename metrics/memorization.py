"""Does a model repeat its training images? Near-duplicates beyond what chance and the training images explain."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.copied_regions import PATCH, copied_shares, shrink
from metrics.intervals import FEWEST, share_bounds
from metrics.nearest_psnr import exact_distances
from modules.ops.images import from_uint8, image_grid

LEVELS = (1 / 3, 1 / 10, 1 / 30, 1 / 100, 1 / 300, 1 / 1000)  # parts of the distance between training images: near … equal
CAUTION = 2 / 3  # part of the measured degrees of freedom that is counted on
MAX_COMPARED = 16  # training images whose regions are compared with samples
MAX_SAMPLES = 200  # whose regions are looked for, and whose distances among themselves are measured
PAIRS = 20  # nearest pairs that are shown


class Space(NamedTuple):
    """Distances of samples to training images [n, m], among training images [m, m], and those of each training image to
    itself turned upside down [m], which stands in where there is no other; and how many numbers describe a sample."""

    samples: Tensor
    training: Tensor
    turned: Tensor
    freedom: float = 1.0


def relative_distances(space: Space) -> tuple[Tensor, Tensor]:
    """Distance of each sample [n], and of each training image [m], to the nearest (other) training image, in parts of
    the distance from that one to its own nearest neighbour: float64.

    The latter is the leave-one-out baseline; it needs three training images and is empty below.
    """
    number = len(space.training)
    among = space.training.double().clone().fill_diagonal_(torch.inf)
    among = among.where(among > 0, torch.inf)  # a set that holds an image twice is no scale
    scale = among.amin(1) if number > 1 else space.turned.double()
    near = space.samples.double().min(1)
    ratios = _parts(near.values, scale[near.indices])
    baseline = []
    for i in range(number if number > 2 else 0):
        row = space.training[i].double().clone()
        row[i] = torch.inf
        other = among[row.argmin()].clone()
        other[i] = torch.inf
        baseline.append(_parts(row.min(), other.min()))
    return ratios, torch.tensor(baseline, dtype=torch.float64)


def _parts(distances: Tensor, scales: Tensor) -> Tensor:
    """Infinity where there is no scale, because all images are equal."""
    return (distances / scales).where(scales.isfinite() & (scales > 0), torch.inf)


def degrees_of_freedom(distances: Tensor) -> float:
    """How many numbers describe the samples, from their distances [n, n] among themselves; 1 if they do not tell.

    Levina and Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension", 2004, eq. 8, over the nearest fifth of all
    samples, averaged as logarithms (MacKay and Ghahramani, 2005). So many neighbours make it too small for rich images,
    which is the careful side, and keep noise in the pixels from looking like freedom.
    """
    number = len(distances)
    if number < FEWEST:
        return 1.0
    near = distances.double().clone().fill_diagonal_(torch.inf).topk(max(number // 5, 2), largest=False).values
    near = near[near[:, 0] > 0]  # repeated samples say nothing
    spread = (near[:, -1:] / near[:, :-1]).log().mean().item() if len(near) else 0.0
    return max(1.0, 1 / spread) if spread > 0 else 1.0


def near_share(space: Space) -> float:
    """The share of samples nearer to a training image than a third of the usual distance."""
    return _share(relative_distances(space)[0])


def _share(ratios: Tensor) -> float:
    return float((ratios < LEVELS[0]).double().mean()) if len(ratios) else 0.0


def is_copying(ratios: Tensor, baseline: Tensor, number_training: int, freedom: float = 1.0) -> bool:
    """True if more of the `ratios` [n] are small than can be by chance, at any of the levels.

    Chance is bounded from the training images: how many of them are near-duplicates of the others, at a third of their
    usual distance. Nearer ones become rarer at least like the distance to the power of two thirds of `freedom`, and at
    least in proportion to it. The share of small ratios is bounded, too: at each level the bound is wrong in at most 1 % of all
    cases, that of chance in 1.5 %, or 5 % where there is no `baseline`, whose distances depend on each other. In simulations
    (`test_verdict.py`: 1 to 12 training images of 1 to 4 and of many degrees of freedom, with and without noise) at most 5 %
    of independent samplers were flagged.
    """
    number = len(baseline) or max(number_training, 2)  # one image and itself turned upside down are two
    alpha = 0.015 if len(baseline) else 0.05
    chance = share_bounds(int((baseline < LEVELS[0]).sum()), number, alpha)[1]
    power = max(1.0, CAUTION * freedom)
    for level in LEVELS if power > 1 else LEVELS[:3]:  # bytes of images that one number describes are equal by chance
        own = share_bounds(int((baseline < level).sum()), number, alpha)[1]
        low = share_bounds(int((ratios < level).sum()), len(ratios), 0.01)[0]
        if low > min(own, chance * (level / LEVELS[0]) ** power):
            return True
    return False


def pixel_space(samples: Tensor, training: Tensor) -> Space:
    """Distances between bytes [n, 3, H, W] and [m, 3, H, W] averaged down to 32 pixels; mirrored images count as equal."""
    small = [shrink(images) for images in (samples, training, training.flip(-1), training.flip(-2))]
    return feature_space(*(images.flatten(1) for images in small))


def feature_space(samples: Tensor, training: Tensor, mirrored: Tensor, turned: Tensor) -> Space:
    """Distances between rows [n, d] of samples and [m, d] of training images, of these mirrored and turned upside down."""
    samples, training, mirrored, turned = (rows.cpu() for rows in (samples, training, mirrored, turned))
    both = [exact_distances(rows, training).minimum(exact_distances(rows, mirrored)) for rows in (samples, training)]
    freedom = degrees_of_freedom(exact_distances(samples[:MAX_SAMPLES], samples[:MAX_SAMPLES]))
    return Space(*both, exact_distances(turned, training).diagonal(), freedom)


def patch_space(samples: Tensor, training: Tensor, near: Tensor) -> Space | None:
    """One minus the largest share of a picture that is copied from another with a constant offset, as a distance.

    Of more than 16 training images only those that are nearest (`near` [n], indices) to most samples are compared, and of
    more than 200 samples the first. None if the images are too small to have patches.
    """
    picks = torch.bincount(near, minlength=len(training)).argsort(descending=True, stable=True)[:MAX_COMPARED].sort().values
    small, sources = shrink(samples[:MAX_SAMPLES]).cpu(), shrink(training[picks.to(training.device)]).cpu()
    if min(small.shape[-2:]) < PATCH:
        return None
    turned = 1 - torch.cat([copied_shares(image.flip(-2)[None], image[None])[0] for image in sources])
    return Space(1 - copied_shares(small, sources), 1 - copied_shares(sources, sources), turned)


def judge(spaces: Mapping[str, Space], number_training: int) -> dict[str, Any]:
    """The verdict from the distances in the spaces "pixel", "perceptual", "patch", whichever there are.

    `copies` is True if any space shows it, `undecided` if none does although a larger share of samples than of training images
    is near to one, so few that it may be chance; `duplicate_share` the largest share of samples nearer than a third of the
    usual distance; `<space>_ratio` the median of the relative distances, near 1 for new images and 0 for copies;
    `authentic_share` the share of samples that are farther from their nearest training image than that is from the others
    (Alaa et al., "How Faithful is your Synthetic Data?", 2022), by features, or by pixels where there are none;
    `patch_copy_share` the mean share of a sample that one region with a constant offset covers, `patch_copy_baseline` the same
    among training images.
    """
    found: dict[str, Any] = {"copies": False, "copies_in": [], "undecided": False, "duplicate_share": 0.0}
    found["num_training"] = number_training
    for name, space in spaces.items():
        ratios, baseline = relative_distances(space)
        if is_copying(ratios, baseline, number_training, space.freedom):
            found["copies"] = True
            found["copies_in"] += [name]
        share = _share(ratios)
        found["undecided"] |= share > _share(baseline)
        found["duplicate_share"] = max(found["duplicate_share"], share)
        found[f"{name}_ratio"] = _plain(ratios.median())
        found[f"{name}_ratio_baseline"] = _plain(baseline.median()) if len(baseline) else None
        if name != "patch":
            found["authentic_share"] = float((ratios > 1).double().mean())
            found["num_samples"] = len(ratios)
    found["undecided"] &= not found["copies"]
    if "patch" in spaces:
        among = spaces["patch"].training.clone().fill_diagonal_(torch.inf)
        found["patch_copy_share"] = float((1 - spaces["patch"].samples.amin(1)).mean())
        found["patch_copy_baseline"] = float((1 - among.amin(1)).mean()) if len(among) > 1 else None
    return found


def _plain(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def verdict_line(found: Mapping[str, Any]) -> str:
    """The verdict in a sentence for people."""
    number, training = found["num_samples"], found["num_training"]
    near = round(found["duplicate_share"] * number)
    of = f"{near} of {number} samples are nearer than a third of the usual distance to one of the {training} training image(s)"
    if found["copies"]:
        line = f"COPIES training images ({', '.join(found['copies_in'])}): {of}"
    elif found["undecided"]:
        line = f"UNDECIDED: {of}, which may be copies or, with so few images, chance"
    else:
        line = f"no copying found: {of}"
    if "patch_copy_share" in found:
        base = found["patch_copy_baseline"]
        among = f" (training images among themselves {base:.0%})" if base is not None else ""
        line += f"; the largest copied region covers {found['patch_copy_share']:.0%} of a sample{among}"
    if reconstruction := found.get("reconstruction"):
        remark = "better than" if reconstruction["p"] < 0.05 else "as well as"
        kind = "training images" if reconstruction["of"] == "image" else f"{reconstruction['of']} images of training"
        line += f"; reconstructs {kind} {remark} held-out ones (p = {reconstruction['p']:.2g})"
    return line


def reconstruction_test(training: Tensor, heldout: Tensor, permutations: int = 2000) -> dict[str, float]:
    """Are reconstruction errors [a] of training images smaller than those [b] of held-out ones? Means, and the one-sided
    p-value of a permutation test of their difference."""
    errors = torch.cat([training, heldout]).double().cpu()
    generator = torch.Generator().manual_seed(0)
    total, number = errors.sum(), len(training)

    def difference(part: Tensor) -> Tensor:
        return (total - part.sum(-1)) / (len(errors) - number) - part.mean(-1)

    shuffled = torch.stack([errors[torch.randperm(len(errors), generator=generator)[:number]] for _ in range(permutations)])
    as_large = (difference(shuffled) >= difference(errors[:number]) - 1e-12).sum()
    means = {"training": float(errors[:number].mean()), "heldout": float(errors[number:].mean())}
    return means | {"p": float((1 + as_large) / (1 + permutations)), "num_heldout": len(heldout)}


def nearest_pairs(samples: Tensor, training: Tensor, space: Space, columns: int = 10) -> Tensor:
    """The samples nearest to training images, most suspicious first, each above the training image: one picture [3, H, W]
    in [-1, 1] of at most 20 pairs. Bytes [n, 3, H, W] and [m, 3, H, W]."""
    order = relative_distances(space)[0].argsort(stable=True)[:PAIRS]
    rows = []
    for part in order.split(columns):
        sources = space.samples[part].argmin(1)
        above, below = samples.cpu()[part], training.cpu()[sources]
        blank = torch.full((min(columns, len(order)) - len(part), *above.shape[1:]), 255, dtype=torch.uint8)
        rows += [above, blank, below, blank]
    return image_grid(from_uint8(torch.cat(rows)), min(columns, len(order)))
