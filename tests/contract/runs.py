"""Fits of the contract, and what they leave behind. They go through `train.prepare`, as a user's do."""

import atexit
import copy
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer

import train
from cli.loader import load_config
from tests.contract.tiers import SYNTHETIC, tiny

QUIET = [
    "trainer.accelerator=cpu", "logger.wandb=null", "callbacks.metrics=null", "callbacks.images=null",
    "callbacks.progress=null", "callbacks.checkpoint.save_top_k=-1",
]  # fmt: skip
TWO_PROCESSES = ["trainer.devices=2", "trainer.strategy=ddp_fork", "datamodule.batch_size=1"]


class Run(NamedTuple):
    trainer: Trainer
    module: LightningModule
    run_dir: Path


def fit(path: Path, run_dir: Path, *overrides: str, callbacks: Sequence[Callback] = ()) -> Run:
    """Trains a configuration at the sizes TINY on drawn images."""
    config = load_config([str(path), SYNTHETIC, *tiny(path), *QUIET, f"run_dir={run_dir}", *overrides])
    trainer, module, datamodule, checkpoint = train.prepare(config, dry_run=False)
    trainer.callbacks.extend(callbacks)
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    return Run(trainer, module, run_dir)


@functools.cache
def straight(path: Path) -> Run:
    """The complete fit of a configuration, once in each test process; tests leave its weights as they are."""
    folder = tempfile.mkdtemp(prefix=path.stem)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return fit(path, Path(folder) / "run")


class RankStates(Callback):
    """Writes the weights and buffers of each rank at the end of the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        torch.save(copy.deepcopy(module.state_dict()), self.folder / f"{trainer.global_rank}.pt")


def epoch_files(run_dir: Path) -> list[Path]:
    """The checkpoints of all epochs, in order."""
    return sorted(run_dir.glob("checkpoints/epoch_*.ckpt"))


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def unequal(first: Any, second: Any, key: str = "") -> list[str]:
    """Names of the entries in which two nested containers of tensors and plain values differ."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    if isinstance(first, dict):
        same = first.keys() == second.keys()
        return [n for k in first for n in unequal(first[k], second[k], f"{key}.{k}")] if same else [f"{key}: keys"]
    if isinstance(first, list | tuple):
        pairs = enumerate(zip(first, second, strict=False))
        same = len(first) == len(second)
        return [n for i, (a, b) in pairs for n in unequal(a, b, f"{key}[{i}]")] if same else [key]
    return [] if first == second or (first != first and second != second) else [key]
