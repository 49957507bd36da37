"""Training in stages inside one fit: a stage is a block of epochs that trains some parts while all others are frozen."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from modules.base import GenerativeModule
from modules.ops.cost import forward_cost, human_bytes, human_time


class PyramidModule(GenerativeModule):
    """Base of methods that train scale by scale (stage s trains scale s; a method may add stages).

    `epochs_per_stage` is one number for all stages, a list with one for each, or three: for the first stage, each one
    between, and the last, whatever the number of scales. The whole pyramid and all optimizers exist
    from the start, so that any checkpoint of a run fits any stage (P 6.1); an optimizer that never stepped costs no memory.

    A method writes `stage_modules`, `stage_optimizers`, and where needed `enter_stage` and `cache_stage`.
    """

    def __init__(self, num_stages: int, epochs_per_stage: int | list[int]) -> None:
        super().__init__()
        blocks = [epochs_per_stage] * num_stages if isinstance(epochs_per_stage, int) else list(epochs_per_stage)
        if len(blocks) == 3 <= num_stages:
            blocks = [blocks[0], *blocks[1:2] * (num_stages - 2), blocks[2]]
        if len(blocks) != num_stages or min(blocks) < 1:
            raise ValueError(
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

        Has to give the same on all ranks: draw from `common_generator()`.
        """

    def cache_stage(self, stage: int) -> None:
        """Computes what a stage needs and a checkpoint does not hold; runs at the stage's beginning and after a resume."""

    def stage_label(self, stage: int) -> tuple[str, str]:
        """Name and size of a stage for people: ("scale 1", "35×47")."""
        return f"stage {stage}", ""

    @property
    def stage_name(self) -> str:
        """The stage in training, for progress bars and grids."""
        return " ".join(self.stage_label(max(self.stage, 0))).strip()

    def epochs_left(self) -> int:
        """Epochs from the current one to the end of the last stage."""
        return self._stage_ends[-1] - self.current_epoch

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

    def stage_work(self, stage: int, batch_size: int) -> list[tuple[nn.Module, Tensor, float]]:
        """What one iteration of a stage computes, for the plan: networks, an example input [1, C, h, w] of each, and how many
        forward passes of one image its work amounts to (a forward with its backward counts 3)."""
        return []

    def plan(self, samples_per_epoch: int, batch_size: int, world_size: int = 1) -> str:
        """Table of stages with size, parameters and iterations, and an estimate of time and memory of the whole training.

        The estimate measures one forward pass of every network on this machine and counts the passes.
        """
        iterations = max(1, samples_per_epoch // (batch_size * world_size))
        rows, seconds, memory = [("stage", "", "size", "parameters", "iterations", "time")], 0.0, 0.0
        weights = 4 * sum(p.numel() for p in self.parameters())
        for stage in range(self.num_stages):
            own = sum(p.numel() for module in self.stage_modules(stage) for p in module.parameters())
            steps, time, kept = iterations * self.stage_epochs(stage), 0.0, 0.0
            for network, example, passes in self.stage_work(stage, batch_size):
                forward, saved = forward_cost(network, example)
                time, kept = time + steps * passes * forward, kept + passes / 3 * saved
            seconds, memory = seconds + time, max(memory, weights + 12 * own + kept)
            name, size = self.stage_label(stage)
            rows.append((str(stage), name, size, f"{own:,}", f"{steps:,}", human_time(time)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = sum(p.numel() for p in self.parameters())
        summary = f"{total:,} parameters; about {human_time(seconds)} of training here and {human_bytes(memory)} of memory"
        return "\n".join([*lines, f"{summary} beside images and framework (estimates)"])

    def training_done(self) -> bool:
        """True when no epoch is left; asked at the beginning of a fit and after each epoch."""
        return self.epochs_left() <= 0

    def on_train_start(self) -> None:
        if self.training_done():  # a finished run that is resumed would train one epoch more (P 6.12)
            self.trainer.should_stop = True
        else:
            self._sync_stage()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._sync_stage()

    def on_train_epoch_end(self) -> None:
        if self.epochs_left() <= 1 or self.training_done():
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] = self.stage

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.stage = checkpoint["stage"]
