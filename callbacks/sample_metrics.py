"""SampleMetrics: draws samples with fixed seeds and measures them against the reference images."""

import time
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.metrics.backbones import PACKAGE, Backbone, RandomCNN, load_backbone
from callbacks.metrics.card import finite, versions
from callbacks.metrics.diversity import PixelDiversity
from callbacks.metrics.features import FEWEST, Features, crop_size, distances, extract_features
from callbacks.metrics.frechet import FrechetDistance
from callbacks.metrics.kernel import FULL_SAMPLE, SUBSETS, KernelDistance
from callbacks.metrics.memorization import NearestPSNR
from callbacks.metrics.sifid import SingleImageFrechet
from callbacks.metrics.sources import SourceShare
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import to_uint8

FEATURE_METRICS = {"fd": FrechetDistance, "kd": KernelDistance, "kd_crops": KernelDistance}
IMAGE_METRICS = {"pixel_diversity": PixelDiversity, "nearest_psnr": NearestPSNR, "source_share": SourceShare}
NAMES = (*FEATURE_METRICS, "sifid", *IMAGE_METRICS)
OF_SEVERAL, OF_ONE = ("fd", "kd", "source_share"), ("sifid",)  # reference images; the others fit any number
PATIENCE = 5.0  # seconds that drawing may take without a word


class Reference(NamedTuple):
    """The reference images in order, complete on every rank: bytes [N, 3, H, W] and their features."""

    images: Tensor
    features: Features


