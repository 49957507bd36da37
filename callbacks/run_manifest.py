"""What a run is: its configuration and its manifest, `run.json`, in its folder, in its checkpoints and at the loggers."""

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from core.files import PROJECT
from experiment.checkpoint import StoredCheckpoint
from experiment.manifest import git_state, lineage_entry, now, read_manifest, write_manifest
from experiment.resume import has_finished
from metrics.results import versions
from modules.base import GenerativeModule

INTERRUPTIONS = (KeyboardInterrupt, SIGTERMException, SystemExit)
LOGGED = ("git", "versions", "world_size", "data", "parameters", "num_stages", "lineage", "started", "host")


class RunManifest(Callback):
    """Writes `config.yaml` into the run folder, and keeps `run.json`, written before the first step and updated every epoch.

    `status` is running, finished (nothing is left to train), interrupted (Ctrl-C, a signal, a limit of the trainer) or failed.
    A process that is killed leaves "running" behind: `host`, `pid` and `started` tell whether it still is. `wandb_id` is made
    at the first start in a folder and used again by every resume there. `lineage` lists the checkpoints that the run was
    resumed from (kind "resume"), and the file of source weights, here with content and SHA-256 (kind "source").

    Checkpoints get "run", "config" in plain containers (P 8.2), "data", number and fingerprint of every set, and "roots", their
    absolute paths.
    """

    def __init__(
        self, config: Mapping[str, Any], stored: StoredCheckpoint | None = None, source: tuple[str, Any, str] | None = None
    ) -> None:
        self.config: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        self.run_name, self.folder = config["run_name"], Path(config["run_dir"])
        self.wandb_id: str | None = None
        self._earlier = {} if config["resume"] is None else read_manifest(self.folder)
        run = (stored.checkpoint.get("run") or {}) if stored else {}
        self._lineage: list[dict[str, Any]] = self._earlier.get("lineage") or run.get("lineage", [])
        if stored:
            self._lineage = [*self._lineage, lineage_entry("resume", *stored)]
        elif source and not self._lineage:
            self._lineage = [lineage_entry("source", *source)]

    def begin(self, trainer: Trainer, module: GenerativeModule, datamodule: LightningDataModule | None) -> None:
        """Has to be called before `fit`, which would begin the W&B run first."""
        if not trainer.is_global_zero:
            return
        earlier = self._earlier
        self.wandb_id = _configured_id(trainer) or earlier.get("wandb_id") or f"{self.run_name[:48]}-{secrets.token_hex(4)}"
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
            "data": datamodule.fingerprints() if datamodule else {},
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "num_stages": module.num_stages,
            **{key: earlier.get(key, 0) for key in ("stage", "epoch", "iteration")},
            "checkpoints": earlier.get("checkpoints", []),
            "lineage": self._lineage,
        }
        write_manifest(self.folder, manifest)
        self._set_logger_ids(trainer)

    def setup(self, trainer: Trainer, pl_module: GenerativeModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.wandb_id is None:  # `begin` was not called
            self.begin(trainer, pl_module, trainer.datamodule)
        self.wandb_id = trainer.strategy.broadcast(self.wandb_id)
        self._set_logger_ids(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if trainer.is_global_zero:
            OmegaConf.save(OmegaConf.create(self.config), self.folder / "config.yaml")
            manifest = read_manifest(self.folder)
            for logger in trainer.loggers:
                logger.log_hyperparams({**self.config, "run": {key: manifest[key] for key in LOGGED}})

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if has_finished(trainer, pl_module):  # a finished run that is resumed would train one epoch more (P 6.12)
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: GenerativeModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # not at the epoch's start: the module enters its stage after the callbacks' hooks
            self._update(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: GenerativeModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {"run_name": self.run_name, "wandb_id": self.wandb_id, "lineage": self._lineage}
        checkpoint["config"] = self.config
        data = trainer.datamodule
        sets = data.sets() if hasattr(data, "sets") else {}
        checkpoint["data"] = {key: {"count": len(s.files), "fingerprint": s.fingerprint} for key, s in sets.items()}
        checkpoint["roots"] = data.roots() if hasattr(data, "roots") else {}

    def on_exception(self, trainer: Trainer, pl_module: GenerativeModule, exception: BaseException) -> None:
        status = "interrupted" if isinstance(exception, INTERRUPTIONS) else "failed"
        error = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        self._update(trainer, pl_module, status=status, error=error)

    def teardown(self, trainer: Trainer, pl_module: GenerativeModule, stage: str) -> None:
        if stage == "fit":
            self._update(trainer, pl_module, status="finished" if has_finished(trainer, pl_module) else "interrupted")

    def _set_logger_ids(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "use_id"):
                logger.use_id(self.wandb_id)

    def _update(self, trainer: Trainer, module: GenerativeModule, **changes: Any) -> None:
        """Changes the file, not a copy in memory: the process that waits for forked ranks would write an old state."""
        manifest = read_manifest(self.folder) if trainer.is_global_zero else {}
        if not manifest:
            return
        manifest |= {
            "updated": now(),
            "stage": max(0, module.stage),
            "epoch": trainer.current_epoch,
            "iteration": module.iteration,
            "checkpoints": sorted(path.name for path in self.folder.glob("checkpoints/*.ckpt")),
        }
        write_manifest(self.folder, manifest | changes)


def _configured_id(trainer: Trainer) -> str | None:
    """The id that the user chose for W&B, in the configuration or, as `wandb agent` does, in the environment."""
    configured = [logger.version for logger in trainer.loggers if hasattr(logger, "use_id") and logger.version]
    return next(iter(configured), None) or os.environ.get("WANDB_RUN_ID")
