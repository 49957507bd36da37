"""Sets of known quality next to which a few-shot number has to be read."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metrics.features import ImageSet, distances
from metrics.suite import Suite, metric_key


def reference_points(
    suite: Suite, reference: ImageSet, baselines: Mapping[str, Tensor], num_images: int,
    image_set: Callable[[Tensor, Tensor | None], ImageSet],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Distances to the reference by name and key: of one half of it to the other, of `num_images` copies of it, and of the
    `baselines`, bytes [N, 3, H, W]. `image_set` extracts features as for samples; those of whole images may be known."""
    points, names = {}, [name for name in ("fd", "kd", "kd_crops") if name in suite.metrics]
    if len(reference.whole) > 1:
        halves = [reference.every_second(start) for start in (0, 1)]
        suite.notes.append(f"split_half compares {len(halves[0].whole)} with {len(halves[1].whole)} reference images")
        points["split_half"] = distances(*halves, names)
    copied = torch.arange(num_images, device=reference.images.device) % len(reference.images)
    images = {"copies": reference.images[copied], **baselines}
    for name, baseline in images.items():
        whole = reference.whole[reference.indices[copied]] if name == "copies" else None
        points[name] = distances(reference, image_set(baseline, whole), names)
    points = {name: {metric_key(metric, suite.backbone): value for metric, value in p.items()} for name, p in points.items()}
    if sifid := suite.metrics.get("sifid"):
        images |= {"copies": reference.images, "mirrored": reference.images.flip(-1)}
        points = {name: points.get(name, {}) | sifid.mean(baseline) for name, baseline in images.items()}
    return points
