"""The card of a run, `run.json`: what it is, where it came from and how far it got, on disk before its first step."""

import hashlib
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from core.errors import UserError
from experiment.checkpoint import read_checkpoint
from metrics.results import versions

PROJECT = Path(__file__).resolve().parents[1]
INTERRUPTIONS = (KeyboardInterrupt, SIGTERMException, SystemExit)
LOGGED = ("git", "versions", "world_size", "data", "parameters", "num_stages", "lineage", "started", "host")


class RunManifest(Callback):
    """Keeps `run.json` in the run folder, written by rank 0 as a whole or not at all, and brought up to date every epoch.

    `status` is running, finished (the training came to its end), interrupted (Ctrl-C or a signal) or failed. A process
    that is killed leaves "running" behind: `host`, `pid` and `started` tell whether it still is. `wandb_id` is made at
    the first start in a folder and used again by every resume there. `lineage` lists the checkpoints that the run was
    begun from or resumed from (kind "resume"), and those that hyper-parameters named *_checkpoint give (kind "source").

    Args:
        config: the resolved configuration.
        checkpoint: the one that the training goes on from.
    """

    def __init__(self, config: Mapping[str, Any], checkpoint: str | None = None) -> None:
        self.run_name: str = config["run_name"]
        self.folder = Path(config["run_dir"])
        self.goes_on = config["resume"] is not None
        self.checkpoint = checkpoint
        self.wandb_id: str | None = None
        self._lineage: list[dict[str, Any]] = []

    def begin(self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Writes the card and tells the loggers their id. To be called before `fit`, which makes the W&B run first.

        ValueError or OSError if a checkpoint of the lineage or an earlier card cannot be read; nothing is written then.
        """
        if not trainer.is_global_zero:
            return
        earlier = read_manifest(self.folder) if self.goes_on else {}
        self._lineage = self._ancestry(module, earlier)
        self.wandb_id = _given_id(trainer) or earlier.get("wandb_id") or f"{self.run_name[:48]}-{secrets.token_hex(4)}"
        stages = getattr(module, "num_stages", None)
        card = {
            "run_name": self.run_name,
            "wandb_id": self.wandb_id,
            "status": "running",
            "command": shlex.join(sys.orig_argv),
            "directory": os.getcwd(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _now(),
            "updated": _now(),
            "starts": [*earlier.get("starts", []), _now()],
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
        card |= {key: earlier[key] for key in ("stage", "epoch", "iteration", "checkpoints") if key in earlier}
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder, card)
        self._tell_loggers(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.wandb_id is None:  # a fit that nobody announced
            self.begin(trainer, pl_module, trainer.datamodule)
        self.wandb_id = trainer.strategy.broadcast(self.wandb_id)
        self._tell_loggers(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            card = read_manifest(self.folder)
            for logger in trainer.loggers:
                logger.log_hyperparams({"run": {key: card[key] for key in LOGGED}})

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
            self._update(trainer, pl_module, status="finished")

    def _ancestry(self, module: LightningModule, earlier: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.checkpoint is None:
            named = [path for key, path in module.hparams.items() if key.endswith("_checkpoint") and isinstance(path, str)]
            return earlier.get("lineage") or [_parent("source", path, read_checkpoint(path)) for path in named]
        content = read_checkpoint(self.checkpoint)
        before = earlier.get("lineage") or (content.get("run") or {}).get("lineage", [])
        return [*before, _parent("resume", self.checkpoint, content)]

    def _tell_loggers(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if hasattr(logger, "use_id"):
                logger.use_id(self.wandb_id)

    def _update(self, trainer: Trainer, module: LightningModule, **changes: Any) -> None:
        """Changes the card on disk, not one in memory: the process that waits for forked ranks would write an old state."""
        card = read_manifest(self.folder) if trainer.is_global_zero else {}
        if not card:
            return
        card |= {
            "updated": _now(),
            "stage": max(0, getattr(module, "stage", 0)),
            "epoch": trainer.current_epoch,
            "iteration": getattr(module, "iteration", 0),
            "checkpoints": sorted(path.name for path in self.folder.glob("checkpoints/*.ckpt")),
        }
        _write(self.folder, card | changes)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The card of a run folder, empty where there is none; ValueError if the file is something else."""
    file = Path(folder) / "run.json"
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file}: not the card of a run ({error}); remove it to get a new one.") from None
    if not isinstance(card, dict):
        raise UserError(f"{file}: not the card of a run; remove it to get a new one.")
    return card


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the folder's repository, and whether its Python or YAML files differ from it; None without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "*.py", "*.yaml")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changed.strip())}


def file_sha256(path: str | Path) -> str:
    """Of the file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(folder: Path, *words: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL
    )
    return result.stdout


def _parent(kind: str, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    run = content.get("run") or {}
    name = run.get("run_name") or (content.get("config") or {}).get("run_name")
    known = {"run_name": name, "wandb_id": run.get("wandb_id"), "iteration": content.get("iteration")}
    return {"kind": kind, "path": str(path), "sha256": file_sha256(path), **known}


def _given_id(trainer: Trainer) -> str | None:
    """The id that the user chose for W&B, in the configuration or, as `wandb agent` does, in the environment."""
    given = [logger.version for logger in trainer.loggers if hasattr(logger, "use_id") and logger.version]
    return next(iter(given), None) or os.environ.get("WANDB_RUN_ID")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(folder: Path, card: Mapping[str, Any]) -> None:
    draft = folder / "run.json.tmp"
    draft.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, folder / "run.json")
