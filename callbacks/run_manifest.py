"""Keeps the run manifest, `run.json`, up to date."""

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from experiment.checkpoint import StoredCheckpoint
from experiment.manifest import git_state, lineage_entry, now, read_manifest, write_manifest
from experiment.resume import has_finished
from metrics.results import versions

PROJECT = Path(__file__).resolve().parents[1]
INTERRUPTIONS = (KeyboardInterrupt, SIGTERMException, SystemExit)
LOGGED = ("git", "versions", "world_size", "data", "parameters", "num_stages", "lineage", "started", "host")


class RunManifest(Callback):
    """Keeps `run.json` in the run folder; rank 0 writes it before the first step and updates it every epoch.

    `status` is running, finished (nothing is left to train), interrupted (Ctrl-C, a signal, a limit of the trainer) or failed.
    A process that is killed leaves "running" behind: `host`, `pid` and `started` tell whether it still is. `wandb_id` is made
    at the first start in a folder and used again by every resume there. `lineage` lists the checkpoints that the run was
    resumed from (kind "resume"), and the file of source weights that it was begun from (kind "source").

    Args:
        config: the resolved configuration.
        stored: the checkpoint that the training resumes from.
        source: path, content and SHA-256 of the file of source weights.
    Raises UserError if an earlier manifest cannot be read.
    """

    def __init__(
        self, config: Mapping[str, Any], stored: StoredCheckpoint | None = None, source: tuple[str, Any, str] | None = None
    ) -> None:
        self.run_name: str = config["run_name"]
        self.folder = Path(config["run_dir"])
        self.wandb_id: str | None = None
        self._earlier = {} if config["resume"] is None else read_manifest(self.folder)
        self._lineage = self._ancestry(stored, source)

    def begin(self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Writes the manifest and gives the loggers their id. To be called before `fit`, which begins the W&B run first."""
        if not trainer.is_global_zero:
            return
        earlier = self._earlier
        self.wandb_id = _configured_id(trainer) or earlier.get("wandb_id") or f"{self.run_name[:48]}-{secrets.token_hex(4)}"
        stages = getattr(module, "num_stages", None)
        manifest = {
            "run_name": self.run_name,
            "wandb_id": self.wandb_id,
            "status": "running",
            "command": shlex.join(sys.orig_argv),
            "directory": os.getcwd(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": now(),
            "updated": now(),
            "starts": [*earlier.get("starts", []), now()],
            "git": git_state(PROJECT),
            "versions": versions(),
            "world_size": trainer.world_size,
            "data": datamodule.fingerprints() if hasattr(datamodule, "fingerprints") else {},
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "num_stages": 1 if stages is None else stages,
            "stage": 0,
            "epoch": 0,
            "iteration": 0,
            "checkpoints": [],
            "lineage": self._lineage,
        }
        manifest |= {key: earlier[key] for key in ("stage", "epoch", "iteration", "checkpoints") if key in earlier}
        write_manifest(self.folder, manifest)
        self._set_logger_ids(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.wandb_id is None:  # `begin` was not called
            self.begin(trainer, pl_module, trainer.datamodule)
        self.wandb_id = trainer.strategy.broadcast(self.wandb_id)
        self._set_logger_ids(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            manifest = read_manifest(self.folder)
            for logger in trainer.loggers:
                logger.log_hyperparams({"run": {key: manifest[key] for key in LOGGED}})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if has_finished(trainer, pl_module):  # a finished run that is resumed would train one epoch more (P 6.12)
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # not at the epoch's start: the module enters its stage after the callbacks' hooks
            self._update(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0 or trainer.is_last_batch:  # a row is written
            pl_module.log("train/stage", float(getattr(pl_module, "stage", 0)), batch_size=1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {"run_name": self.run_name, "wandb_id": self.wandb_id, "lineage": self._lineage}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        status = "interrupted" if isinstance(exception, INTERRUPTIONS) else "failed"
        error = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        self._update(trainer, pl_module, status=status, error=error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._update(trainer, pl_module, status="finished" if has_finished(trainer, pl_module) else "interrupted")

    def _ancestry(self, stored: StoredCheckpoint | None, source: tuple[str, Any, str] | None) -> list[dict[str, Any]]:
        earlier = self._earlier.get("lineage")
        if stored:
            return [*(earlier or (stored.checkpoint.get("run") or {}).get("lineage", [])), lineage_entry("resume", *stored)]
        return earlier or ([lineage_entry("source", *source)] if source else [])

    def _set_logger_ids(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "use_id"):
                logger.use_id(self.wandb_id)

    def _update(self, trainer: Trainer, module: LightningModule, **changes: Any) -> None:
        """Changes the file, not a copy in memory: the process that waits for forked ranks would write an old state."""
        manifest = read_manifest(self.folder) if trainer.is_global_zero else {}
        if not manifest:
            return
        manifest |= {
            "updated": now(),
            "stage": max(0, getattr(module, "stage", 0)),
            "epoch": trainer.current_epoch,
            "iteration": getattr(module, "iteration", 0),
            "checkpoints": sorted(path.name for path in self.folder.glob("checkpoints/*.ckpt")),
        }
        write_manifest(self.folder, manifest | changes)


def _configured_id(trainer: Trainer) -> str | None:
    """The id that the user chose for W&B, in the configuration or, as `wandb agent` does, in the environment."""
    configured = [logger.version for logger in trainer.loggers if hasattr(logger, "use_id") and logger.version]
    return next(iter(configured), None) or os.environ.get("WANDB_RUN_ID")
