"""Which metrics there are, which of them apply, and what their numbers are called."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from metrics.backbones.backbone import Backbone
from metrics.feature_metric import too_few
from metrics.features import Features
from metrics.frechet import ExtrapolatedFrechet, FrechetDistance
from metrics.inception_score import InceptionScore
from metrics.kernel import KernelDistance
from metrics.manifold import ManifoldScores
from metrics.nearest_psnr import NearestPSNR
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import PerceptualDiversity
from metrics.pixel_diversity import PixelDiversity
from metrics.sifid import SingleImageFrechet
from metrics.source_share import SourceShare

FEATURE_METRICS = {
    "fd": FrechetDistance,
    "kd": KernelDistance,
    "kd_crops": KernelDistance,
    "manifold": ManifoldScores,
    "fd_infinity": ExtrapolatedFrechet,
    "inception_score": InceptionScore,
}
IMAGE_METRICS = {"pixel_diversity": PixelDiversity, "nearest_psnr": NearestPSNR, "source_share": SourceShare}
NAMES = (*FEATURE_METRICS, "sifid", "perceptual", *IMAGE_METRICS)
HEAVY = ("manifold", "fd_infinity", "inception_score", "perceptual")  # not in training unless asked for
OF_SEVERAL, OF_ONE = ("fd", "kd", "source_share"), ("sifid",)  # reference images; the others fit any number


class Images(NamedTuple):
    """Images in order, those of all ranks on every rank: bytes [N, 3, H, W] and their features."""

    images: Tensor
    features: Features


def of_all_ranks(indices: Tensor, images: Tensor, features: Features) -> Images:
    """The images that the ranks have parts of, by ascending index."""
    indices, images, whole, crops = (all_ranks(tensor) for tensor in (indices, images, *features))
    order = indices.argsort()
    return Images(images[order], Features(whole[order], crops[order]))


def all_ranks(tensor: Tensor) -> Tensor:
    """Rows of all ranks, one rank after the other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    return torch.cat(gather_all_tensors(tensor))


def key_of(metric: str, backbone: Backbone | None) -> str:
    """What a metric is called on this backbone, "kd_crops" as kd_mobilenet_v2_crops; others are called as they are."""
    if metric not in FEATURE_METRICS or backbone is None:
        return metric
    kind = metric.removesuffix("_crops")
    return backbone.key(kind) + metric[len(kind) :]


class Suite(NamedTuple):
    """Metrics by name, new for each measurement: on features, and on images."""

    on_features: dict[str, Metric]
    on_images: dict[str, Metric]

    def update(self, images: Tensor, features: Features | None, first: int) -> None:
        """Adds bytes [N, 3, H, W], samples number `first` and following; N may be 0."""
        for name, metric in self.on_features.items():
            crops = features.crops.shape[1] if name == "kd_crops" else 1
            metric.update(features.rows(name), first * crops)
        for name, metric in self.on_images.items():
            metric.update(*((images, first) if name == "perceptual" else (images,)))

    def compute(self, backbone: Backbone | None) -> dict[str, float]:
        values = {}
        for name, metric in (self.on_features | self.on_images).items():
            computed = metric.compute()
            if not isinstance(computed, dict):
                computed = {key_of(name, backbone): computed}
            elif name in FEATURE_METRICS:
                computed = {backbone.key(kind): value for kind, value in computed.items()}
            values |= computed
        return {key: float(value) for key, value in values.items()}


def applicable(names: list[str], number: int, asked_for: bool, light: bool, notes: list[str], backbone: Backbone) -> list[str]:
    """The metrics that apply to `number` reference images; notes tell of others if they were asked for. `light` leaves out
    the heavy ones that were not."""
    apart = OF_ONE if number > 1 else OF_SEVERAL
    if asked_for:
        needed = "one reference image" if number > 1 else "several reference images"
        notes += [f"no {key_of(name, backbone)}: it needs {needed}, there are {number}" for name in names if name in apart]
    elif light:
        apart += HEAVY
    return [name for name in names if name not in apart]


def new_suite(
    chosen: list[str], reference: Images, backbone: Backbone | None, perceptual: PerceptualDistance | None,
    samples: int, sample_crops: int, asked_for: bool, notes: list[str],
) -> Suite:  # fmt: skip
    """Those of the chosen metrics that so many samples and reference images allow; notes tell of the others."""
    on_features: dict[str, Metric] = {}
    for name in [name for name in FEATURE_METRICS if name in chosen]:
        kind, rows = FEATURE_METRICS[name], reference.features.rows(name)
        number = samples * (sample_crops if name == "kd_crops" else 1)
        if name == "inception_score" and not hasattr(backbone, "class_weights"):
            notes += ["no inception_score: it needs the classifier of an Inception-v3 (weights)"] * asked_for
        elif reason := kind.shortage(len(rows), number):
            notes += [f"no {key_of(name, backbone)}: {reason}"] * (asked_for or name not in HEAVY)
        else:
            arguments = (rows, backbone.class_weights) if name == "inception_score" else (rows,)
            on_features[name] = kind(*arguments).to(rows.device)
    on_images: dict[str, Metric] = {}
    for name in [name for name in IMAGE_METRICS if name in chosen]:
        if reason := too_few(samples, IMAGE_METRICS[name].fewest):
            notes.append(f"no {name}: {reason}")
        else:
            on_images[name] = IMAGE_METRICS[name](reference.images)
    if "sifid" in chosen:
        sifid = SingleImageFrechet(reference.images, backbone.maps)
        notes += sifid.remarks(backbone.map_keys)
        on_images |= {"sifid": sifid} if sifid.real_maps else {}  # none on images of a few pixels
    if "perceptual" in chosen:
        if reason := too_few(samples, PerceptualDiversity.fewest):
            notes.append(f"no {perceptual.key}_pairs: {reason}")
        else:
            on_images["perceptual"] = PerceptualDiversity(reference.images, perceptual).to(reference.images.device)
    return Suite(on_features, on_images)
