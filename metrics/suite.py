"""Suite: the metrics of one measurement, by name."""

import math
from collections.abc import Sequence

from torch import Tensor

from metrics.backbones.backbone import Backbone
from metrics.feature_metric import FeatureMetric, SampleSetMetric
from metrics.features import ImageSet
from metrics.frechet import ExtrapolatedFrechet, FrechetDistance
from metrics.inception_score import InceptionScore
from metrics.intervals import MIN_SAMPLES
from metrics.kernel import KernelDistance
from metrics.manifold import ManifoldScores
from metrics.nearest_psnr import NearestPSNR
from metrics.perceptual_distance import PerceptualDistance
from metrics.perceptual_diversity import PerceptualDiversity
from metrics.pixel_diversity import PixelDiversity
from metrics.realism import Realism, RealismClassifier
from metrics.results import finite
from metrics.sifid import SingleImageFrechet
from metrics.source_share import SourceShare

METRICS: dict[str, type[SampleSetMetric]] = {
    "fd": FrechetDistance,
    "kd": KernelDistance,
    "kd_crops": KernelDistance,
    "manifold": ManifoldScores,
    "fd_infinity": ExtrapolatedFrechet,
    "inception_score": InceptionScore,
    "pixel_diversity": PixelDiversity,
    "nearest_psnr": NearestPSNR,
    "source_share": SourceShare,
    "sifid": SingleImageFrechet,
    "perceptual": PerceptualDiversity,
    "realism": Realism,
}
FEATURE_METRICS = tuple(name for name, kind in METRICS.items() if issubclass(kind, FeatureMetric))
FULL = tuple(METRICS)
QUICK = ("fd", "kd", "kd_crops", "pixel_diversity", "nearest_psnr", "source_share", "sifid")


def metric_key(name: str, backbone: Backbone | None) -> str:
    """The key of a metric on this backbone, "kd_crops" as kd_mobilenet_v2_crops; of an image metric its name."""
    if name not in FEATURE_METRICS or backbone is None:
        return name
    kind = name.removesuffix("_crops")
    return backbone.key(kind) + name[len(kind) :]


def possible_keys(name: str, backbone: Backbone | None, perceptual: PerceptualDistance | None) -> list[str]:
    """All keys that a metric can give, with * for a number."""
    ends = METRICS[name].value_names
    if name in FEATURE_METRICS:
        return [backbone.key(end) if end else metric_key(name, backbone) for end in ends]
    begins = backbone.map_keys if name == "sifid" else [perceptual.key if name == "perceptual" else ""]
    return [begin + end for begin in begins for end in ends]


def select_metrics(names: Sequence[str], reference: ImageSet, backbone: Backbone | None) -> list[str]:
    """The metrics among `names` that are meaningful for this reference, with any number of samples."""
    if backbone is None or backbone.class_weights is None:
        names = [name for name in names if name != "inception_score"]
    kinds = {name: METRICS[name] for name in names}
    return [name for name, kind in kinds.items() if not kind.missing_samples(kind.min_samples, len(reference.rows(name)))]


class Suite:
    """Some metrics of up to `num_samples` samples of all ranks; `notes` explain which of `names` are left out."""

    def __init__(
        self, names: Sequence[str], reference: ImageSet, backbone: Backbone | None, perceptual: PerceptualDistance | None,
        num_samples: int, sample_crops: int, realism: RealismClassifier | None = None,
    ) -> None:  # fmt: skip
        self.metrics: dict[str, SampleSetMetric] = {}
        self.values: dict[str, dict[str, float | None]] = {}  # by metric and key, of the last `compute`
        self.notes: list[str] = []
        self.backbone = backbone
        networks = {"perceptual": perceptual, "realism": realism}
        networks |= {"sifid": backbone.maps, "inception_score": backbone.class_weights} if backbone else {}
        for name in names:
            kind, key = METRICS[name], perceptual.key if name == "perceptual" else metric_key(name, backbone)
            rows = num_samples * (sample_crops if name == "kd_crops" else 1)
            reason = kind.missing_samples(rows, len(reference.rows(name)))
            if name == "inception_score" and backbone.class_weights is None:
                reason = "needs the classifier of an Inception-v3 (weights)"
            if reason:
                self.notes.append(f"no {key}: {reason}")
                continue
            metric = kind(self._data(name, reference), *([networks[name]] if name in networks else []))
            metric.key = key
            if name == "sifid":
                self.notes += metric.remarks(backbone.map_keys)
            if name != "sifid" or metric.real_maps:  # none on images of a few pixels
                self.metrics[name] = metric.to(metric.reals.device)

    @staticmethod
    def _data(name: str, images: ImageSet) -> Tensor:
        return images.rows(name) if name in FEATURE_METRICS else images.images

    def update(self, samples: ImageSet, first: int) -> None:
        """Adds samples number `first` and following; there may be none."""
        for name, metric in self.metrics.items():
            metric.update(self._data(name, samples), first * (samples.crops.shape[1] if name == "kd_crops" else 1))

    def compute(self) -> dict[str, float | None]:
        """Values by key; those that are not finite are None, with a note."""
        for name, metric in self.metrics.items():
            computed = metric.compute()
            if not isinstance(computed, dict):
                computed = {metric.key: computed}
            elif name in FEATURE_METRICS:
                computed = {self.backbone.key(kind): value for kind, value in computed.items()}
            self.values[name] = finite(computed, self.notes)
        return {key: value for values in self.values.values() for key, value in values.items()}

    def intervals(self, num_samples: int) -> dict[str, list[float]]:
        """95 % intervals [low, high] by key of the values of the last `compute`, for another draw of as many samples."""
        if num_samples < MIN_SAMPLES:
            self.notes.append(f"no intervals: they need {MIN_SAMPLES} samples, got {num_samples}")
            return {}
        intervals: dict[str, list[float]] = {}
        for name, metric in self.metrics.items():
            known = {key: value for key, value in self.values[name].items() if value is not None}
            for key, interval in (metric.intervals(known, num_samples) if known else {}).items():
                if isinstance(interval, str):
                    self.notes.append(f"no interval of {key}: {interval}")
                elif key in known and all(map(math.isfinite, interval)):
                    intervals[key] = interval
        return intervals
