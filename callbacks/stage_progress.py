"""The progress bar of a training."""

import sys
import time
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from core.types import NonNegativeInt
from modules.base import GenerativeModule


class StageProgress(TQDMProgressBar):
    """Lightning's bar with the stage's name; where the output is no terminal there is one line an epoch instead."""

    def __init__(self, refresh_rate: NonNegativeInt = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._epoch_start = 0.0

    @property
    def is_disabled(self) -> bool:
        return super().is_disabled or not sys.stdout.isatty()

    def _should_update(self, current: int, total: int) -> bool:
        return not self.is_disabled and super()._should_update(current, total)

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        trainer.progress_bar_metrics.clear()  # Lightning would keep showing the losses of an earlier stage
        self._epoch_start = time.monotonic()
        super().on_train_epoch_start(trainer, *arguments)

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # not at the epoch's start: the module enters its stage after the callbacks' hooks
            self.train_progress_bar.set_description(self._title(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_enabled and self.is_disabled:
            values = [f"{key} {value:.4g}" for key, value in self.get_metrics(trainer, pl_module).items()]
            seconds = f"{time.monotonic() - self._epoch_start:.1f} s"
            print(" · ".join([self._title(trainer, pl_module), *values, seconds]), flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: GenerativeModule) -> dict[str, float]:
        """`train/g_loss` is shown as `g_loss`."""
        return {key.removeprefix("train/"): float(value) for key, value in trainer.progress_bar_metrics.items()}

    @staticmethod
    def _title(trainer: Trainer, module: GenerativeModule) -> str:
        return f"epoch {trainer.current_epoch} {module.stage_name}".strip()
