"""SampleMetrics: draws samples with fixed seeds and measures them against the reference images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from callbacks.image_grid import log_images, to_pixels
from core.errors import UserError, nearest_hint
from core.types import PathStr, PositiveInt, Seed
from metrics.backbones.backbone import Backbone
from metrics.backbones.random_cnn import RandomCNN
from metrics.backbones.registry import load_backbone
from metrics.features import ImageSet, crop_features
from metrics.intervals import mean_interval
from metrics.kernel import kernel_distance
from metrics.memorization import COMPARISONS, memorization, reconstruction_test
from metrics.perceptual_distance import PerceptualDistance, load_perceptual
from metrics.protocol import measurement_protocol
from metrics.realism import RealismClassifier, load_realism
from metrics.reconstruction_gap import autoencoder_test, squared_errors
from metrics.reference_points import reference_points
from metrics.results import finite
from metrics.suite import FEATURE_METRICS, FULL, METRICS, QUICK, Suite, possible_keys, select_metrics
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Autoencodes, Reconstructs
from modules.ops.images import from_uint8, rmse_by_image, to_uint8
from modules.ops.pretrained import PACKAGE

SLOW_SECONDS = 5.0  # estimated time of drawing from which a message announces it
READ_BATCH_SIZE = 64  # reference images
MAX_IMAGES = 1000  # reference images whose pixels are kept: for pixel metrics, crops and the verdict
MAX_CROPS = 2000  # of all reference images together, at least one each
MAX_AUTOENCODED = 100  # images of each set, where that takes little time
MAX_RECONSTRUCTED = 16  # images of either side
LOGGED_VERDICTS = ("copies", "undecided", "duplicate_share")


class SampleMetrics(Callback):
    """Quality, diversity and novelty of `module.sample`, logged as `val/<key>` in training and as `test/<key>` in a test.

    Image i depends on (seed, i) alone: neither on `chunk` nor on the number of ranks. While
    `module.samples_ready` is False only `module.diagnostics` is logged. A test measures intervals, reference points and the
    whole verdict too; in training the verdict compares thumbnails only. Keys: docs/evaluation.md.

    Memory on every rank: pixels and features of all samples; features of all reference images and pixels of up to 1000 of
    them, evenly chosen, which the crops, the pixel metrics and the verdict use.

    Args:
        lowpass: size in pixels that images are averaged down to before the backbone.
        realism: file of a classifier, which configs/tasks/realism.yaml makes, for the metric of that name.
        every_n_epochs: of training; a test always measures.
        chunk: samples drawn at once.
        crops, sample_crops: number for each reference image, fewer where all had more than 2000, and for each sample.
    """

    def __init__(
        self,
        num_images: PositiveInt = 100,
        metrics: list[str] | None = None,
        quick: list[str] | None = None,
        full: list[str] | None = None,
        backbone: str = "auto",
        weights: PathStr | None = None,
        lowpass: int | None = None,
        every_n_epochs: PositiveInt = 1,
        chunk: PositiveInt = 16,
        seed: Seed = 0,
        crops: PositiveInt = 16,
        sample_crops: PositiveInt = 4,
        perceptual_weights: PathStr | None = None,
        sampling_seeds: PositiveInt = 1,
        max_reference: PositiveInt | None = 10_000,
        realism: PathStr | None = None,
    ) -> None:
        self.num_images, self.every_n_epochs, self.chunk, self.seed = num_images, every_n_epochs, chunk, seed
        self.crops, self.sample_crops, self.sampling_seeds = crops, sample_crops, sampling_seeds
        self.max_reference = max_reference
        self.quick, self.full = (metrics if names is None else names for names in (quick, full))
        self.classifier: RealismClassifier | None = load_realism(realism) if realism else None
        if realism is None and "realism" in (*(self.quick or ()), *(self.full or ())):
            raise UserError("SampleMetrics: realism needs the file of a classifier: callbacks.metrics.realism=FILE")
        used = {*(self.quick or QUICK), *(self.full or FULL)}
        for name in sorted(used - METRICS.keys()):
            hint = nearest_hint(name, METRICS)
            raise UserError(f"SampleMetrics: unknown metric {name!r}.{hint} Metrics: {', '.join(METRICS)}")
        self._uses_features, self._uses_crops = bool(used & {*FEATURE_METRICS}), "kd_crops" in used
        needs_backbone = self._uses_features or used & {"sifid", "perceptual"}
        self.backbone: Backbone | None = load_backbone(backbone, weights, lowpass) if needs_backbone else None
        if isinstance(self.backbone, RandomCNN) and backbone == "auto":
            rank_zero_info(
                f"SampleMetrics: neither the package {PACKAGE} nor a `weights` file is available; distances are computed "
                f"on a random network ({self.backbone.key('kd')})"
            )
        needs_perceptual = "perceptual" in used or perceptual_weights
        self.perceptual = load_perceptual(self.backbone, perceptual_weights) if needs_perceptual else None
        self.results: dict[str, Any] = {}  # of the last measurement
        self.nearest: Tensor | None = None  # the picture [3, H, W] of the samples nearest to reference images
        self.drawn: Tensor | None = None  # uint8 [num_images, 3, H, W], the first set of samples, on the CPU
        self._reference: ImageSet | None = None

    def keys_in_training(self, sets: Mapping[str, Any]) -> list[str]:
        """The keys, with * for a number, that a measurement in training may give beside the module's diagnostics."""
        num_reference, keys = len(reference_set(sets)[1]), list(LOGGED_VERDICTS)
        for name in self.quick or QUICK:
            crops, sample_crops = (self.crops, self.sample_crops) if name == "kd_crops" else (1, 1)
            if not METRICS[name].missing_samples(self.num_images * sample_crops, num_reference * crops):
                keys += possible_keys(name, self.backbone, self.perceptual)
        return keys

    # --- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: GenerativeModule, stage: str) -> None:
        self._reference = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module, "val")
            return
        for key in [key for key in trainer.callback_metrics if key.startswith("val/")]:
            del trainer.callback_metrics[key]  # else monitors compare it again, but not after a resume

    def on_test_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._measure(trainer, pl_module, "test")

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if self.nearest is not None and trainer.is_global_zero:
            log_images(trainer, {"grids/nearest": to_pixels(self.nearest)}, caption=[self.results["verdict"]["line"]])

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, trainer: Trainer, module: GenerativeModule, phase: str) -> None:
        """Every rank computes everything, with equal results; only drawing and features of samples are divided among ranks."""
        sets, notes, evaluated = trainer.datamodule.sets(), [], phase == "test"
        requested, default = (self.full, FULL) if evaluated else (self.quick, QUICK)
        results: dict[str, Any] = {key: {} for key in ("metrics", "reference_points", "intervals", "verdict")}
        self.nearest = self.drawn = None
        reference, images = reference_set(sets)
        with sampling_mode(module, self.seed):
            for network in filter(None, (self.backbone, self.perceptual, self.classifier)):
                network.to(module.device)
            self._reference = self._reference or self._read_reference(trainer, module, images)
            results["diagnostics"] = finite(module.diagnostics(sets), notes)
            if module.samples_ready:
                available = [name for name in default if name != "realism" or self.classifier]
                names = select_metrics(available, self._reference, self.backbone) if requested is None else requested
                suite, samples = self._draw_set(trainer, module, names, self.seed)
                results["metrics"] = suite.compute()
                verdict: dict[str, Any] = {"comparisons": COMPARISONS[:1]}
                if unlike := trainer.datamodule.unlike_training.get(reference):
                    notes.append(f"the reference is not what was trained on: {unlike}")
                    verdict["reference_name"] = "reference images"
                if evaluated:
                    results |= self._evaluate(trainer, module, suite, results["metrics"], sets)
                    results["metrics"] |= self._by_class(module, images)
                    verdict |= {"comparisons": COMPARISONS, "reconstruction": compare_reconstructions(module, sets)}
                results["verdict"], self.nearest = memorization(samples, self._reference, self.backbone, **verdict)
                self.drawn = samples.images.cpu()
                notes += suite.notes
            else:
                notes.append(module.no_samples or "no samples: the part of the model that draws them is not trained yet")
            if evaluated and isinstance(module, Autoencodes) and len(sets.get("image_heldout", ())):
                results["autoencoder"] = measure_autoencoder(module, sets, self.perceptual)
        logged = {key: value for key, value in (results["metrics"] | results["diagnostics"]).items() if value is not None}
        logged |= {key: float(results["verdict"][key]) for key in LOGGED_VERDICTS if results["verdict"]}
        self.log_dict({f"{phase}/{key}": value for key, value in logged.items()}, sync_dist=True)
        self.results = results | {"protocol": self._protocol(module, images, notes)}

    def _evaluate(
        self, trainer: Trainer, module: GenerativeModule, suite: Suite, metrics: dict[str, Any], sets: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Metrics and intervals, over `sampling_seeds` sets of samples if there are several, and reference points."""
        if self.sampling_seeds == 1:
            intervals = suite.intervals(self.num_images)
        else:
            seeds = range(self.seed + 1, self.seed + self.sampling_seeds)
            rows = [metrics, *(self._draw_set(trainer, module, list(suite.metrics), seed)[0].compute() for seed in seeds)]
            columns = {key: [row.get(key) for row in rows] for key in metrics}
            columns = {key: torch.tensor(values) for key, values in columns.items() if None not in values}
            metrics = {key: float(columns[key].mean()) if key in columns else None for key in metrics}
            intervals = {key: mean_interval(values) for key, values in columns.items()}
        points = {}
        if self.backbone is not None:
            torch.manual_seed(self.seed)
            images = {name: to_uint8(images) for name, images in module.baselines(self.num_images).items()}
            if "side" in sets:
                images = {"side": evenly_spaced(sets["side"], self.num_images).to(module.device)} | images
            points = reference_points(suite, self._reference, images, self.num_images, self._sample_set)
        points = {name: finite(values, suite.notes) for name, values in points.items()}
        return {"metrics": metrics, "intervals": intervals, "reference_points": points}

    def _by_class(self, module: GenerativeModule, images: Any) -> dict[str, float]:
        """The kernel distance of each class, of a method that draws classes: `num_images` are divided among the classes."""
        labels = getattr(images, "labels", None)
        drawn_by_label = any(condition.by_label for condition in module.conditions())
        if labels is None or not drawn_by_label or not self._uses_features or len(images) != len(self._reference.whole):
            return {}
        num_samples, values = max(2, self.num_images // (int(labels.max()) + 1)), {}
        for label in labels.unique().tolist():
            chunks = draw_samples(module, num_samples, self.chunk, self.seed, labels=[label])
            features = [self.backbone(samples) for _, samples in chunks]
            reals = self._reference.whole[(labels == label).to(module.device)]
            if len(reals) > 1:
                values[f"{self.backbone.key('kd')}_class_{label}"] = float(kernel_distance(reals, torch.cat(features)))
        return values

    def _read_reference(self, trainer: Trainer, module: GenerativeModule, images: Any) -> ImageSet:
        """The reference of all ranks; each reads its own part in pieces, and keeps features of all and pixels of some."""
        chosen = torch.arange(len(images))
        if self.max_reference is not None and len(chosen) > self.max_reference:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
            chosen = order[: self.max_reference].sort().values
        kept = set(torch.linspace(0, len(chosen) - 1, min(MAX_IMAGES, len(chosen))).long().tolist())
        own_indices = torch.arange(trainer.global_rank, len(chosen), trainer.world_size)
        size, expected, parts = list(images[0].shape[-2:]), list(module.image_size), []
        if size != expected:
            raise UserError(f"reference images are {size}, samples {expected}: set datamodule.image_size={expected}")
        for numbers in own_indices.split(READ_BATCH_SIZE):  # one empty part on a rank without images
            pixels = torch.zeros(len(numbers), 3, *size, dtype=torch.uint8, device=module.device)
            for row, index in zip(pixels, chosen[numbers].tolist(), strict=True):
                row.copy_(to_uint8(images[index]))
            picks = torch.tensor([i for i, index in enumerate(numbers.tolist()) if index in kept], dtype=torch.long)
            crops = max(1, min(self.crops, MAX_CROPS // len(kept)))
            parts.append(self._image_set(pixels, picks, chosen[numbers[picks]].tolist(), crops, 2 * self.seed))
        return ImageSet.concatenate(parts).gather(own_indices.to(module.device))

    def _draw_set(self, trainer: Trainer, module: GenerativeModule, names: list[str], seed: int) -> tuple[Suite, ImageSet]:
        """The metrics, updated by this rank's part of the samples with that seed, and the samples of all ranks."""
        networks = (self.backbone, self.perceptual)
        suite = Suite(names, self._reference, *networks, self.num_images, self.sample_crops, self.classifier)
        empty = self._sample_set(self._reference.images[:0])  # a rank that draws nothing takes part in the gathering (P 9.6)
        suite.update(empty, 0)
        parts, numbers, begin = [empty], [torch.arange(0, device=module.device)], time.monotonic()
        for first, samples in draw_samples(module, self.num_images, self.chunk, seed, trainer.global_rank, trainer.world_size):
            parts.append(self._sample_set(samples, first=first, seed=seed))
            numbers.append(torch.arange(first, first + len(samples), device=samples.device))
            suite.update(parts[-1], first)
            seconds = (time.monotonic() - begin) * self.num_images / (len(samples) * trainer.world_size)
            if first == 0 and seconds > SLOW_SECONDS:
                rank_zero_info(f"SampleMetrics: drawing and measuring {self.num_images} samples takes about {seconds:.0f} s")
        return suite, ImageSet.concatenate(parts).gather(torch.cat(numbers))

    def _sample_set(self, images: Tensor, whole: Tensor | None = None, first: int = 0, seed: int | None = None) -> ImageSet:
        """Samples number `first` and following, or images in their place; `whole` are their features if known."""
        seed = 2 * (self.seed if seed is None else seed) + 1  # other positions of crops than in the reference
        numbers = range(first, first + len(images))
        return self._image_set(images, torch.arange(len(images)), numbers, self.sample_crops, seed, whole)

    def _image_set(
        self, images: Tensor, picks: Tensor, numbers: Sequence[int], count: int, seed: int, whole: Tensor | None = None
    ) -> ImageSet:
        """Features of uint8 [N, 3, H, W]; pixels and `count` crops of those at `picks`, numbered by `numbers`."""
        picks = picks.to(images.device)
        subset, empty = images[picks], images.new_zeros(len(images), 0, dtype=torch.float32)
        if whole is None:
            whole = self.backbone(images) if self._uses_features else empty
        crops = crop_features(self.backbone, subset, numbers, count, seed) if self._uses_crops else empty[picks, :, None]
        return ImageSet(whole, subset, crops, picks)

    def _protocol(self, module: GenerativeModule, images: Any, notes: list[str]) -> dict[str, Any]:
        num_real, with_pixels = len(self._reference.whole), len(self._reference.images)
        if with_pixels < num_real:
            notes.append(f"crops, pixel metrics and the verdict use {with_pixels} of {num_real} reference images")
        settings = {
            "num_real": num_real,
            "num_generated": self.num_images,
            "reference": images.fingerprint,
            "reference_names": images.names if len(images) <= MAX_IMAGES else None,
            "seed": self.seed,
            "sampling_seeds": self.sampling_seeds,
            "max_reference": self.max_reference if num_real < len(images) else None,
            **({} if self.classifier is None else {"realism": self.classifier.sha256}),
        }
        crops = {"reference": self._reference.crops.shape[1] or self.crops, "samples": self.sample_crops}
        return measurement_protocol(self.backbone, self.perceptual, module.image_size, crops, settings, notes)


def draw_samples(
    module: GenerativeModule, num_images: int, chunk: int, seed: int, rank: int = 0, ranks: int = 1, **keywords: Any
) -> Iterator[tuple[int, Tensor]]:
    """The chunks of a rank, each with the number of its first sample, uint8 [n, 3, H, W]."""
    for first in range(rank * chunk, num_images, ranks * chunk):
        images = range(first, min(first + chunk, num_images))
        with sampling_mode(module, seed, images):
            samples = to_uint8(module.sample(len(images), **keywords))
        yield first, samples


def measure_autoencoder(module: Autoencodes, sets: Mapping[str, Any], perceptual: PerceptualDistance | None) -> dict[str, Any]:
    """Errors of the autoencoder on images of its training (the set `source`, else `image`), held-out ones and `image`, sets of
    equal size; see `autoencoder_test`."""
    named = {"training": sets.get("source", sets["image"]), "heldout": sets["image_heldout"], "sources": sets["image"]}
    num_images, errors = min(MAX_AUTOENCODED, *map(len, named.values())), {}
    for name, images in named.items():
        pixels = evenly_spaced(images, num_images).to(module.device)
        outputs = module.autoencode(from_uint8(pixels))
        errors.setdefault("mse", {})[name] = squared_errors(from_uint8(pixels), outputs)
        if perceptual is not None:
            pairs = zip(pixels.split(READ_BATCH_SIZE), to_uint8(outputs).split(READ_BATCH_SIZE), strict=True)
            distances = [(perceptual(a) - perceptual(b)).square().sum(1) for a, b in pairs]
            errors.setdefault(perceptual.key, {})[name] = torch.cat(distances)
    return autoencoder_test(errors)


def compare_reconstructions(module: GenerativeModule, sets: Mapping[str, Any]) -> dict[str, Any] | None:
    """`reconstruction_test` of the first set `<name>` with a `<name>_heldout`, called `of`; None without these or where
    `reconstruct` ignores its input."""
    names = [name for name in sets if len(sets[name]) and len(sets.get(f"{name}_heldout", ()))]
    if not names or not isinstance(module, Reconstructs):
        return None
    pixels = [evenly_spaced(sets[name], MAX_RECONSTRUCTED) for name in (names[0], f"{names[0]}_heldout")]
    inputs = [from_uint8(images).to(module.device) for images in pixels]
    outputs = [torch.cat([module.reconstruct(image) for image in images.split(1)]) for images in inputs]
    if torch.equal(outputs[0][0], outputs[1][0]) or any(a.shape != b.shape for a, b in zip(inputs, outputs, strict=True)):
        return None
    errors = [rmse_by_image(output, images) for output, images in zip(outputs, inputs, strict=True)]
    return reconstruction_test(*errors) | {"of": names[0]}


def reference_set(sets: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and images, none mirrored, of the set that samples are measured against: of a tiling its parts."""
    return next((key, sets[key].originals()) for key in ("tile", "image") if key in sets)


def evenly_spaced(images: Any, num_images: int) -> Tensor:
    """At most `num_images` evenly spaced images of a set as uint8 [N, 3, H, W]."""
    originals = images.originals()
    picks = torch.linspace(0, len(originals) - 1, min(num_images, len(originals))).long().tolist()
    return to_uint8(torch.stack([originals[i] for i in picks]))
