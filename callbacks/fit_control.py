"""How a fit begins and ends: with equal ranks, after whole epochs, on all processes at once."""

import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from experiment.ranks import differing_facts

GRACE = 3.0  # seconds for a rank to end its own workers before it is killed


class CheckRanksAgree(Callback):
    """Ends a fit whose ranks differ in their `experiment.ranks.start_facts`, on all of them, before the first step."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        facts: list[dict[str, str]] = [self.facts] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(facts, self.facts)
        if lines := differing_facts(facts):
            advice = "run_dir, images and code have to be the same on all nodes, for example on a shared disk."
            message = "\n".join(["error: ranks disagree at start-up:", *lines, advice])
            raise SystemExit(message if trainer.is_global_zero else 2)


class WholeEpochs(Callback):
    """After an epoch that a limit of the trainer (max_time, max_steps) has cut short, no hook of its end runs: Lightning would
    save, draw and continue it as a whole one. Has to be the first callback. By StopIteration Lightning's loops end as they do
    when the data end; `on_train_end` and `teardown` follow."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_last_batch:
            raise StopIteration


class TerminateAllRanks(Callback):
    """A fit or a test that ends by a signal or an error ends on all ranks, and at once.

    Lightning's handler of SIGTERM waits for the other ranks and for the end of the batch (P 7.3). Nothing is saved within an
    epoch (P 6.7), so the handler from before the fit is restored. The ranks that this process has started hang in their next
    collective when it ends: they are ended first.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with suppress(ValueError):  # a fit outside the main thread: neither Lightning nor this can set handlers
            signal.signal(signal.SIGTERM, self._handler)

    on_test_start = on_train_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        started = getattr(trainer.strategy.launcher, "procs", [])
        ranks = list(started)
        started.clear()  # else Lightning's observer would kill this process because they have ended
        for end in ("terminate", "kill"):
            for rank in filter(_is_alive, ranks):
                getattr(rank, end)()
            deadline = time.monotonic() + GRACE
            while any(map(_is_alive, ranks)) and time.monotonic() < deadline:
                time.sleep(0.02)


def _is_alive(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
