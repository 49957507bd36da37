"""What a training will cost, measured: a copy of the module trains a few iterations of each stage on its images."""

import copy
import logging
import math
import time
import warnings
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer

ITERATIONS = 3  # of a stage, of which the quickest counts; fewer where they take long
STAGE_SECONDS = 1.5  # after which a stage ends before its last iteration


class Cost(NamedTuple):
    """Seconds of one iteration of each stage; bytes at the peak, weights included; number of stages measured. The others
    follow from the last one measured by the number of parameters times pixels."""

    seconds: list[float]
    memory: float
    measured: int


def rehearse(module: LightningModule, datamodule: LightningDataModule, trainer: Trainer, budget: float = 12.0) -> Cost:
    """Trains a copy of a `PyramidModule` on one device of `trainer`, until no next stage fits into `budget` seconds.

    Nothing is written, and module, data module and random state stay as they are.
    """
    data, watch = copy.copy(datamodule), Stopwatch(budget)
    data.num_workers = 0  # processes cost more than a few batches
    logging.disable(logging.INFO)  # what Lightning says at the beginning and end of a fit
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count())):
            warnings.simplefilter("ignore")  # that a stage of three iterations has not learned much
            trial = type(module)(**module.hparams | {"epochs_per_stage": 1})
            Trainer(
                accelerator=trainer.accelerator, devices=1, precision=trainer.precision, max_epochs=-1, min_epochs=0,
                limit_train_batches=ITERATIONS, limit_val_batches=0, log_every_n_steps=ITERATIONS, logger=False,
                callbacks=[watch], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            ).fit(trial, data)  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return watch.cost(module)


class Stopwatch(Callback):
    """Measures the iterations of a fit with one epoch a stage, and ends it when the next stage would exceed the budget."""

    def __init__(self, budget: float) -> None:
        self.budget, self.seconds, self.growths = budget, [], []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.begin, self.memory = time.perf_counter(), PeakMemory(module.device)

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.since = self._now()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(self._now() - self.since)
        if sum(self.times) > STAGE_SECONDS:
            trainer.should_stop = True  # ends the epoch; the fit goes on, as the next method takes it back

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.seconds.append(min(self.times))
        self.growths.append(self.memory.growth())
        following, spent = self.cost(module).seconds[len(self.seconds) :], time.perf_counter() - self.begin
        trainer.should_stop = bool(following) and spent + following[0] > self.budget

    def cost(self, module: Any) -> Cost:
        """What is known so far, and for the stages to come extrapolated."""
        last, seconds, growths = len(self.seconds) - 1, list(self.seconds), list(self.growths)
        for stage in range(last + 1, module.num_stages):
            parameters, pixels = (new / old for new, old in zip(_extent(module, stage), _extent(module, last), strict=True))
            seconds.append(seconds[last] * parameters * pixels)
            growths.append(growths[last] * parameters**0.5 * pixels)  # features: as wide as the root of the weights
        weights = sum(tensor.nbytes for tensor in module.state_dict().values())
        return Cost(seconds, weights + max(growths), last + 1)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def _extent(module: Any, stage: int) -> tuple[int, int]:
    """Parameters in training and pixels of an image."""
    height, width = module.sizes[stage % len(module.sizes)]
    return sum(p.numel() for part in module.stage_modules(stage) for p in part.parameters()), height * width


class PeakMemory:
    """By how many bytes memory has grown at its peak since the object was made: that of the GPU's tensors, else that of the
    whole process as Linux counts it (nan elsewhere)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            _forget_peak()
            self.before = _status("VmRSS")

    def growth(self) -> float:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _forget_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the peak is that of the process since its start then


def _status(key: str) -> float:
    """A number of bytes that Linux notes about this process."""
    try:
        with open("/proc/self/status") as file:
            return 1024 * float(file.read().split(f"{key}:")[1].split()[0])
    except (OSError, IndexError):
        return math.nan
