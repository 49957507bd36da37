"""Cost of a training or a sample, measured before it begins: a copy of the module works for a few seconds."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningDataModule, Trainer

from core.units import human_bytes, human_time
from modules.bank import BankModule
from modules.base import GenerativeModule
from modules.staged import StagedModule

ITERATIONS = 3  # of a stage, of which the quickest counts; fewer where they take long
STAGE_SECONDS = 1.5  # after which a stage ends before its last iteration
SAMPLE_SECONDS = 6.0  # about how long the trial of a sample may take


class CostEstimate(NamedTuple):
    seconds: list[float]  # of an iteration of each stage
    memory: float  # bytes at the peak, weights included
    measured: int  # number of stages; the others follow from the last of them by parameters times pixels


def plan(module: GenerativeModule, datamodule: LightningDataModule, trainer: Trainer) -> str:
    """Table of what `fit` will do on the devices of `trainer`, with time and memory."""
    if isinstance(module, BankModule):
        bank_plan = _bank_plan if module.cost_setting else _short_bank_plan
        return bank_plan(module.to(trainer.strategy.root_device), datamodule.sets()["image"])
    cost = estimate_cost(module, datamodule, trainer)
    batch = datamodule.batch_size * module.reals_per_iteration
    iterations = max(1, datamodule.samples_per_epoch // (batch * trainer.world_size))
    row = "{:<5}  {:<9}  {:<9}  {:<10}  {:<10}  {}"
    lines, total = [row.format("stage", "", "size", "parameters", "iterations", "time")], 0.0
    for stage, seconds in enumerate(cost.seconds):
        parameters, (height, width) = _trained_parameters(module, stage), module.stage_size(stage)
        steps = iterations * module.stage_epochs(stage)
        total += steps * seconds
        cells = (module.stage_label(stage), f"{height}×{width}", f"{parameters:,}", f"{steps:,}", human_time(steps * seconds))
        lines.append(row.format(stage, *cells))
    parameters = f"{sum(p.numel() for p in module.parameters()):,} parameters"
    lines.append(f"{parameters}; about {human_time(total)} of training here and {human_bytes(cost.memory)} of memory")
    lines.append("measured on a few iterations of each stage; excludes libraries, images, sample grids and metrics")
    if cost.measured < module.num_stages:
        lines.append(f"stages from {cost.measured} on extrapolated from the one before, by parameters and pixels")
    return "\n".join(lines)


def estimate_cost(
    module: StagedModule, datamodule: LightningDataModule, trainer: Trainer, budget: float = 12.0
) -> CostEstimate:
    """Trains a copy of a module with random weights on one device of `trainer`, until no next stage fits into `budget` seconds.
    Nothing is written, and module, data module and random state stay as they are."""
    data, timer = copy.copy(datamodule), StageTimer(budget)
    data.num_workers = 0  # processes cost more than a few batches
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count())):
            warnings.simplefilter("ignore")  # that a stage of three iterations has not learned much
            durations = {name: 1 for name in module.duration_settings if module.hparams.get(name) is not None}
            iterations = {"iterations": ITERATIONS * module.num_stages} if module.hparams.get("iterations") else None
            trial = type(module)(**module.hparams | (iterations or durations))  # every stage is an epoch
            trial.source_sha256 = ""  # as if they had been read
            Trainer(
                accelerator=trainer.accelerator, devices=1, precision=trainer.precision, max_epochs=-1, min_epochs=0,
                limit_train_batches=ITERATIONS, limit_val_batches=0, log_every_n_steps=ITERATIONS, logger=False,
                callbacks=[timer], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            ).fit(trial, data)  # fmt: skip
    finally:
        logging.disable(level)
    return timer.cost(module)


class StageTimer(Callback):
    """Measures the iterations of a fit with one epoch a stage, and ends it when the next stage would exceed the budget."""

    def __init__(self, budget: float) -> None:
        self.budget, self.seconds, self.growths, self.times = budget, [], [], []

    def on_train_start(self, trainer: Trainer, module: StagedModule) -> None:
        self.begin, self.memory = time.perf_counter(), PeakMemory(module.device)

    def on_train_batch_start(self, trainer: Trainer, module: StagedModule, batch: Any, batch_idx: int) -> None:
        self.since = self._now()

    def on_train_batch_end(self, trainer: Trainer, module: StagedModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(self._now() - self.since)
        if sum(self.times) > STAGE_SECONDS:
            trainer.should_stop = True  # ends the epoch; the fit continues, as the next method takes it back

    def on_train_epoch_end(self, trainer: Trainer, module: StagedModule) -> None:
        self.seconds.append(min(self.times))
        self.times = []
        self.growths.append(self.memory.growth())
        following, spent = self.cost(module).seconds[len(self.seconds) :], time.perf_counter() - self.begin
        trainer.should_stop = bool(following) and spent + following[0] > self.budget

    def cost(self, module: StagedModule) -> CostEstimate:
        last, seconds, growths = len(self.seconds) - 1, list(self.seconds), list(self.growths)
        for stage in range(last + 1, module.num_stages):
            parameters = _trained_parameters(module, stage) / _trained_parameters(module, last)
            pixels = math.prod(module.stage_size(stage)) / math.prod(module.stage_size(last))
            seconds.append(seconds[last] * parameters * pixels)
            growths.append(growths[last] * parameters**0.5 * pixels)  # features: as wide as the root of the weights
        weights = sum(tensor.nbytes for tensor in module.state_dict().values())
        return CostEstimate(seconds, weights + max(growths), last + 1)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def _trained_parameters(module: StagedModule, stage: int) -> int:
    return sum(p.numel() for part in module.stage_modules(stage) for p in part.parameters())


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _bank_plan(module: BankModule, images: Any) -> str:
    seconds, memory = sample_cost(module, images)
    lines = [f"scale {scale}  {height}×{width}" for scale, (height, width) in enumerate(getattr(module, "sizes", []))]
    cost = f"about {human_time(seconds)} here and {human_bytes(memory)} of memory"
    lines += ["no training: fit stores the images", f"a sample of {len(images)} image(s): {cost}"]
    return "\n".join([*lines, "extrapolated from shorter samples; excludes libraries"])


def _short_bank_plan(module: BankModule, images: Any) -> str:
    """The plan of a method whose samples take a moment, measured with the first images."""
    trial, num_images, memory = copy.deepcopy(module), min(len(images), 32), PeakMemory(module.device)
    storing = _seconds(lambda: trial.store(torch.stack([images[i] for i in range(num_images)]))) / num_images * len(images)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        trial.sample(1)  # takes longer than the same again
        sampling = _seconds(lambda: trial.sample(1))
    return (
        f"no training\nfit stores {len(images)} image(s): about {human_time(storing)}\n"
        f"a sample of {num_images} of them: about {human_time(sampling)} here\n"
        f"and {human_bytes(memory.growth())} of memory; excludes libraries"
    )


def sample_cost(module: BankModule, images: Any) -> tuple[float, float]:
    """Seconds and bytes that `sample(1)` takes with an image set stored, on the module's device; the time is extrapolated from
    two values of the setting that `cost_setting` names, on which it depends linearly."""
    (name, few), memory, stacked = module.cost_setting, PeakMemory(module.device), torch.stack(list(images))
    target = module.hparams[name]

    def seconds(value: int) -> float:
        trial = type(module)(**module.hparams | {name: value, "max_images": len(images)}).to(module.device)
        trial.store(stacked)
        torch.manual_seed(0)
        return _seconds(lambda: trial.sample(1))

    with torch.random.fork_rng(range(torch.cuda.device_count())):
        first = seconds(few)  # takes longer than the same again
        many = max(2 * few, min(target, int(few * SAMPLE_SECONDS / first)))
        short, long = seconds(few), seconds(many)
    slope = max(0.0, long - short) / (many - few)
    return short + (target - few) * slope, memory.growth() + module.bank.values.nbytes


class PeakMemory:
    """Growth of memory since the object was made: of the GPU's tensors, else of the process (nan where Linux does not say)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            with suppress(OSError):  # else the peak is that of the process since its start
                Path("/proc/self/clear_refs").write_text("5")
            self.before = self._process_status("VmRSS")

    def growth(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return self._process_status("VmHWM") - self.before

    @staticmethod
    def _process_status(key: str) -> float:
        with suppress(OSError, IndexError):
            return 1024 * float(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])
        return math.nan
