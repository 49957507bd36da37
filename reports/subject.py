"""What is known of one checkpoint of a comparison: its measurement, values by seed, and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metrics.kernel import kernel_distance
from metrics.nearest_psnr import nearest_psnr
from metrics.pixel_diversity import pixel_diversity
from metrics.sifid import SingleImageFrechet
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import from_uint8, image_grid, resize, to_uint8
from modules.patches.mosaic import source_picture
from tasks.inputs import read_image

COLUMNS = 4
MAX_INPUTS = 6


@dataclass
class Subject:
    """One checkpoint. `card` is that of its measurement; `by_seed` has a value for each set of samples of one seed."""

    path: Path
    run: str
    iteration: int
    class_path: str
    config: dict[str, Any]
    card: Mapping[str, Any]
    number: int = 0
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # bytes [H, W, 3] by kind
    nearest: list[tuple[float, np.ndarray]] = field(default_factory=list)  # dB; a sample beside its training image
    image_size: tuple[int, int] = (1, 1)
    sha256: str = ""  # of the file

    @property
    def method(self) -> str:
        return self.class_path.rsplit(".", 1)[-1]

    @property
    def label(self) -> str:
        return f"{self.number} · {self.run} · {self.path.stem}"

    @property
    def group(self) -> tuple[str, str]:
        """What checkpoints of one run have in common."""
        return str(self.path.parent), self.run


def look(subject: Subject, module: GenerativeModule, metrics: Any, data: Any, task: Any) -> None:
    """Fills in values and pictures of the samples that `metrics`, a SampleMetrics after its test, has drawn and measured.
    `task` is the Compare."""
    sets = data.sets()
    reference = to_uint8(sets.get("tile", sets["image"]).originals().stack())
    subject.image_size = tuple(module.image_size)
    if metrics.backbone is not None:
        module.to(device_of(metrics.backbone))  # where the measurement ran
    with sampling_mode(module, metrics.seed):
        if metrics.drawn is not None:
            subject.by_seed = by_seed(metrics.drawn.split(metrics.chunk), reference, metrics)
            subject.pictures["samples"] = picture(metrics.drawn[: task.num_shown], COLUMNS)
            subject.pictures["suspicious"] = as_bytes(metrics.nearest)
            subject.nearest = nearest_by_pixels(metrics.drawn, reference, task.num_nearest)
            if hasattr(module, "provenance_picture"):
                subject.pictures |= provenance(module, metrics, reference)
        render = rendering(module, task.inputs is not None)
        if render:
            given = inputs(task.inputs, module, sets)
            torch.manual_seed(metrics.seed)  # the same for all, whatever they have drawn before
            made = torch.cat([given, render(given.to(module.device)).cpu()])
            subject.pictures["inputs"] = picture(to_uint8(made), len(given))


def provenance(module: GenerativeModule, metrics: Any, reference: Tensor) -> dict[str, np.ndarray]:
    """Pictures of where the pixels of the first chunk come from, which is drawn once more: a module knows it of its last
    samples only."""
    torch.manual_seed(metrics.seed)
    images = to_uint8(module.sample(min(metrics.chunk, metrics.num_images))).cpu()
    origin = to_uint8(module.provenance_picture()).cpu()
    return {
        "provenance": picture(torch.cat([images, origin]), len(images)),
        "provenance_key": picture(torch.cat([reference, colour_key(reference)]), len(reference)),
    }


def by_seed(chunks: Sequence[Tensor], reference: Tensor, metrics: Any) -> dict[str, list[float]]:
    """Values by metric of each whole chunk of samples [n, 3, H, W], bytes; a metric that is not finite somewhere is left out.

    They compare models that share seeds. As absolute numbers they depend on the chunk's size.
    """
    chunks = [chunk for chunk in chunks if len(chunk) == metrics.chunk]
    values = {"nearest_psnr_mean": [float(nearest_psnr(chunk, reference).mean()) for chunk in chunks]}
    if metrics.chunk > 1:
        values["pixel_diversity"] = [float(pixel_diversity(chunk, reference)["pixel_diversity"]) for chunk in chunks]
    if metrics.backbone is not None and len(reference) == 1:
        device = device_of(metrics.backbone)
        frechet = SingleImageFrechet(reference.to(device), metrics.backbone.maps)
        rows = [frechet.mean(chunk.to(device)) for chunk in chunks] if frechet.real_maps else []
        values |= {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
    elif metrics.backbone is not None and metrics.chunk > 1:
        device = device_of(metrics.backbone)
        reals = metrics.backbone(reference.to(device))
        rows = [metrics.backbone(chunk.to(device)) for chunk in chunks]
        values[metrics.backbone.key("kd")] = [float(kernel_distance(reals, row)) for row in rows]
    return {key: row for key, row in values.items() if row and all(map(math.isfinite, row))}


def nearest_by_pixels(samples: Tensor, reference: Tensor, count: int) -> list[tuple[float, np.ndarray]]:
    """The samples nearest to a training image, mirrored ones too: dB, and both side by side."""
    if samples.shape[1:] != reference.shape[1:]:
        return []
    order = nearest_psnr(samples, reference).argsort(descending=True, stable=True)[:count]
    worst, both = samples[order], torch.cat([reference, reference.flip(-1)])
    table = torch.stack([nearest_psnr(worst, real.unsqueeze(0), flip=False) for real in both])
    values, which = table.max(0)
    pairs = torch.stack([worst, both[which]], 1)
    return [(float(value), picture(pair, 2)) for value, pair in zip(values, pairs, strict=True)]


def rendering(module: GenerativeModule, foreign: bool) -> Any:
    """What the module makes of given images, if it can: foreign ones are injected, training images reconstructed."""
    names = ("inject",) if foreign else ("reconstruct", "inject")
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def inputs(files: Sequence[str] | None, module: GenerativeModule, sets: Mapping[str, Any]) -> Tensor:
    """The images [n, 3, H, W] in [-1, 1] that are given to all: from files at the training size, or training images."""
    if files is not None:
        return torch.cat([resize(read_image(file, "task.inputs"), tuple(module.image_size)) for file in files])
    return sets["image"].originals().stack()[:MAX_INPUTS]


def device_of(backbone: nn.Module) -> torch.device:
    return next(chain(backbone.parameters(), backbone.buffers())).device


def colour_key(reference: Tensor) -> Tensor:
    """The colour that each place of the training images has in provenance pictures: bytes [n, 3, H, W]."""
    number, _, height, width = reference.shape
    place = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sources = [torch.stack([torch.full_like(place[0], i), *place]) for i in range(number)]
    return to_uint8(torch.stack([source_picture(source, [(height, width)] * number) for source in sources]))


def picture(images: Tensor, columns: int) -> np.ndarray:
    """A grid of bytes [N, 3, H, W] as bytes [H', W', 3]."""
    return as_bytes(image_grid(from_uint8(images), columns))


def as_bytes(image: Tensor) -> np.ndarray:
    """An image [3, H, W] in [-1, 1] as bytes [H, W, 3]."""
    return to_uint8(image).permute(1, 2, 0).cpu().numpy()
