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
    `baselines`, uint8 [N, 3, H, W]. `image_set` extracts features as for samples."""

    def measure(reals: ImageSet, fakes: ImageSet) -> dict[str, float]:
        return {metric_key(name, suite.backbone): value for name, value in distances(reals, fakes, [*suite.metrics]).items()}

    points = {}
    if len(reference.whole) > 1:
        halves = [reference.every_second(start) for start in (0, 1)]
        suite.notes.append(f"split_half compares {len(halves[0].whole)} with {len(halves[1].whole)} reference images")
        points["split_half"] = measure(*halves)
    copied = torch.arange(num_images, device=reference.images.device) % len(reference.images)
    points["copies"] = measure(reference, image_set(reference.images[copied], reference.whole[reference.indices[copied]]))
    points |= {name: measure(reference, image_set(images, None)) for name, images in baselines.items()}
    if sifid := suite.metrics.get("sifid"):
        images = {"copies": reference.images, **baselines, "mirrored": reference.images.flip(-1)}
        points = {name: points.get(name, {}) | sifid.mean(baseline) for name, baseline in images.items()}
    return points
