"""SampleMetrics: draws samples with fixed seeds and measures them against the reference images."""

import time
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from core.errors import UserError
from core.types import PathStr, PositiveInt, Seed
from metrics.backbones.backbone import Backbone
from metrics.backbones.mobilenet import PACKAGE
from metrics.backbones.random_cnn import RandomCNN
from metrics.backbones.registry import load_backbone
from metrics.features import Features, extract_features
from metrics.intervals import mean_interval
from metrics.intervals_of_samples import memorisation, reconstruction_of, sample_intervals
from metrics.perceptual_distance import PerceptualDistance, load_perceptual
from metrics.reference_points import anchor_rows
from metrics.results import finite, protocol_of
from metrics.suite import FEATURE_METRICS, NAMES, Images, Suite, applicable, key_of, new_suite, of_all_ranks
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import to_uint8

PATIENCE = 5.0  # seconds that drawing may take without a word


class SampleMetrics(Callback):
    """Quality, diversity and novelty of `module.sample`, logged as `val/<key>` in training and as `test/<key>` in a
    test.

    Samples come in chunks, chunk c after `manual_seed(seed + c)`, shared out over the ranks, so that the set does not
    depend on their number. Reference are the images of the validation or test loader. While `module.samples_ready` is
    False only `module.diagnostics` is logged. Afterwards `results` holds "metrics", "anchors", "diagnostics", "intervals",
    "verdict" and "protocol", `nearest` the picture [3, H, W] of the samples nearest to training images, and `drawn` the bytes
    [num_images, 3, H, W] of the first set of samples, on the CPU; both are None without samples. A test measures
    anchors too, sets of known worth beside which a few-shot number has to be read: one half of the reference against the
    other, copies of it, the side images, and `module.baselines`. In training the verdict looks at small pictures only, there
    are no intervals, and the picture of the last measurement goes to the loggers, with the verdict below it.

    Every rank holds the bytes and features of all samples, and for `perceptual` at most 2 GB of rows on either side.

    Args:
        num_images: samples; values are comparable at equal numbers only.
        metrics: some of fd, kd, source_share (with several reference images), sifid (with one), kd_crops (kernel distance
            between crops of half the size), pixel_diversity, nearest_psnr, and for tests perceptual (distances of pairs, over
            all and around each training image), manifold (precision, recall, density, coverage; 50 images a side),
            fd_infinity (2000 reference images, 1000 samples) and inception_score (5000 samples, an Inception-v3); null is all
            that apply to the reference, and one asked for that does not apply becomes a note in the protocol. The keys of fd,
            kd and kd_crops carry the backbone, as kd_mobilenet_v2, and are fid, kid and kid_crops for the Inception-v3 of
            published numbers alone. Those of sifid are sifid_pool1 (64 features, the published code) and sifid_pool2 (192,
            the paper) for torchvision's Inception-v3 alone, the backbone `inception_v3`, and else as sifd_mobilenet_v2.
        backbone, weights, lowpass: see `load_backbone`.
        perceptual_weights: torchvision's file of AlexNet or VGG-16 for LPIPS; null: a distance on the backbone, pd_<backbone>.
        every_n_epochs: of training; a test always measures.
        chunk: samples drawn at once.
        crops, sample_crops: number for each reference image, and for each sample.
        sampling_seeds: in a test so many sets of samples are drawn; values are means over them, intervals come from them.
    """

    def __init__(
        self,
        num_images: PositiveInt = 100,
        metrics: list[str] | None = None,
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
    ) -> None:
        self.num_images, self.every_n_epochs, self.chunk, self.seed = num_images, every_n_epochs, chunk, seed
        self.crops, self.sample_crops, self.sampling_seeds = crops, sample_crops, sampling_seeds
        for key in ("num_images", "every_n_epochs", "chunk", "crops", "sample_crops", "sampling_seeds"):
            if getattr(self, key) < 1:
                raise UserError(f"SampleMetrics: {key} is {getattr(self, key)}; it has to be at least 1")
        self.metrics, self.asked_for = list(NAMES if metrics is None else metrics), metrics is not None
        for name in self.metrics:
            if name not in NAMES:
                near = get_close_matches(name, NAMES, 1, 0)[0]
                raise UserError(f"SampleMetrics: no metric {name!r}; choose from {', '.join(NAMES)} (nearest: {near})")
        self.backbone_choice = {"name": backbone, "weights": weights, "lowpass": lowpass}
        self._needs_backbone = bool(set(self.metrics) & {*FEATURE_METRICS, "sifid", "perceptual"})
        chosen = self._needs_backbone and (backbone, weights) != ("auto", None)
        self.backbone: Backbone | None = load_backbone(**self.backbone_choice) if chosen else None  # now: it may be a mistake
        self.perceptual_weights = perceptual_weights
        self.perceptual: PerceptualDistance | None = load_perceptual(None, perceptual_weights) if perceptual_weights else None
        self.results: dict[str, Any] = {}
        self.nearest: Tensor | None = None
        self.drawn: Tensor | None = None
        self._reference: Images | None = None
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
        if self.perceptual is None and "perceptual" in self.metrics:
            self.perceptual = load_perceptual(self.backbone, None)

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

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if self.nearest is None or not trainer.is_global_zero:
            return
        pixels, line = to_uint8(self.nearest).permute(1, 2, 0).cpu().numpy(), self.results["verdict"]["line"]
        for logger in [logger for logger in trainer.loggers if hasattr(logger, "log_image")]:
            logger.log_image("grids/nearest", [pixels], step=trainer.fit_loop.total_batch_idx, caption=[line])

    # --- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, trainer: Trainer, module: GenerativeModule, phase: str) -> None:
        """Every rank computes everything, with equal results; only drawing and features of samples are shared out."""
        sets = trainer.datamodule.sets() if trainer.datamodule is not None else {}
        metrics, anchors, intervals, verdict, notes = {}, {}, {}, {}, []
        self.nearest = self.drawn = None
        thorough = phase == "test"
        with sampling_mode(module, self.seed):
            for network in (self.backbone, self.perceptual):
                if network is not None:
                    network.to(module.device)
            self._reference = reference = self._reference or self._gather(module)
            chosen = applicable(self.metrics, len(reference.images), self.asked_for, not thorough, notes, self.backbone)
            diagnostics = finite(module.diagnostics(sets), notes)
            if module.samples_ready:
                suite, drawn, values = self._sample_values(trainer, module, reference, chosen, notes, 0)
                metrics = finite(values, notes)
                if thorough:
                    if self.sampling_seeds > 1:
                        metrics, intervals = self._over_seeds(trainer, module, reference, chosen, metrics)
                    else:
                        intervals = sample_intervals(suite, drawn, reference, metrics, self.backbone, notes)
                    if self.backbone is not None:
                        rows = anchor_rows(module, reference, sets, chosen, self, notes)
                        anchors = {name: finite(row, notes) for name, row in rows.items()}
                errors = reconstruction_of(module, sets) if thorough else None
                verdict, self.nearest = memorisation(drawn, reference, self.backbone, thorough, errors)
                self.drawn = drawn.images.cpu()
                if others := sorted({"image", "tile"} & getattr(trainer.datamodule, "unlike_training", {}).keys()):
                    notes.append(f"the reference is not what was trained on: {trainer.datamodule.unlike_training[others[-1]]}")
                    verdict |= {"line": verdict["line"].replace("training image", "reference image")} if verdict else {}
            else:
                notes.append("no samples: the part of the model that draws them is not trained yet")
        logged = {f"{phase}/{key}": value for key, value in (metrics | diagnostics).items() if value is not None}
        logged |= {f"{phase}/{key}": float(verdict[key]) for key in ("copies", "undecided", "duplicate_share") if verdict}
        self.log_dict(logged, sync_dist=True)
        self.results = {
            "metrics": metrics,
            "anchors": anchors,
            "diagnostics": diagnostics,
            "intervals": intervals,
            "verdict": verdict,
            "protocol": protocol_of(self, reference, sets, notes),
        }

    def _gather(self, module: GenerativeModule) -> Images:
        """The reference of all ranks; each computes the features of its own part."""
        indices = torch.cat([batch["index"] for batch in self._batches])
        images = torch.cat([batch["image"] for batch in self._batches])
        self._batches = []
        size, expected = list(images.shape[-2:]), list(module.image_size)
        if size != expected:
            raise UserError(
                f"the reference images are {size}, the samples {expected}: set datamodule.image_size={expected}"
            )
        return of_all_ranks(indices, images, self._features(images, indices.tolist(), self.crops, 2 * self.seed))

    def _features(
        self, images: Tensor, indices: Iterable[int], crops: int, seed: int, whole: Tensor | None = None
    ) -> Features:
        if not set(self.metrics) & set(FEATURE_METRICS):
            nothing = images.new_zeros(len(images), 0, dtype=torch.float32)
            return Features(nothing, nothing[:, :, None])
        crops = crops if "kd_crops" in self.metrics else 0
        return extract_features(self.backbone, images, indices, crops, seed, whole)

    def sample_features(self, images: Tensor, first: int = 0, whole: Tensor | None = None) -> Features:
        """Of samples number `first` and following; their crops lie elsewhere than those of the reference."""
        indices = range(first, first + len(images))
        return self._features(images, indices, self.sample_crops, 2 * self.seed + 1, whole)

    def _sample_values(
        self, trainer: Trainer, module: GenerativeModule, reference: Images, chosen: list[str], notes: list[str], number: int
    ) -> tuple[Suite, Images, dict[str, float]]:
        """The metrics, the samples of all ranks, and the values, of set `number`."""
        suite = new_suite(
            chosen, reference, self.backbone, self.perceptual, self.num_images, self.sample_crops, self.asked_for, notes
        )
        empty = reference.images[:0]  # a rank that draws nothing takes part in the gathering all the same (P 9.6)
        kept: list[tuple[Tensor, Tensor, Features]] = []
        for first, images in chain([(0, empty)], self._draw(trainer, module, number)):
            features = self.sample_features(images, number * self.num_images + first)
            suite.update(images, features, first)
            kept.append((torch.arange(first, first + len(images), device=images.device), images, features))
        indices, images, features = zip(*kept, strict=True)
        drawn = of_all_ranks(torch.cat(indices), torch.cat(images), Features(*map(torch.cat, zip(*features, strict=True))))
        return suite, drawn, suite.compute(self.backbone)

    def _over_seeds(
        self, trainer: Trainer, module: GenerativeModule, reference: Images, chosen: list[str], first: dict[str, float | None]
    ) -> tuple[dict[str, float | None], dict[str, list[float]]]:
        """Means over `sampling_seeds` sets of samples, and their intervals; a value that one set lacks stays None."""
        others = range(1, self.sampling_seeds)
        rows = [first, *(finite(self._sample_values(trainer, module, reference, chosen, [], i)[2], []) for i in others)]
        table = {key: [row.get(key) for row in rows] for key in first}
        table = {key: torch.tensor(values) for key, values in table.items() if None not in values}
        means = {key: float(values.mean()) for key, values in table.items()}
        return {key: means.get(key) for key in first}, {key: mean_interval(values) for key, values in table.items()}

    def _draw(self, trainer: Trainer, module: GenerativeModule, number: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Number of the first sample, and bytes, of each of this rank's chunks; sets follow each other in their seeds."""
        starts = range(0, self.num_images, self.chunk)
        begin = time.monotonic()
        for chunk in range(trainer.global_rank, len(starts), trainer.world_size):
            torch.manual_seed(self.seed + number * len(starts) + chunk)
            yield starts[chunk], to_uint8(module.sample(min(self.chunk, self.num_images - starts[chunk])))
            seconds = (time.monotonic() - begin) * len(starts) / trainer.world_size
            if chunk == 0 and seconds > PATIENCE:
                rank_zero_info(
                    f"SampleMetrics: drawing and measuring {self.num_images} samples takes about {seconds:.0f} s"
                )

    def key(self, metric: str) -> str:
        """What a metric is called on this backbone."""
        return key_of(metric, self.backbone)