class SampleMetrics(Callback):
    """Quality, diversity and novelty of `module.sample`, logged as `val/<key>` in training and as `test/<key>` in a
    test.

    Samples come in chunks, chunk c after `manual_seed(seed + c)`, shared out over the ranks, so that the set does not
    depend on their number. Reference are the images of the validation or test loader. While `module.samples_ready` is
    False only `module.diagnostics` is logged. Afterwards `results` holds "metrics", "anchors", "diagnostics" and
    "protocol". A test measures anchors too, sets of known worth beside which a few-shot number has to be read: one half
    of the reference against the other, copies of it, the side images, and `module.baselines`.

    Args:
        num_images: samples; values are comparable at equal numbers only.
        metrics: some of fd, kd, source_share (with several reference images), sifid (with one), kd_crops (kernel distance
            between crops of half the size), pixel_diversity, nearest_psnr; null is all that apply to the reference, and
            one asked for that does not apply becomes a note in the protocol. The keys of fd, kd and kd_crops carry the
            backbone, as kd_mobilenet_v2, and are fid, kid and kid_crops for the Inception-v3 of published numbers alone.
            Those of sifid are sifid_pool1 (64 features, the published code) and sifid_pool2 (192, the paper) for
            torchvision's Inception-v3 alone, the backbone `inception_v3`, and else as sifd_mobilenet_v2.
        backbone, weights, lowpass: see `load_backbone`.
        every_n_epochs: of training; a test always measures.
        chunk: samples drawn at once.
        crops, sample_crops: number for each reference image, and for each sample.
    """

    def __init__(
        self,
        num_images: int = 100,
        metrics: list[str] | None = None,
        backbone: str = "auto",
        weights: str | None = None,
        lowpass: int | None = None,
        every_n_epochs: int = 1,
        chunk: int = 16,
        seed: int = 0,
        crops: int = 16,
        sample_crops: int = 4,
    ) -> None:
        self.num_images, self.every_n_epochs, self.chunk, self.seed = num_images, every_n_epochs, chunk, seed
        self.crops, self.sample_crops = crops, sample_crops
        for key in ("num_images", "every_n_epochs", "chunk", "crops", "sample_crops"):
            if getattr(self, key) < 1:
                raise ValueError(f"SampleMetrics: {key} is {getattr(self, key)}; it has to be at least 1")
        self.metrics, self.asked_for = list(NAMES if metrics is None else metrics), metrics is not None
        for name in self.metrics:
            if name not in NAMES:
                near = get_close_matches(name, NAMES, 1, 0)[0]
                raise ValueError(f"SampleMetrics: no metric {name!r}; choose from {', '.join(NAMES)} (nearest: {near})")
        self.backbone_choice = {"name": backbone, "weights": weights, "lowpass": lowpass}
        self._needs_backbone = bool(set(self.metrics) & {*FEATURE_METRICS, "sifid"})
        chosen = self._needs_backbone and (backbone, weights) != ("auto", None)
        self.backbone: Backbone | None = load_backbone(**self.backbone_choice) if chosen else None  # now: it may be a mistake
        self.results: dict[str, Any] = {}
        self._reference: Reference | None = None
        self._batches: list[Mapping[str, Tensor]] = []

    # --- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: GenerativeModule, stage: str) -> None:
        self._reference = None
        if self.backbone is None and self._needs_backbone:
            self.backbone = load_backbone(**self.backbone_choice)
            if isinstance(self.backbone, RandomCNN) and self.backbone_choice["name"] == "auto":
                rank_zero_info(
                    f"SampleMetrics: neither the package {PACKAGE} nor a `weights` file is there; distances are taken "
                    f"on a random network ({self.backbone.key('kd')})"
                )

    def on_validation_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._batches = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: GenerativeModule, outputs: Any, batch: Mapping[str, Tensor], *_: Any
    ) -> None:
        if self._reference is None:
            self._batches.append({"index": batch["index"], "image": to_uint8(batch["image"])})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        due = trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._measure(trainer, pl_module, "val")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._measure(trainer, pl_module, "test")

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, trainer: Trainer, module: GenerativeModule, phase: str) -> None:
        """Every rank computes everything, with equal results; only drawing and features of samples are shared out."""
        sets = trainer.datamodule.sets() if trainer.datamodule is not None else {}
        metrics, anchors, notes = {}, {}, []
        with sampling_mode(module, self.seed):
            if self.backbone is not None:
                self.backbone.to(module.device)
            self._reference = reference = self._reference or self._gather(module)
            chosen = self._choose(reference, notes)
            diagnostics = finite(module.diagnostics(sets), notes)
            if module.samples_ready:
                metrics = finite(self._sample_values(trainer, module, reference, chosen, notes), notes)
                if phase == "test" and self.backbone is not None:
                    rows = self._anchor_rows(module, reference, sets, chosen, notes)
                    anchors = {name: finite(values, notes) for name, values in rows.items()}
            else:
                notes.append("no samples: the part of the model that draws them is not trained yet")
        logged = {f"{phase}/{key}": value for key, value in (metrics | diagnostics).items() if value is not None}
        self.log_dict(logged, sync_dist=True)
        protocol = self._protocol(reference, sets, notes)
        self.results = {"metrics": metrics, "anchors": anchors, "diagnostics": diagnostics, "protocol": protocol}

    def _gather(self, module: GenerativeModule) -> Reference:
        """The reference of all ranks; each computes the features of its own part."""
        indices = torch.cat([batch["index"] for batch in self._batches])
        images = torch.cat([batch["image"] for batch in self._batches])
        self._batches = []
        size, expected = list(images.shape[-2:]), list(module.image_size)
        if size != expected:
            raise ValueError(
                f"the reference images are {size}, the samples {expected}: set datamodule.image_size={expected}"
            )
        features = self._features(images, indices.tolist(), self.crops, 2 * self.seed)
        indices, images, whole, crops = (_all_ranks(tensor) for tensor in (indices, images, *features))
        order = indices.argsort()
        return Reference(images[order], Features(whole[order], crops[order]))

    def _choose(self, reference: Reference, notes: list[str]) -> list[str]:
        """The metrics that apply to as many reference images; notes tell of others only if they were asked for."""
        number = len(reference.images)
        apart = OF_ONE if number > 1 else OF_SEVERAL
        if self.asked_for:
            needed = "one reference image" if number > 1 else "several reference images"
            notes += [f"no {self.key(name)}: it needs {needed}, there are {number}" for name in self.metrics if name in apart]
        return [name for name in self.metrics if name not in apart]

    def _features(self, images: Tensor, indices: Iterable[int], crops: int, seed: int) -> Features:
        if not set(self.metrics) & set(FEATURE_METRICS):
            nothing = images.new_zeros(len(images), 0, dtype=torch.float32)
            return Features(nothing, nothing[:, :, None])
        return extract_features(self.backbone, images, indices, crops if "kd_crops" in self.metrics else 0, seed)

    def _sample_features(self, images: Tensor, first: int = 0) -> Features:
        """Of samples number `first` and following; their crops lie elsewhere than those of the reference."""
        indices = range(first, first + len(images))
        return self._features(images, indices, self.sample_crops, 2 * self.seed + 1)

    def _sample_values(
        self, trainer: Trainer, module: GenerativeModule, reference: Reference, chosen: list[str], notes: list[str]
    ) -> dict[str, float]:
        on_features, on_images = self._new_metrics(reference, chosen, notes)
        metrics = on_features | on_images
        empty = reference.images[:0]  # a rank that draws nothing takes part in the gathering all the same (P 9.6)
        for first, images in chain([(0, empty)], self._draw(trainer, module)):
            if on_features:
                features = self._sample_features(images, first)
            for name, metric in on_features.items():
                metric.update(features.rows(name))
            for metric in on_images.values():
                metric.update(images)
        values = {}
        for name, metric in metrics.items():
            computed = metric.compute()
            values |= computed if isinstance(computed, dict) else {self.key(name): computed}
        return values

    def _new_metrics(
        self, reference: Reference, chosen: list[str], notes: list[str]
    ) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """Those that are chosen and possible, on features and on images."""
        on_features = {}
        for name in [name for name in FEATURE_METRICS if name in chosen]:
            rows = reference.features.rows(name)
            samples = self.num_images * (self.sample_crops if name == "kd_crops" else 1)
            if min(len(rows), samples) < FEWEST:
                notes.append(f"no {self.key(name)}: it needs {FEWEST} rows a side, there are {len(rows)} and {samples}")
            else:
                on_features[name] = FEATURE_METRICS[name](rows).to(rows.device)
        on_images = {name: kind(reference.images) for name, kind in IMAGE_METRICS.items() if name in chosen}
        if "sifid" in chosen:
            sifid = SingleImageFrechet(reference.images, self.backbone.maps)
            notes += sifid.remarks(self.backbone.map_keys)
            on_images |= {"sifid": sifid} if sifid.real_maps else {}  # none on images of a few pixels
        return on_features, on_images

    def _draw(self, trainer: Trainer, module: GenerativeModule) -> Iterator[tuple[int, Tensor]]:
        """Number of the first sample, and bytes, of each of this rank's chunks."""
        starts = range(0, self.num_images, self.chunk)
        begin = time.monotonic()
        for chunk in range(trainer.global_rank, len(starts), trainer.world_size):
            torch.manual_seed(self.seed + chunk)
            yield starts[chunk], to_uint8(module.sample(min(self.chunk, self.num_images - starts[chunk])))
            seconds = (time.monotonic() - begin) * len(starts) / trainer.world_size
            if chunk == 0 and seconds > PATIENCE:
                rank_zero_info(
                    f"SampleMetrics: drawing and measuring {self.num_images} samples takes about {seconds:.0f} s"
                )

    # --- anchors and protocol ----------------------------------------------------------------------------------------

    def _anchor_rows(
        self, module: GenerativeModule, reference: Reference, sets: Mapping[str, Any], chosen: list[str], notes: list[str]
    ) -> dict[str, dict[str, float]]:
        """Distances of each anchor to the reference."""
        rows = {}
        if len(reference.images) > 1:
            halves = [reference.features.take(slice(start, None, 2)) for start in (0, 1)]
            notes.append(f"split_half compares {len(halves[0].whole)} with {len(halves[1].whole)} reference images")
            rows["split_half"] = distances(*halves, chosen)
        copied = torch.arange(self.num_images, device=reference.images.device) % len(reference.images)
        others = {"copies": reference.images[copied]}
        if "side" in sets:
            side = sets["side"].originals()
            picks = torch.linspace(0, len(side) - 1, min(self.num_images, len(side))).long().tolist()
            others["side"] = to_uint8(torch.stack([side[i] for i in picks])).to(reference.images.device)
        torch.manual_seed(self.seed)
        others |= {name: to_uint8(images) for name, images in module.baselines(self.num_images).items()}
        for name, images in others.items():
            rows[name] = distances(reference.features, self._sample_features(images), chosen)
        rows = {name: {self.key(metric): value for metric, value in values.items()} for name, values in rows.items()}
        if "sifid" in chosen:
            sifid = SingleImageFrechet(reference.images, self.backbone.maps)
            others |= {"copies": reference.images, "mirrored": reference.images.flip(-1)}
            for name, images in others.items() if sifid.real_maps else ():
                rows[name] = rows.get(name, {}) | sifid.mean(images)
        return rows

    def key(self, metric: str) -> str:
        """What "fd", "kd" or "kd_crops" is called on this backbone; other metrics are called as they are."""
        if metric not in FEATURE_METRICS:
            return metric
        kind, _, crops = metric.partition("_")
        return self.backbone.key(kind) + ("_crops" if crops else "")

    def _protocol(self, reference: Reference, sets: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
        size = reference.images.shape[-2:]
        caution = self.backbone and self.backbone.caution()
        return {
            **(self.backbone.card() if self.backbone else {"backbone": None, "resize": None}),
            "image_size": list(size),
            "num_real": len(reference.images),
            "num_generated": self.num_images,
            "reference": sets["image"].fingerprint if "image" in sets else None,
            "reference_names": sets["image"].originals().names if "image" in sets else None,
            "seed": self.seed,
            "chunk": self.chunk,
            "crops": {"reference": self.crops, "samples": self.sample_crops, "size": list(crop_size(*size))},
            "kernel_distance": f"all pairs up to {FULL_SAMPLE} rows on a side, else {SUBSETS} subsets of {FULL_SAMPLE}",
            "versions": versions(),
            "notes": notes + [caution] * bool(caution),
        }


def _all_ranks(tensor: Tensor) -> Tensor:
    """Rows of all ranks, one rank after the other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    return torch.cat(gather_all_tensors(tensor))
