"""Ends a fit within an epoch as if the epoch had not begun."""

from lightning import Callback, LightningModule, Trainer


class WholeEpochs(Callback):
    """After an epoch that a limit of the trainer (max_time, max_steps) has cut short, no hook of its end runs.

    Training is resumed exactly from the ends of whole epochs only. Without this, Lightning counts the epoch as a whole one:
    it would be saved, drawn and continued with the next. Has to be the first callback. By StopIteration Lightning's loops
    end as they do when the data end; `on_train_end` and `teardown` follow.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_last_batch:
            raise StopIteration
