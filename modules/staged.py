"""Training in stages inside one fit: a stage is a block of epochs that trains some parts while all others are frozen."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from core.errors import NonFiniteError, UserError
from modules.base import GenerativeModule, sampling_mode
from modules.ops.images import resize

PROGRESS_BAR = ("g_loss", "d_loss", "reconstruction", "kl", "prior_bits")
COLLAPSE_CONTRAST = 0.05  # a stage's images count as collapsed below this share of the training images' contrast


class StagedModule(GenerativeModule):
    """Base of every trained method; a plain GAN has one stage.

    All parts and optimizers exist from the start, so that any checkpoint of a run fits any stage (P 6.1). A stage that ends
    with images of one color gives a warning; weights that are not finite end the training before anything uses them.

    Args:
        epochs: of all stages, or a list with the number of each.
        num_stages: number of stages.
        iterations: of each stage, in place of `epochs`, see `set_epoch_length`.
    """

    duration_settings: tuple[str, ...] = ("epochs",)
    collapse_advice = "another seed, smaller learning rates, more training images"  # against stages that end in one color

    def __init__(self, epochs: int | list[int] | None, num_stages: int = 1, iterations: Sequence[int] | None = None) -> None:
        super().__init__()
        if (epochs is None) == (iterations is None):
            values = f"module.epochs is {epochs}, module.iterations is {iterations and sum(iterations)}"
            raise UserError(f"{values}; give one of the two and null for the other")
        blocks = [epochs] * num_stages if isinstance(epochs, int) else list(epochs or iterations)
        if len(blocks) != num_stages or min(blocks) < 1:
            raise UserError(f"{self.duration_settings[0]} is {epochs}; expected {num_stages} number(s) of at least 1")
        self.num_stages = num_stages
        self.stage = -1
        self._stage_iterations = iterations
        self._epoch_iterations: int | None = None  # iterations of an epoch, once it is known that they make whole ones
        self._stage_ends = list(accumulate(blocks))
        self._cached_stage = -1

    # --- what a method writes -----------------------------------------------------------------------------------------

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """The parts that train in a stage; every other part is frozen: no gradient, eval mode."""
        untrained = {id(module) for module in self._untrained()}
        return [module for module in self.children() if id(module) not in untrained]

    def stage_optimizers(self, stage: int) -> list[torch.optim.Optimizer]:
        """New optimizers of a stage, always equally many and in the same order."""
        raise NotImplementedError(f"{type(self).__name__} does not define stage_optimizers()")

    def enter_stage(self, stage: int) -> None:
        """Changes the state once, when the stage begins, in the same way on all ranks: draw from `shared_generator()`."""

    def cache_stage(self, stage: int) -> None:
        """Computes what a stage needs and a checkpoint does not hold, when it begins and after a resume."""

    def stage_label(self, stage: int) -> str:
        return f"stage {stage}" if self.num_stages > 1 else "training"

    def stage_size(self, stage: int) -> tuple[int, int]:
        return self.image_size

    # --- stages and epochs --------------------------------------------------------------------------------------------

    @property
    def stage_name(self) -> str:
        stage = max(self.stage, 0)
        return "{} {}×{}".format(self.stage_label(stage), *self.stage_size(stage))

    def stage_at(self, epoch: int) -> int:
        """The stage that an epoch belongs to; the last one for later epochs."""
        return next((s for s, end in enumerate(self._stage_ends) if epoch < end), self.num_stages - 1)

    def stage_epochs(self, stage: int) -> int:
        return self._stage_ends[stage] - (self._stage_ends[stage - 1] if stage else 0)

    def ends_stage(self, epoch: int) -> bool:
        return self.stage_at(epoch) != self.stage_at(epoch + 1) or self.finished(epoch + 1)

    @property
    def stage_progress(self) -> float:
        """Share of the current stage's epochs that are done, 0 in its first epoch."""
        return 1 - (self._stage_ends[self.stage] - self.current_epoch) / self.stage_epochs(self.stage)

    def finished(self, epochs: int) -> bool:
        return epochs >= self._stage_ends[-1]

    def set_epoch_length(self, datamodule: LightningDataModule, world_size: int) -> None:
        """Makes whole epochs of configured iterations by the data module's `samples_per_epoch`, before loaders are made: of the
        lengths that divide every stage the one nearest to the configured ratio, or when resumed the checkpoint's."""
        if self._stage_iterations is None:
            return
        batch = datamodule.batch_size * self.reals_per_iteration
        if self._epoch_iterations is None:
            common, wanted = math.gcd(*self._stage_iterations), datamodule.samples_per_epoch / batch
            lengths = [length for length in range(1, common + 1) if common % length == 0]
            self._divide_stages(min(lengths, key=lambda length: abs(math.log(length / wanted))))
        datamodule.samples_per_epoch = self._epoch_iterations * batch * world_size

    def _divide_stages(self, length: int) -> None:
        if any(iterations % length for iterations in self._stage_iterations):
            stages = " and ".join(map(str, self._stage_iterations))
            raise UserError(
                f"module.iterations: the checkpoint's epochs have {length} iterations each, which do not divide {stages}; "
                f"choose a multiple of {length}"
            )
        self._epoch_iterations = length
        self._stage_ends = list(accumulate(iterations // length for iterations in self._stage_iterations))

    # --- optimizers and frozen parts ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        stages = [self.stage_optimizers(stage) for stage in range(self.num_stages)]
        self._optimizer_ends = [0, *accumulate(map(len, stages))]
        return [optimizer for optimizers in stages for optimizer in optimizers]

    def current_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        return optimizers[slice(*self._optimizer_ends[self.stage : self.stage + 2])]

    @contextmanager
    def toggled_optimizer(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside: no gradients for what the stage's other optimizers step. Lightning's own goes through all stages."""
        groups = [group for other in self.current_optimizers() if other is not optimizer for group in other.param_groups]
        trained = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def trained_modules(self) -> Iterable[nn.Module]:
        return super().trained_modules() if self.stage < 0 else self.stage_modules(self.stage)

    def _sync_stage(self) -> None:
        """Brings stage, freezing and caches in line with the epoch (P 6.6)."""
        stage = self.stage_at(self.current_epoch)
        while self.stage < stage:
            self.stage += 1
            if self.stage == 0:
                for condition in self.conditions():
                    condition.prepare(self, self.training_sets)
            self.enter_stage(self.stage)
        self.requires_grad_(False)
        for module in self.stage_modules(stage):
            module.requires_grad_(True)
        self.train()
        stepped = [p for optimizer in self.current_optimizers() for group in optimizer.param_groups for p in group["params"]]
        if not all(p.requires_grad for p in stepped):
            raise RuntimeError(f"stage_optimizers({stage}) has parameters outside of stage_modules({stage})")
        if self._cached_stage != stage:
            self.cache_stage(stage)
            self._cached_stage = stage

    def log_training(self, values: Mapping[str, Tensor | float], batch_size: int) -> None:
        """Logs `train/<name>` for each value, the stage and the iteration; some also in the progress bar."""
        for name, value in {**values, "stage": float(self.stage), "iteration": float(self.iteration)}.items():
            self.log(f"train/{name}", value, prog_bar=name in PROGRESS_BAR, batch_size=batch_size)

    def log_epoch(self, values: Mapping[str, Tensor]) -> None:
        """Logs `train/<name>` for each value at the end of an epoch, to the loggers at once: Lightning would do that after the
        checkpoint of the epoch, and a kill in between would lose the values."""
        scalars = {f"train/{name}": float(value) for name, value in values.items()}
        self.log_dict(scalars, logger=False)
        for logger in self.trainer.loggers:
            logger.log_metrics({**scalars, "epoch": self.current_epoch}, step=self.trainer.fit_loop.total_batch_idx)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.trainer.datamodule is not None:
            self.set_epoch_length(self.trainer.datamodule, self.trainer.world_size)

    def on_train_start(self) -> None:
        if self.finished(self.current_epoch):  # a finished run that is resumed would train one epoch more (P 6.12)
            self.trainer.should_stop = True
        else:
            self._sync_stage()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._sync_stage()

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # before averages copy them
            self._average_statistics()
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.trainer.is_last_batch:  # before validation and checkpoints use the weights
            self._require_finite_weights()

    def on_train_epoch_end(self) -> None:
        if self.ends_stage(self.current_epoch):
            self._warn_if_constant()
        if self.finished(self.current_epoch + 1):
            self.trainer.should_stop = True

    def _average_statistics(self) -> None:
        """Batch norm's running statistics are those of each rank's batches; all ranks get their mean (P 4.1)."""
        norms = [m for part in self.stage_modules(self.stage) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
        self.average_over_ranks([s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None])

    def _require_finite_weights(self) -> None:
        frozen = {id(tensor) for part in self.frozen() for tensor in part.state_dict(keep_vars=True).values()}
        states = [t for part in self.stage_modules(self.stage) for t in part.state_dict(keep_vars=True).values()]
        if not torch.stack([tensor.isfinite().all() for tensor in states if id(tensor) not in frozen]).all():
            for callback in self.trainer.checkpoint_callbacks:
                callback.save_on_exception = False  # the last checkpoint is one that a run can be resumed from
            raise NonFiniteError(
                f"{self.stage_name}: weights are infinite or NaN after epoch {self.current_epoch}. Possible remedies: smaller "
                f"learning rates, trainer.precision=32-true, {self.collapse_advice}"
            )

    def _warn_if_constant(self) -> None:
        reals = self.training_sets["image"]
        images = torch.stack([reals[i] for i in range(min(len(reals), 8))]).to(self.device)
        with sampling_mode(self, 0):
            outputs = self.sample(2) if self.samples_ready else self.reconstruct(images)
        reals = resize(images, self.stage_size(self.stage))
        contrast, expected = (float(pictures.std((2, 3)).mean()) for pictures in (outputs, reals))
        if not contrast >= COLLAPSE_CONTRAST * expected:
            rank_zero_warn(
                f"{self.stage_name} gives nearly constant images (contrast {contrast:.3f}, training images {expected:.3f}). "
                f"Possible remedies: {self.collapse_advice}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] = self.stage
        checkpoint["stage_ends"] = self._stage_ends
        checkpoint["epoch_iterations"] = self._epoch_iterations

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.stage = checkpoint["stage"]
        if self._stage_iterations is not None and checkpoint.get("epoch_iterations"):
            self._divide_stages(checkpoint["epoch_iterations"])
            if self._trainer is not None and getattr(self._trainer, "datamodule", None) is not None:
                self.set_epoch_length(self._trainer.datamodule, self._trainer.world_size)
        ended = checkpoint.get("stage_ends", self._stage_ends)[: self.stage]
        if ended != self._stage_ends[: self.stage] or self.stage_at(checkpoint["epoch"]) != self.stage:
            raise UserError(
                f"module.{self.duration_settings[0]} changes stages that are already trained: the checkpoint is of stage "
                f"{self.stage} in epoch {checkpoint['epoch']}, the stages before it ended after {ended} epochs; as configured, "
                f"stages end after {self._stage_ends}"
            )
