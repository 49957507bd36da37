"""Ends all processes of a fit or a test at once."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

from lightning import Callback, LightningModule, Trainer

GRACE = 3.0  # seconds for a rank to end its own workers before it is killed


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
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for rank in filter(_is_alive, ranks):
                with suppress(ProcessLookupError):
                    os.kill(rank.pid, signum)
            deadline = time.monotonic() + GRACE
            while any(map(_is_alive, ranks)) and time.monotonic() < deadline:
                time.sleep(0.02)


def _is_alive(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
