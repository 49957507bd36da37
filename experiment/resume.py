"""From `resume` to the checkpoint to go on from, or to the reason why there is none."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from callbacks.run_manifest import read_manifest
from core.errors import UserError
from experiment.checkpoint import read_checkpoint
from experiment.config_changes import Finished, changes


def resume_point(
    config: DictConfig, module: LightningModule, datamodule: LightningDataModule, dry_run: bool = False
) -> str | None:
    """The checkpoint that `config.resume` means, after everything that could keep the training from going on with it.

    Loads its weights into `module`. Settings that changed and may are told in a line each. Raises ValueError or
    FileNotFoundError with a message for the user, and Finished if nothing is left to train, unless `dry_run`. `datamodule`
    has been set up.
    """
    found = find_resume(config.resume, config.run_dir)
    if found is None:
        return None
    path, content = found
    images = changed_images(content, datamodule)
    free = [f"module.{name}" for name in module.duration_settings]
    if images == []:  # the same files, wherever they are now
        free += [f"datamodule.{key}" for key in config.datamodule if key.endswith("root")]
    refused, allowed = changes(content.get("config", {}), config, free) if "config" in content else ([], [])
    if refused or images:
        lines = "\n".join(f"  {line}" for line in [*refused, *(images or [])])
        raise UserError(
            f"{path} is of a training with other settings, in the file → now:\n{lines}\n"
            f"A run goes on with the settings that it was begun with; another one is begun by run_name=… resume=null."
        )
    check_resume(path, content, module)
    for line in allowed:
        tell(f"changed since {path}: {line}")
    keys = ended_by(content, config, module)
    if keys is not None and was_ended(config.run_dir) and not dry_run:
        more = f" To extend it: a larger {' or '.join(keys)}." if keys else ""
        done = f"{path} is the end of a finished training of {epochs_done(content)} epochs"
        end = Finished(f"{done}; nothing is left to do.{more}")
        rank_zero_only(print)(end.message)
        raise end
    return path


def find_resume(resume: str | None, run_dir: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Path and content of the checkpoint that `resume` means; None for a run that begins.

    "auto" means the last readable file of the run; each one that is passed over is reported in a line. Errors (ValueError,
    FileNotFoundError): a given file that no training can go on from; with "auto", when all files are such.
    """
    if resume is None:
        return None
    if resume != "auto":
        return resume, _read(resume)
    files = sorted(Path(run_dir).glob("checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    # last.ckpt comes first, unless a kill came between it and the file of the same epoch. What is newer than last.ckpt
    # because the folder was copied holds fewer epochs.
    needed = next((i for i, file in enumerate(files) if file.name == "last.ckpt"), 0)
    found, damaged = None, []
    for i, file in enumerate(files):
        if found and i > needed:
            break
        try:
            content = _read(file)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if found is None or epochs_done(content) > epochs_done(found[1]):
            found = str(file), content
    if found is None and files:
        reasons = "\n".join(damaged)
        raise UserError(f"{run_dir} holds no checkpoint to go on from:\n{reasons}\nA new run: run_name=… resume=null.")
    for reason in damaged:
        tell(f"warning: {reason} Going on from {found[0]}.")
    return found


def check_resume(path: str | Path, content: Mapping[str, Any], module: LightningModule) -> None:
    """ValueError unless `module` is of the class and the shapes in the checkpoint. Loads its weights."""
    try:
        module.on_load_checkpoint(content)  # refuses the file of another class, or a past that was another
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    stored, own = ({k: tuple(v.shape) for k, v in d.items()} for d in (content["state_dict"], module.state_dict()))
    for key in sorted(stored.keys() | own.keys()):
        if stored.get(key) != own.get(key):
            raise UserError(
                f"{path} does not fit the configured {type(module).__name__}: {key} has shape {stored.get(key)} in the "
                f"file and {own.get(key)} here. A run goes on with the settings that it was begun with."
            )
    module.load_state_dict(content["state_dict"])


def changed_images(content: Mapping[str, Any], datamodule: LightningDataModule) -> list[str] | None:
    """A line for each image set whose files are not those of the checkpoint; None if it does not tell which they were."""
    then = content.get(type(datamodule).__qualname__, {}).get("fingerprints")
    if then is None:
        return None
    now = datamodule.fingerprints()
    pairs = {key: (then.get(key, "none"), now.get(key, "none")) for key in sorted(then.keys() | now.keys())}
    return [f"files of the image set {key}: {old[:12]} → {new[:12]}" for key, (old, new) in pairs.items() if old != new]


def epochs_done(content: Mapping[str, Any]) -> int:
    """Whole epochs behind a checkpoint."""
    return content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def ended_by(content: Mapping[str, Any], config: DictConfig, module: LightningModule) -> list[str] | None:
    """The keys whose larger values extend the training that a checkpoint is the end of; None if it is not the end."""
    epochs = epochs_done(content)
    if module.finished(epochs):
        return [f"module.{name}" for name in module.duration_settings]
    if 0 <= config.trainer.get("max_epochs", -1) <= epochs:
        return ["trainer.max_epochs"]
    unchanged = content.get("callbacks", {}).get("BestCheckpoint", {}).get("unchanged", 0)
    nodes = {key: node for key, node in (config.get("callbacks") or {}).items() if node and node.get("patience")}
    watching = {key: node for key, node in nodes.items() if str(node.get("class_path")).endswith(".BestCheckpoint")}
    return [f"callbacks.{key}.patience" for key, node in watching.items() if unchanged >= node.patience] or None


def was_ended(run_dir: str | Path) -> bool:
    """False if the run card tells that the run was cut off, which may be between its last checkpoint and its last picture."""
    return read_manifest(run_dir).get("status", "finished") == "finished"


@rank_zero_only
def tell(line: str) -> None:
    """Prints a line on rank 0, beside what the command answers."""
    print(line, file=sys.stderr)


def _read(path: str | Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if "loops" not in content or "optimizer_states" not in content:
        raise UserError(f"{path}: holds weights only, a training cannot go on from it.")
    progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    if progress["ready"] != progress["processed"]:
        raise UserError(f"{path}: was written within an epoch; a training goes on exactly from the end of one only.")
    return content
