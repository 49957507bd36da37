"""One checkpoint of a comparison: its measurement, values by seed, and images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from callbacks.image_grid import to_pixels
from callbacks.sample_metrics import SampleMetrics, draw_samples, reference_set
from metrics.kernel import kernel_distance
from metrics.nearest_psnr import nearest_psnr
from metrics.pixel_diversity import pixel_diversity
from metrics.sifid import SingleImageFrechet
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import ExplainsSources, Injects, Reconstructs
from modules.ops.images import from_uint8, image_grid, resize, to_uint8
from modules.patches.mosaic import source_picture
from tasks.inputs import read_image

COLUMNS = 4  # of the grid of samples
DISPLAY_SIZE = 110  # approximate side of a sample on the page, pixels
MAX_INPUTS = 6  # reference images that are reconstructed
MAX_REFERENCE = 1000  # reference images of nearest pairs and of the values by seed


@dataclass
class CheckpointEntry:
    """`results` are those of SampleMetrics; `by_seed` has one value for each set of samples that share a seed."""

    path: Path
    run: str
    iteration: int
    class_path: str
    config: dict[str, Any]
    results: Mapping[str, Any]
    number: int = 0
    series: int = 0  # number of the run
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 [H, W, 3] by kind
    nearest: list[tuple[float, np.ndarray]] = field(default_factory=list)  # dB; a sample beside its reference image
    image_size: tuple[int, int] = (1, 1)
    sha256: str = ""  # of the file
    aliases: list[Path] = field(default_factory=list)  # further paths of the same file content
    curve: list[dict[str, Any]] = field(default_factory=list)  # rows of the run's `callbacks.adaptation_curve`
    other_reference: str = ""  # why the reference images are not known to be the training images

    @property
    def method(self) -> str:
        return self.class_path.rsplit(".", 1)[-1]

    @property
    def label(self) -> str:
        return f"{self.number} · {self.run} · {self.path.stem}"

    @property
    def scale(self) -> int:
        """Enlargement of small images on the page."""
        return max(1, min(8, round(DISPLAY_SIZE / max(self.image_size))))

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.results["metrics"]

    @property
    def verdict(self) -> str | None:
        return (self.results.get("verdict") or {}).get("line")

    @property
    def copies(self) -> bool:
        return bool((self.results.get("verdict") or {}).get("copies"))

    @property
    def undecided(self) -> bool:
        return bool((self.results.get("verdict") or {}).get("undecided"))

    def interval(self, key: str) -> Sequence[float] | None:
        low, high = (self.results.get("intervals") or {}).get(key) or (None, None)
        return None if low is None or high is None else (low, high)


@torch.no_grad()
def collect_samples(entry: CheckpointEntry, module: GenerativeModule, metrics: SampleMetrics, data: Any, task: Any) -> None:
    """Adds values and images of the samples drawn by `metrics`, after a test; `task` is the Compare."""
    sets = data.sets()
    images = reference_set(sets)[1]
    reference = to_uint8(images.take(range(min(len(images), MAX_REFERENCE))))
    entry.image_size = tuple(module.image_size)
    if metrics.backbone is not None:
        module.to(_device(metrics.backbone))  # where the measurement ran
    if metrics.drawn is not None:
        entry.by_seed = values_by_seed(metrics.drawn.split(metrics.chunk), reference, metrics)
        entry.images["samples"] = to_grid(metrics.drawn[: task.num_shown], COLUMNS)
        entry.images["suspicious"] = to_pixels(metrics.nearest)
        entry.nearest = nearest_pairs(metrics.drawn, reference, task.num_nearest)
        if isinstance(module, ExplainsSources):
            entry.images |= _provenance(module, metrics, reference[:MAX_INPUTS], len(images))
    originals, render = sets["image"].originals(), module.inject if isinstance(module, Injects) else None
    if task.inputs is not None:
        inputs = torch.cat([resize(read_image(file, "task.inputs"), tuple(module.image_size)) for file in task.inputs])
    else:
        inputs = originals.take(range(min(len(originals), MAX_INPUTS)))
        render = module.reconstruct if isinstance(module, Reconstructs) else render
    if render is not None:
        with sampling_mode(module, metrics.seed, range(len(inputs))):
            outputs = render(inputs.to(module.device)).cpu()
        entry.images["inputs"] = to_grid(to_uint8(torch.cat([inputs, outputs])), len(inputs))


def values_by_seed(chunks: Sequence[Tensor], reference: Tensor, metrics: Any) -> dict[str, list[float]]:
    """Metrics of each complete chunk of samples, uint8 [n, 3, H, W], that are finite everywhere."""
    chunks = [chunk for chunk in chunks if len(chunk) == metrics.chunk]
    values = {"nearest_psnr_mean": [float(nearest_psnr(chunk, reference).mean()) for chunk in chunks]}
    if metrics.chunk > 1:
        values["pixel_diversity"] = [float(pixel_diversity(chunk, reference)["pixel_diversity"]) for chunk in chunks]
    if (backbone := metrics.backbone) is not None:
        device = _device(backbone)
        if len(reference) == 1:
            frechet = SingleImageFrechet(reference.to(device), backbone.maps)
            rows = [frechet.mean(chunk.to(device)) for chunk in chunks] if frechet.real_maps else []
            values |= {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
        elif metrics.chunk > 1:
            reals, fakes = backbone(reference.to(device)), (backbone(chunk.to(device)) for chunk in chunks)
            values[backbone.key("kd")] = [float(kernel_distance(reals, features)) for features in fakes]
    return {key: row for key, row in values.items() if row and all(map(math.isfinite, row))}


def nearest_pairs(samples: Tensor, reference: Tensor, count: int) -> list[tuple[float, np.ndarray]]:
    """PSNR in dB, and a picture, of the samples nearest to a reference image or its mirror image, beside it."""
    if samples.shape[1:] != reference.shape[1:]:
        return []
    order = nearest_psnr(samples, reference).argsort(descending=True, stable=True)[:count]
    candidates = torch.cat([reference, reference.flip(-1)])
    table = torch.stack([nearest_psnr(samples[order], image.unsqueeze(0), flip=False) for image in candidates])
    values, indices = table.max(0)
    pairs = torch.stack([samples[order], candidates[indices]], 1)
    return [(float(value), to_grid(pair, 2)) for value, pair in zip(values, pairs, strict=True)]


def _provenance(module: ExplainsSources, metrics: Any, reference: Tensor, total: int) -> dict[str, np.ndarray]:
    """Provenance of the first chunk, drawn again, as a module knows only that of its last samples."""
    _, samples = next(draw_samples(module, metrics.num_images, metrics.chunk, metrics.seed))
    origins = to_uint8(module.provenance_picture()).cpu()
    return {
        "provenance": to_grid(torch.cat([samples.cpu(), origins]), len(samples)),
        "provenance_key": to_grid(torch.cat([reference, color_key(reference, total)]), len(reference)),
    }


def color_key(reference: Tensor, total: int) -> Tensor:
    """The color of each pixel of the first n of `total` reference images in provenance images: uint8 [n, 3, H, W]."""
    count, _, height, width = reference.shape
    sources = torch.stack(torch.meshgrid(*map(torch.arange, (count, height, width)), indexing="ij"), 1)
    return to_uint8(torch.stack([source_picture(source, [(height, width)] * total) for source in sources]))


def _device(backbone: nn.Module) -> torch.device:
    return next(chain(backbone.parameters(), backbone.buffers())).device


def to_grid(images: Tensor, columns: int) -> np.ndarray:
    """uint8 [N, 3, H, W] as uint8 [H', W', 3]."""
    return to_pixels(image_grid(from_uint8(images), columns))
