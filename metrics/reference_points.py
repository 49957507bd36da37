"""Sets of known worth beside which a few-shot number has to be read."""

from collections.abc import Mapping
from typing import Any

import torch

from metrics.features import distances
from metrics.sifid import SingleImageFrechet
from metrics.suite import Images
from modules.ops.images import to_uint8


def anchor_rows(
    module: Any, reference: Images, sets: Mapping[str, Any], chosen: list[str], measure: Any, notes: list[str]
) -> dict[str, dict[str, float]]:
    """Distances of each anchor to the reference: halves of it, copies, the side images, and the module's `baselines`.

    `measure` is the callback: it gives number, seed, features and backbone of samples.
    """
    rows, number = {}, measure.num_images
    if len(reference.images) > 1:
        halves = [reference.features.take(slice(start, None, 2)) for start in (0, 1)]
        notes.append(f"split_half compares {len(halves[0].whole)} with {len(halves[1].whole)} reference images")
        rows["split_half"] = distances(*halves, chosen)
    copied = torch.arange(number, device=reference.images.device) % len(reference.images)
    others = {"copies": reference.images[copied]}
    if "side" in sets:
        side = sets["side"].originals()
        picks = torch.linspace(0, len(side) - 1, min(number, len(side))).long().tolist()
        others["side"] = to_uint8(torch.stack([side[i] for i in picks])).to(reference.images.device)
    torch.manual_seed(measure.seed)
    others |= {name: to_uint8(images) for name, images in module.baselines(number).items()}
    for name, images in others.items():
        whole = reference.features.whole[copied] if name == "copies" else None
        rows[name] = distances(reference.features, measure.sample_features(images, whole=whole), chosen)
    rows = {name: {measure.key(metric): value for metric, value in values.items()} for name, values in rows.items()}
    if "sifid" in chosen:
        sifid = SingleImageFrechet(reference.images, measure.backbone.maps)
        others |= {"copies": reference.images, "mirrored": reference.images.flip(-1)}
        for name, images in others.items() if sifid.real_maps else ():
            rows[name] = rows.get(name, {}) | sifid.mean(images)
    return rows
