"""From the configuration's `resume` to the checkpoint to resume from."""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from core.errors import ErrorCollector, UserError
from experiment.checkpoint import StoredCheckpoint, load_stored
from experiment.manifest import read_manifest

MUTABLE_GROUPS = ("run_name", "run_dir", "trainer", "logger", "callbacks")
MUTABLE_KEYS = ("datamodule.num_workers", "datamodule.max_memory_gib")
EPOCH_KEYS = ("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.fast_dev_run")  # decide how long an epoch is
RESULTS = ("metrics.csv", "metrics.json", "best.json", "images", "tasks")  # what a run leaves beside its checkpoints


class Finished(SystemExit):
    """Nothing is left to train, which is no error. The code that raises it prints the message."""


def resume_point(
    config: DictConfig, module: LightningModule, datamodule: LightningDataModule, dry_run: bool = False
) -> StoredCheckpoint | None:
    """The checkpoint that `config.resume` selects, after all checks; loads its weights into `module` and prints a line for each
    setting that changed and may. UserError or FileNotFoundError; Finished if nothing is left to train, unless `dry_run`."""
    stored = find_resume(config.resume, config.run_dir)
    if stored is None:
        return None
    path, checkpoint, _ = stored
    digests = checkpoint.get(type(datamodule).__qualname__, {}).get("fingerprints")
    images = None if digests is None else changed_images(digests, datamodule.fingerprints())
    free = [f"module.{name}" for name in module.duration_settings]
    if images == []:  # the same files, wherever they are now
        free += [f"datamodule.{key}" for key in config.datamodule if key.endswith("root")]
    refused, allowed = changes(checkpoint["config"], config, free) if "config" in checkpoint else ([], [])
    if refused or images:
        lines = "\n".join(f"  {line}" for line in [*refused, *(images or [])])
        advice = "Resume with the settings of the checkpoint, or start another run by run_name=… resume=null."
        raise UserError(f"cannot resume {path}: settings differ (checkpoint → now)\n{lines}\n{advice}")
    check_resume(path, checkpoint, module)
    for line in allowed:
        log_rank_zero(f"changed since {path}: {line}")
    reason = finish_reason(checkpoint, config, module)
    interrupted = read_manifest(config.run_dir).get("status", "finished") != "finished"  # maybe before its last image grid
    if reason is not None and not interrupted and not dry_run:
        more = f" To extend it: a larger {' or '.join(reason)}." if reason else ""
        rank_zero_only(print)(f"{path}: training already finished after {epochs_done(checkpoint)} epochs.{more}")
        raise Finished(0)
    for _, node, state in _early_stopping(checkpoint, config):  # else Lightning continues with the patience of the checkpoint
        state["patience"] = node.get("patience", 3)
        if reason is None:
            state["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value
    return stored


def find_resume(resume: str | None, run_dir: str | Path) -> StoredCheckpoint | None:
    """The checkpoint that `resume` selects; None for a new run. "auto" selects the last readable file of the run and reports
    each unreadable one in a line; UserError or FileNotFoundError if there is none."""
    if resume is None:
        return None
    if resume != "auto":
        return _load_resumable(resume)
    files = [file for file in Path(run_dir).glob("checkpoints/*.ckpt") if file.is_file()]
    # last.ckpt is a second name of the newest file, unless the process was killed before it got it. Files that are newer
    # than last.ckpt only because the folder was copied hold fewer epochs. The times in a copy without last.ckpt do not show
    # the order.
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"), reverse=True)
    newest, damaged, after_last = None, ErrorCollector(), False
    for file in files:
        with damaged.collect(str(file)):
            stored = _load_resumable(file)
            if newest is None or epochs_done(stored.checkpoint) > epochs_done(newest.checkpoint):
                newest = stored
        after_last = after_last or file.name == "last.ckpt"
        if newest and after_last:
            break
    if newest is None and files:
        reasons = "\n".join(damaged.values())
        raise UserError(f"{run_dir}: no checkpoint to resume from:\n{reasons}\nA new run: run_name=… resume=null.")
    for reason in damaged.values():
        log_rank_zero(f"warning: {reason.removesuffix('.')}. Resuming from {newest.path}.")
    return newest


def check_resume(path: str | Path, checkpoint: Mapping[str, Any], module: LightningModule) -> None:
    """Loads the weights; UserError unless `module` is of the class and the shapes in the checkpoint."""
    try:
        module.on_load_checkpoint(checkpoint)  # refuses another class, and a schedule that changes finished stages
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    stored, now = ({k: tuple(v.shape) for k, v in d.items()} for d in (checkpoint["state_dict"], module.state_dict()))
    for key in sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key)):
        shapes = f"{key} has shape {stored.get(key)} in the checkpoint and {now.get(key)} in the configured module"
        raise UserError(f"{path} does not fit the configured {type(module).__name__}: {shapes}.")
    module.load_state_dict(checkpoint["state_dict"])


