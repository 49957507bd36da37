"""Ends a fit within an epoch as if the epoch had not begun."""

from lightning import Callback, LightningModule, Trainer


class WholeEpochs(Callback):
    """After an epoch that a limit of the trainer (max_time, max_steps) has cut short, no hook of its end runs: Lightning would
    save, draw and continue it as a whole one. Has to be the first callback. By StopIteration Lightning's loops end as they do
    when the data end; `on_train_end` and `teardown` follow."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_last_batch:
            raise StopIteration
