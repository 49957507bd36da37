"""Training in stages inside one fit: a stage is a block of epochs that trains some parts while all others are frozen."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from core.errors import NonFiniteError, UserError
from core.units import human_bytes, human_time
from experiment.cost import rehearse
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import resize

CONSTANT = 0.05  # contrast of a stage's images, as a share of the training images', below which it counts as collapsed


class PyramidModule(GenerativeModule):
    """Base of methods that train scale by scale (stage s trains scale s; a method may add stages).

    `epochs_per_stage` is one number for all stages, a list with one for each, or three: for the first stage, each one
    between, and the last, whatever the number of scales. The whole pyramid and all optimizers exist
    from the start, so that any checkpoint of a run fits any stage (P 6.1); an optimizer that never stepped costs no memory.

    A method writes `sizes` (height and width of each scale), `stage_modules`, `stage_optimizers`, `collapse_advice`, and where
    needed `enter_stage`, `cache_stage` and `stage_images`.

    A stage that ends with images of one colour gives a warning. Weights that are not finite after an epoch end the training
    with a NonFiniteError, before anything is made of them; the checkpoints are those of the epochs before.
    """

    sizes: list[tuple[int, int]]
    duration_settings = ("epochs_per_stage",)
    collapse_advice: str  # what is known to help where a stage ends black or in another single colour; keys in full

    def __init__(self, num_stages: int, epochs_per_stage: int | list[int]) -> None:
        super().__init__()
        blocks = [epochs_per_stage] * num_stages if isinstance(epochs_per_stage, int) else list(epochs_per_stage)
        if len(blocks) == 3 <= num_stages:
            blocks = [blocks[0], *blocks[1:2] * (num_stages - 2), blocks[2]]
        if len(blocks) != num_stages or min(blocks) < 1:
            raise UserError(
                f"epochs_per_stage is {epochs_per_stage}; it has to be one number of at least 1, three such numbers (first "
                f"stage, each one between, last stage) or {num_stages}, one for each stage"
            )
        self.num_stages = num_stages
        self.stage = -1
        self._stage_ends = list(accumulate(blocks))
        self._cached_stage = -1

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The parts that train in a stage; every other part is frozen: no gradient, eval mode."""
        raise TypeError(f"{type(self).__name__} does not define stage_modules()")

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        """New optimizers of a stage, always equally many and in the same order."""
        raise TypeError(f"{type(self).__name__} does not define stage_optimizers()")

    def enter_stage(self, stage: int) -> None:
        """Changes the state once, when the stage begins: weights from the scale below, noise amplitude, code book.

        Has to give the same on all ranks: draw from `shared_generator()`.
        """

    def cache_stage(self, stage: int) -> None:
        """Computes what a stage needs and a checkpoint does not hold; runs at the stage's beginning and after a resume."""

    def stage_label(self, stage: int) -> tuple[str, str]:
        """Name and size of a stage for people: ("scale 1", "35×47")."""
        return f"stage {stage}", ""

    def stage_images(self, images: Tensor) -> Tensor:
        """A few images by the stages so far, by which one that has just ended is judged: samples, or while samples mean
        nothing yet reconstructions of the training `images` [N, 3, H, W]."""
        return self.sample(2) if self.samples_ready else self.reconstruct(images)

    @property
    def stage_name(self) -> str:
        """The stage in training, for progress bars and grids."""
        return " ".join(self.stage_label(max(self.stage, 0))).strip()

    def stage_at(self, epoch: int) -> int:
        return next((s for s, end in enumerate(self._stage_ends) if epoch < end), self.num_stages - 1)

    def stage_epochs(self, stage: int) -> int:
        """Number of epochs of a stage."""
        return self._stage_ends[stage] - (self._stage_ends[stage - 1] if stage else 0)

    @property
    def stage_progress(self) -> float:
        """Share of the current stage's epochs that are done, 0 in its first epoch; for schedules within a stage."""
        return 1 - (self._stage_ends[self.stage] - self.current_epoch) / self.stage_epochs(self.stage)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        stages = [self.stage_optimizers(stage) for stage in range(self.num_stages)]
        ends = accumulate(map(len, stages))
        self._optimizer_slices = [(end - len(opts), end) for opts, end in zip(stages, ends, strict=True)]
        return [optimizer for optimizers in stages for optimizer in optimizers]

    def current_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the stage in training, as `stage_optimizers` listed them."""
        return self.optimizers()[slice(*self._optimizer_slices[self.stage])]

    @contextmanager
    def toggled_optimizer(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside: no gradients for what the stage's other optimizers step. Lightning's own goes through all stages."""
        others = [other for other in self.current_optimizers() if other is not optimizer]
        parameters = [p for other in others for group in other.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> "PyramidModule":
        """Only the parts of the current stage follow `mode`; everything else stays in eval."""
        if self.stage < 0:
            return super().train(mode)
        super().train(False)
        self.training = mode
        for module in self.stage_modules(self.stage):
            module.train(mode)
        return self

    def _sync_stage(self) -> None:
        """Brings stage, freezing and caches in line with the epoch; does nothing when they agree already (P 6.6)."""
        stage = self.stage_at(self.current_epoch)
        while self.stage < stage:
            self.stage += 1
            self.enter_stage(self.stage)
        self.requires_grad_(False)
        for module in self.stage_modules(stage):
            module.requires_grad_(True)
        self.train()
        if self._cached_stage != stage:
            self.cache_stage(stage)
            self._cached_stage = stage

    def plan(self, datamodule: LightningDataModule, trainer: Trainer) -> str:
        """Table of stages with size, parameters, iterations and time, and time and memory of the training: `rehearse`.

        Time is that of the iterations on `trainer`'s devices, memory what one process needs for them.
        """
        cost = rehearse(self, datamodule, trainer)
        iterations = max(1, datamodule.samples_per_epoch // (datamodule.batch_size * trainer.world_size))
        rows, total = [("stage", "", "size", "parameters", "iterations", "time")], 0.0
        for stage, seconds in enumerate(cost.seconds):
            own = sum(p.numel() for module in self.stage_modules(stage) for p in module.parameters())
            steps, (name, size) = iterations * self.stage_epochs(stage), self.stage_label(stage)
            total += steps * seconds
            rows.append((str(stage), name, size, f"{own:,}", f"{steps:,}", human_time(steps * seconds)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        parameters = f"{sum(p.numel() for p in self.parameters()):,} parameters"
        lines.append(f"{parameters}; about {human_time(total)} of training here and {human_bytes(cost.memory)} of memory")
        lines.append("from a few iterations of each stage; without libraries, images, pictures and metrics")
        if cost.measured < self.num_stages:
            lines.append(f"stages from {cost.measured} on inferred from the one before, by parameters and pixels")
        return "\n".join(lines)

    def finished(self, epochs: int) -> bool:
        """See `GenerativeModule.finished`."""
        return epochs >= self._stage_ends[-1]

    def on_train_start(self) -> None:
        if self.finished(self.current_epoch):  # a finished run that is resumed would train one epoch more (P 6.12)
            self.trainer.should_stop = True
        else:
            self._sync_stage()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._sync_stage()

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:  # before validation and checkpoints look at the weights
            if self.trainer.world_size > 1:
                self._average_statistics()
            self._require_finite_weights()

    def on_train_epoch_end(self) -> None:
        done = self.finished(self.current_epoch + 1)
        if done or self.stage_at(self.current_epoch + 1) != self.stage:
            self._warn_if_constant()
        if done:
            self.trainer.should_stop = True

    def _average_statistics(self) -> None:
        """Batch norm's running statistics are those of each rank's own batches; all ranks get their mean (P 4.1).

        Once an epoch: they are moving averages, so that the mean at the end is that of averaging after each step.
        """
        norms = [m for part in self.stage_modules(self.stage) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
        if statistics:
            means = self.trainer.strategy.reduce(torch.cat(statistics), reduce_op="mean")
            for own, mean in zip(statistics, means.split([s.numel() for s in statistics]), strict=True):
                own.copy_(mean)

    def _require_finite_weights(self) -> None:
        states = [tensor for part in self.stage_modules(self.stage) for tensor in part.state_dict().values()]
        if not torch.stack([tensor.isfinite().all() for tensor in states]).all():
            for callback in self.trainer.checkpoint_callbacks:
                callback.save_on_exception = False  # the last checkpoint is one that a run can go on from
            raise NonFiniteError(
                f"{self.stage_name}: weights have become infinite or NaN in epoch {self.current_epoch}, so nothing more can "
                f"be learnt. What helps: smaller learning rates, trainer.precision=32-true, {self.collapse_advice}"
            )

    def _warn_if_constant(self) -> None:
        """The stages above cannot repair one that has collapsed. Draws nothing from the training's random state."""
        known = self.trainer.datamodule.sets()["image"]
        images = torch.stack([known[i] for i in range(min(len(known), 8))]).to(self.device)
        with sampling_mode(self, 0):
            shown = self.stage_images(images), resize(images, self.sizes[min(self.stage, len(self.sizes) - 1)])
        contrast, wanted = (float(pictures.std((2, 3)).mean()) for pictures in shown)
        if not contrast >= CONSTANT * wanted:
            rank_zero_warn(
                f"{self.stage_name} gives nearly constant images (contrast {contrast:.3f}, the training images have "
                f"{wanted:.3f}). What helps: {self.collapse_advice}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] = self.stage
        checkpoint["stage_ends"] = self._stage_ends

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.stage = checkpoint["stage"]
        ended = checkpoint.get("stage_ends", self._stage_ends)[: self.stage]
        if ended != self._stage_ends[: self.stage] or self.stage_at(checkpoint["epoch"]) != self.stage:
            raise UserError(
                f"module.epochs_per_stage would change the past: stage {self.stage} has reached epoch {checkpoint['epoch']} "
                f"and the stages before it ended after {ended} epochs; with the present setting stages end after "
                f"{self._stage_ends}"
            )
