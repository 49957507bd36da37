"""What stands beside the numbers of a measurement: their intervals, and whether the samples are copies."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from metrics.backbones.backbone import Backbone
from metrics.intervals import FEWEST, mean_interval, subsample_interval
from metrics.kernel import kernel_table
from metrics.memorization import (
    Space,
    feature_space,
    judge,
    near_share,
    nearest_pairs,
    patch_space,
    pixel_space,
    reconstruction_test,
    verdict_line,
)
from metrics.nearest_psnr import nearest_psnr
from metrics.perceptual_diversity import MAX_IN_TABLE, MIN_MEMBERS
from metrics.pixel_diversity import grey_levels
from metrics.suite import Images, Suite, all_ranks, key_of

MAX_ROWS = 1000  # on either side, for the intervals of distances
MAX_TRAINING = 1000  # training images that the verdict looks at
HELDOUT = 16  # images a side that are reconstructed

Statistic = Callable[[Tensor], float]


def sample_intervals(
    suite: Suite,
    drawn: Images,
    reference: Images,
    values: Mapping[str, float | None],
    backbone: Backbone | None,
    notes: list[str],
) -> dict[str, list[float]]:
    """95 % intervals [low, high] by key, for another draw of as many samples against the same reference images.

    Of means over samples Student's, of the mean over clusters by the jackknife, of distances and spreads by sub-sampling. Not
    of extremes and of scores that change with the number of samples: `sampling_seeds` gives those.
    """
    number = len(drawn.images)
    if number < FEWEST:
        notes.append(f"no intervals: they need {FEWEST} samples, there are {number}")
        return {}
    statistics = _distance_statistics(suite, drawn, reference, backbone, notes)
    statistics |= _spread_statistics(suite, drawn, values, notes)
    found = {key: subsample_interval(of, number, values[key]) for key, of in statistics.items() if values.get(key) is not None}
    found = {key: interval for key, interval in found.items() if all(map(math.isfinite, interval))}
    perceptual = suite.on_images.get("perceptual")
    if perceptual is not None and values.get(intra := f"{perceptual.distance.key}_intra") is not None:
        interval = perceptual.intra_interval()
        found |= {intra: interval} if interval else {}
        notes += [] if interval else [f"no interval of {intra}: it needs {MIN_MEMBERS} samples around each training image"]
    if "nearest_psnr" in suite.on_images:
        found["nearest_psnr_mean"] = mean_interval(nearest_psnr(drawn.images, reference.images))
    if "source_share" in suite.on_images:
        columns = enumerate(suite.on_images["source_share"].shares.T)
        found |= {f"source_share_{i}": mean_interval(column) for i, column in columns if f"source_share_{i}" in values}
    if "sifid" in suite.on_images:
        sifid = suite.on_images["sifid"]
        columns = all_ranks(dim_zero_cat(sifid.values)).cpu().T
        found |= {key: mean_interval(column) for key, column in zip(sifid.real_maps, columns, strict=True)}
    return found


def _distance_statistics(
    suite: Suite, drawn: Images, reference: Images, backbone: Backbone | None, notes: list[str]
) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    for name in [name for name in ("fd", "kd", "kd_crops") if name in suite.on_features]:
        reals, fakes = (side.features.rows(name).cpu() for side in (reference, drawn))
        if max(len(reals), len(fakes)) > MAX_ROWS:
            notes.append(f"no interval of {key_of(name, backbone)}: above {MAX_ROWS} rows a side take sampling_seeds")
            continue
        rows = torch.arange(len(fakes)).view(len(drawn.images), -1)
        if name == "fd":
            metric = suite.on_features[name]
            statistics[key_of(name, backbone)] = lambda picks, m=metric, r=reals, f=fakes: m.value(r, f[picks])
        else:
            table = kernel_table(reals, fakes)
            statistics[key_of(name, backbone)] = lambda picks, t=table, r=rows: t(r[picks].flatten())
    return statistics


def _spread_statistics(
    suite: Suite, drawn: Images, values: Mapping[str, float | None], notes: list[str]
) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    if "pixel_diversity" in suite.on_images:
        grey = grey_levels(drawn.images).flatten(1).cpu()
        for key in ("pixel_diversity_raw", "pixel_diversity", "pixel_diversity_pooled"):
            unit = _in_parts_of(values, key, "pixel_diversity_raw")
            statistics[key] = lambda picks, u=unit: u * grey[picks].std(0, correction=0).mean()
    perceptual = suite.on_images.get("perceptual")
    if perceptual is not None:
        key = perceptual.distance.key
        names = [name for name in (f"{key}_pairs", f"{key}_ratio") if name in values]
        if perceptual.table is None:
            why = f"above {MAX_IN_TABLE} samples, or where their rows do not fit into memory, take sampling_seeds"
            notes.append(f"no interval of {' and '.join(names)}: {why}")
            return statistics
        for name in names:
            unit = _in_parts_of(values, name, f"{key}_pairs")
            statistics[name] = lambda picks, u=unit: u * perceptual.pairs_of(picks)
    return statistics


def _in_parts_of(values: Mapping[str, float | None], key: str, unit: str) -> float:
    """0 where there is no value, or nothing varies."""
    return values[key] / values[unit] if values.get(key) and values.get(unit) else 0.0


def spaces_of(drawn: Images, reference: Images, backbone: Backbone | None, thorough: bool) -> dict[str, Space]:
    """Where samples and training images are compared: as small pictures, and if `thorough` by features and by regions."""
    spaces = {"pixel": pixel_space(drawn.images, reference.images)}
    if thorough and drawn.features.whole.shape[1]:
        mirrored, turned = (backbone(reference.images.flip(side)) for side in (-1, -2))
        spaces["perceptual"] = feature_space(drawn.features.whole, reference.features.whole, mirrored, turned)
    if thorough:
        near = spaces.get("perceptual", spaces["pixel"]).samples.argmin(1)
        patch = patch_space(drawn.images, reference.images, near)
        spaces |= {"patch": patch} if patch is not None else {}
    return spaces


def memorisation(
    drawn: Images,
    reference: Images,
    backbone: Backbone | None,
    thorough: bool,
    reconstruction: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Tensor]:
    """The verdict (see `judge`) with its `line`, and the picture [3, H, W] of the nearest pairs: by features, or by what shows
    copies, or most of what may be copies, in their place.

    Of more than 1000 training images an even choice is looked at.
    """
    number = len(reference.images)
    if number > MAX_TRAINING:
        picks = torch.linspace(0, number - 1, MAX_TRAINING).long().to(reference.images.device)
        reference = Images(reference.images[picks], reference.features.take(picks))
    spaces = spaces_of(drawn, reference, backbone, thorough)
    found = judge(spaces, len(reference.images))
    if reconstruction is not None:
        found["reconstruction"] = dict(reconstruction)
    whole = (len(drawn.images), len(reference.images))  # regions may be looked at in a part only
    told = [kind for kind in ("perceptual", "pixel", "patch") if kind in spaces and spaces[kind].samples.shape == whole]
    suspected = max(told, key=lambda kind: (kind in found["copies_in"], near_share(spaces[kind])))  # of equals the first
    picture = nearest_pairs(drawn.images, reference.images, spaces[suspected])
    return found | {"line": verdict_line(found)}, picture


def reconstruction_of(module: Any, sets: Mapping[str, Any]) -> dict[str, Any] | None:
    """Errors of `module.reconstruct` on images that it was trained on against held-out ones, of the first set `<name>` that
    has a `<name>_heldout`, called `of`; None without these or where `reconstruct` does not look at its input."""
    names = [name for name in sets if len(sets[name]) and len(sets.get(f"{name}_heldout", ()))]
    if not names or not hasattr(module, "reconstruct"):
        return None
    both = [_some(sets[name]).to(module.device) for name in (names[0], f"{names[0]}_heldout")]
    made = [torch.cat([module.reconstruct(image) for image in images.split(1)]) for images in both]
    if torch.equal(made[0][0], made[1][0]) or any(a.shape != b.shape for a, b in zip(both, made, strict=True)):
        return None
    errors = [(a - b).square().mean((1, 2, 3)).sqrt() for a, b in zip(both, made, strict=True)]
    return reconstruction_test(*errors) | {"of": names[0]}


def _some(images: Any) -> Tensor:
    originals = images.originals()
    picks = torch.linspace(0, len(originals) - 1, min(HELDOUT, len(originals))).long().tolist()
    return torch.stack([originals[i] for i in picks])
