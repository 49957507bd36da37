"""The configuration of a run, kept beside its results: in the run folder, in every checkpoint and at the loggers."""

import pickle
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf


class ConfigSnapshot(Callback):
    """Writes `config.yaml` when training begins, adds "config" to checkpoints, hands the values to the loggers once.

    Args:
        config: the resolved configuration, a DictConfig or plain containers; kept as plain containers, which the safe
            loader accepts (P 8.2).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(config), resolve=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(self.config), folder / "config.yaml")
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint on the CPU, by the safe loader only.

    FileNotFoundError names the nearest file; ValueError for a file that is no checkpoint or that holds code.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        close = get_close_matches(path.name, beside, n=1, cutoff=0) or ["no checkpoint at all"]
        raise FileNotFoundError(f"{path}: no such checkpoint; {path.parent} has {close[0]}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path}: refused. Loading it would run code{f' ({wanted[1]})' if wanted else ''}; a checkpoint holds tensors "
            f"and plain values only."
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, IndexError):  # what torch raises for files that are something else
        raise ValueError(f"{path}: not a checkpoint, or a damaged one.") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path}: not a checkpoint of this project: it has no state_dict.")
    return content


def find_resume(resume: str | None, run_dir: str | Path) -> str | None:
    """The checkpoint that `resume` means: itself if it is a path; for "auto" the newest of the run, or None.

    SLURM's requeue signal leaves its file outside of checkpoints/ (P 7.6).
    """
    if resume != "auto":
        return resume
    found = [*Path(run_dir).glob("checkpoints/last.ckpt"), *Path(run_dir).glob("hpc_ckpt_*.ckpt")]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def check_resume(module: LightningModule, path: str | Path) -> None:
    """Raises ValueError or FileNotFoundError unless a training of `module` can go on from the file."""
    content = read_checkpoint(path)
    if "loops" not in content or "optimizer_states" not in content:
        raise ValueError(f"{path}: holds weights only, a training cannot go on from it.")
    try:
        module.on_load_checkpoint(content)  # refuses the file of another class
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    stored, own = ({k: tuple(v.shape) for k, v in d.items()} for d in (content["state_dict"], module.state_dict()))
    for key in sorted(stored.keys() | own.keys()):
        if stored.get(key) != own.get(key):
            raise ValueError(
                f"{path} does not fit the configured {type(module).__name__}: {key} has shape {stored.get(key)} in the "
                f"file and {own.get(key)} here. A run goes on with the settings that it was begun with."
            )
