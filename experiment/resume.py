"""From the configuration's `resume` to the checkpoint to resume from, or to the reason why there is none."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from core.errors import UserError
from experiment.checkpoint import StoredCheckpoint, load_stored
from experiment.config_changes import Finished, changes
from experiment.manifest import read_manifest

RESULTS = ("metrics.csv", "metrics.json", "best.json", "images", "tasks")  # what a run leaves beside its checkpoints


def resume_point(
    config: DictConfig, module: LightningModule, datamodule: LightningDataModule, dry_run: bool = False
) -> StoredCheckpoint | None:
    """The checkpoint that `config.resume` selects, after all checks of whether the training can be resumed from it.

    Loads its weights into `module`. Prints a line for each setting that changed and may. Raises UserError or
    FileNotFoundError with a message for the user, and Finished if nothing is left to train, unless `dry_run`. `datamodule`
    has been set up.
    """
    stored = find_resume(config.resume, config.run_dir)
    if stored is None:
        return None
    path, checkpoint, _ = stored
    images = changed_images(checkpoint, datamodule)
    free = [f"module.{name}" for name in module.duration_settings]
    if images == []:  # the same files, wherever they are now
        free += [f"datamodule.{key}" for key in config.datamodule if key.endswith("root")]
    refused, allowed = changes(checkpoint["config"], config, free) if "config" in checkpoint else ([], [])
    if refused or images:
        lines = "\n".join(f"  {line}" for line in [*refused, *(images or [])])
        raise UserError(
            f"cannot resume {path}: settings differ (checkpoint → now)\n{lines}\n"
            f"Resume with the settings of the checkpoint, or start another run by run_name=… resume=null."
        )
    check_resume(path, checkpoint, module)
    for line in allowed:
        log_rank_zero(f"changed since {path}: {line}")
    reason = finish_reason(checkpoint, config, module)
    if reason is not None and finished_cleanly(config.run_dir) and not dry_run:
        more = f" To extend it: a larger {' or '.join(reason)}." if reason else ""
        finished = Finished(f"{path}: training already finished after {epochs_done(checkpoint)} epochs.{more}")
        rank_zero_only(print)(finished.message)
        raise finished
    for _, node, state in _early_stopping(checkpoint, config):  # else Lightning goes on with the patience of the checkpoint
        state["patience"] = node.get("patience", 3)
        if reason is None:
            state["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value
    return stored


def find_resume(resume: str | None, run_dir: str | Path) -> StoredCheckpoint | None:
    """The checkpoint that `resume` selects; None for a new run.

    "auto" selects the last readable file of the run; each unreadable one is reported in a line. UserError or
    FileNotFoundError for a path that no training can be resumed from, and with "auto" if that holds for all files.
    """
    if resume is None:
        return None
    if resume != "auto":
        return _load_resumable(resume)
    files = [file for file in Path(run_dir).glob("checkpoints/*.ckpt") if file.is_file()]
    # last.ckpt is another name of the newest file, unless a kill came between the two. Files that are newer than last.ckpt
    # only because the folder was copied hold fewer epochs. A copy without last.ckpt says nothing about the order.
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"), reverse=True)
    last = next((i for i, file in enumerate(files) if file.name == "last.ckpt"), len(files) - 1)
    newest, damaged, inodes = None, [], set()
    for i, file in enumerate(files):
        inode = file.stat().st_dev, file.stat().st_ino
        if inode in inodes or (newest and i > last):
            continue
        inodes.add(inode)
        try:
            stored = _load_resumable(file)
        except UserError as error:
            damaged.append(str(error))
            continue
        if newest is None or epochs_done(stored.checkpoint) > epochs_done(newest.checkpoint):
            newest = stored
    if newest is None and files:
        reasons = "\n".join(damaged)
        raise UserError(f"{run_dir}: no checkpoint to resume from:\n{reasons}\nA new run: run_name=… resume=null.")
    for reason in damaged:
        log_rank_zero(f"warning: {reason.removesuffix('.')}. Resuming from {newest.path}.")
    return newest


def check_resume(path: str | Path, checkpoint: Mapping[str, Any], module: LightningModule) -> None:
    """UserError unless `module` is of the class and the shapes in the checkpoint. Loads its weights."""
    try:
        module.on_load_checkpoint(checkpoint)  # refuses another class, and a schedule that changes finished stages
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    stored, now = ({k: tuple(v.shape) for k, v in d.items()} for d in (checkpoint["state_dict"], module.state_dict()))
    for key in sorted(stored.keys() | now.keys()):
        if stored.get(key) != now.get(key):
            raise UserError(
                f"{path} does not fit the configured {type(module).__name__}: {key} has shape {stored.get(key)} in the "
                f"checkpoint and {now.get(key)} in the configured module."
            )
    module.load_state_dict(checkpoint["state_dict"])


def changed_images(checkpoint: Mapping[str, Any], datamodule: LightningDataModule) -> list[str] | None:
    """A line for each image set whose files differ from those of the checkpoint; None if it has no fingerprints."""
    stored = checkpoint.get(type(datamodule).__qualname__, {}).get("fingerprints")
    if stored is None:
        return None
    now = datamodule.fingerprints()
    pairs = {key: (stored.get(key, "none"), now.get(key, "none")) for key in sorted(stored.keys() | now.keys())}
    return [f"files of the image set {key}: {old[:12]} → {new[:12]}" for key, (old, new) in pairs.items() if old != new]


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of whole epochs that were trained before a checkpoint."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def finish_reason(checkpoint: Mapping[str, Any], config: DictConfig, module: LightningModule) -> list[str] | None:
    """The keys whose larger values extend a training that is finished at this checkpoint; None if it is not finished."""
    epochs = epochs_done(checkpoint)
    if module.finished(epochs):
        return [f"module.{name}" for name in module.duration_settings if module.hparams.get(name) is not None]
    for key, done in (("max_epochs", epochs), ("max_steps", checkpoint["global_step"])):
        if 0 <= (config.trainer.get(key) or -1) <= done:
            return [f"trainer.{key}"]
    for key, node, state in _early_stopping(checkpoint, config):
        reason = EarlyStoppingReason(state.get("stopping_reason", 0))
        if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            if state["wait_count"] >= node.get("patience", 3):
                return [f"{key}.patience"]
        elif reason is not EarlyStoppingReason.NOT_STOPPED:  # a threshold, or a value that is not finite
            return []
    return None


def has_finished(trainer: Trainer, module: LightningModule) -> bool:
    """True if nothing is left to train after the epochs of this trainer: the reasons of `finish_reason`, in a fit."""
    whole = trainer.is_last_batch and not trainer.sanity_checking
    stopped = [c.stopping_reason for c in trainer.callbacks if isinstance(c, EarlyStopping)]
    return (
        module.finished(trainer.current_epoch)
        or 0 <= (trainer.max_epochs or -1) <= trainer.current_epoch
        or (whole and 0 <= trainer.max_steps <= trainer.global_step)
        or any(reason is not EarlyStoppingReason.NOT_STOPPED for reason in stopped)
    )


def finished_cleanly(run_dir: str | Path) -> bool:
    """False if the manifest says that the run was cut off, which may be between its last checkpoint and its last picture."""
    return read_manifest(run_dir).get("status", "finished") == "finished"


def checkpoint_files(config: DictConfig) -> Iterator[Path]:
    """The checkpoints that a run has written where `config` says; links to folders are followed."""
    nodes = [node for node in (config.callbacks or {}).values() if node]
    folders = {config.run_dir, f"{config.run_dir}/checkpoints", *(n.dirpath for n in nodes if n.get("dirpath"))}
    for folder in sorted(folders):
        yield from Path(folder).glob("*.ckpt")


def move_results_aside(run_dir: str | Path) -> None:
    """Moves the results of a run that left no checkpoint into a subfolder, so that they never pass for those of the next."""
    results = [path for name in RESULTS if (path := Path(run_dir) / name).exists()]
    if not results:
        return
    number = 1 + sum(1 for _ in Path(run_dir).glob("previous_*"))
    folder = Path(run_dir) / f"previous_{number}"
    folder.mkdir()
    for path in results:
        path.rename(folder / path.name)
    names = ", ".join(path.name for path in results)
    log_rank_zero(f"{run_dir} held {names} of a run without a checkpoint; moved to {folder}.")


@rank_zero_only
def log_rank_zero(line: str) -> None:
    """Prints a line to stderr on rank 0."""
    print(line, file=sys.stderr)


def _early_stopping(checkpoint: Mapping[str, Any], config: DictConfig) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Dotted key, node and stored state of each configured EarlyStopping that the checkpoint has a state of."""
    states = checkpoint.get("callbacks", {})
    for name, node in (config.get("callbacks") or {}).items():
        if node and str(node.get("class_path")).endswith(".EarlyStopping"):
            state = states.get(f"EarlyStopping{ {'monitor': node.monitor, 'mode': node.get('mode', 'min')} !r}")
            if state:
                yield f"callbacks.{name}", node, state


def _load_resumable(path: str | Path) -> StoredCheckpoint:
    stored = load_stored(path)
    checkpoint = stored.checkpoint
    if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
        raise UserError(f"{path}: contains only weights; cannot resume.")
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    if progress["ready"] != progress["processed"]:
        raise UserError(f"{path}: was written within an epoch; a training can be resumed exactly from the end of one only.")
    return stored