def changed_images(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    pairs = {key: (stored.get(key, "none"), now.get(key, "none")) for key in sorted(stored.keys() | now.keys())}
    return [f"files of the image set {key}: {old[:12]} → {new[:12]}" for key, (old, new) in pairs.items() if old != new]


def changes(stored: Mapping[str, Any], config: DictConfig, free: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Lines `key: old → new`: first of keys that have to stay equal, then of keys that may change, to which `free` are added.
    Paths that differ because the run folder does are not listed."""
    now = OmegaConf.to_container(config)
    moved = [(str(stored.get(key)), str(now.get(key))) for key in ("run_dir", "run_name")]
    refused, allowed = [], []
    for key, old, new in _differences(stored, now):
        line = f"{key}: {'null' if old is None else old} → {'null' if new is None else new}"
        if key in MUTABLE_KEYS or key in free:
            allowed.append(line)
        elif key.split(".")[0] not in MUTABLE_GROUPS or key in EPOCH_KEYS:
            refused.append(line)
        elif key in ("run_dir", "run_name") or new not in [str(old).replace(*pair) for pair in moved]:
            allowed.append(line)
    return refused, allowed


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of whatever differs. Module or data of another class are one difference, as is a logger or
    a callback that was switched on or off."""
    if re.fullmatch(r"(logger|callbacks)\.[^.]+", key) and bool(old) != bool(new):
        yield key, "on" if old else "off", "on" if new else "off"
    elif isinstance(old, Mapping) or isinstance(new, Mapping):
        old, new = (value if isinstance(value, Mapping) else {} for value in (old, new))
        is_other = key in ("module", "datamodule") and old.get("class_path") != new.get("class_path")
        for name in ["class_path"] if is_other else dict.fromkeys([*new, *old]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new and key != "resume":
        yield key, old, new


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def finish_reason(checkpoint: Mapping[str, Any], config: DictConfig, module: LightningModule) -> list[str] | None:
    """The keys whose larger values extend a training that is finished at a checkpoint; None if it is not finished."""
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
    """True if nothing is left to train, by the reasons of `finish_reason`."""
    epoch_ended = trainer.is_last_batch and not trainer.sanity_checking
    stopped = [c.stopping_reason for c in trainer.callbacks if isinstance(c, EarlyStopping)]
    return (
        module.finished(trainer.current_epoch)
        or 0 <= (trainer.max_epochs or -1) <= trainer.current_epoch
        or (epoch_ended and 0 <= trainer.max_steps <= trainer.global_step)
        or any(reason is not EarlyStoppingReason.NOT_STOPPED for reason in stopped)
    )


def checkpoint_files(config: DictConfig) -> Iterator[Path]:
    nodes = [node for node in (config.callbacks or {}).values() if node]
    folders = {config.run_dir, f"{config.run_dir}/checkpoints", *(n.dirpath for n in nodes if n.get("dirpath"))}
    for folder in sorted(folders):
        yield from Path(folder).glob("*.ckpt")


def move_results_aside(run_dir: str | Path) -> None:
    if results := [path for name in RESULTS if (path := Path(run_dir) / name).exists()]:
        folder = Path(run_dir) / f"previous_{1 + len([*Path(run_dir).glob('previous_*')])}"
        folder.mkdir()
        for path in results:
            path.rename(folder / path.name)
        names = ", ".join(path.name for path in results)
        log_rank_zero(f"{run_dir} held {names} of a run without a checkpoint; moved to {folder}.")


@rank_zero_only
def log_rank_zero(line: str) -> None:
    print(line, file=sys.stderr)


def _early_stopping(checkpoint: Mapping[str, Any], config: DictConfig) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Dotted key, node and stored state of each configured EarlyStopping that the checkpoint has a state of."""
    for name, node in (config.get("callbacks") or {}).items():
        if node and str(node.get("class_path")).endswith(".EarlyStopping"):
            key = EarlyStopping(node.monitor, mode=node.get("mode", "min")).state_key
            if state := checkpoint.get("callbacks", {}).get(key):
                yield f"callbacks.{name}", node, state


def _load_resumable(path: str | Path) -> StoredCheckpoint:
    stored = load_stored(path)
    if not {"loops", "optimizer_states"} <= stored.checkpoint.keys():
        raise UserError(f"{path}: contains only weights; cannot resume.")
    progress = stored.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    if progress["ready"] != progress["processed"]:
        raise UserError(f"{path}: was saved in the middle of an epoch; only one of the end of an epoch can be resumed.")
    return stored
