"""The configuration of a run, kept beside its results: in the run folder, in every checkpoint and at the loggers."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf


class ConfigSnapshot(Callback):
    """Writes `config.yaml` when training begins, adds "config" to checkpoints, hands the values to the loggers once.

    Checkpoints get "data", too: number of images and fingerprint of every set.

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
        sets = trainer.datamodule.sets() if hasattr(trainer.datamodule, "sets") else {}
        checkpoint["data"] = {key: {"count": len(s.files), "fingerprint": s.fingerprint} for key, s in sets.items()}


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
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Loading it would run code ({wanted[1]})" if wanted else "It is not a checkpoint, or loading it would run code"
        raise ValueError(f"{path}: refused. {what}; a checkpoint holds tensors and plain values only.") from None
    except Exception:  # torch raises nearly anything for files that are something else
        raise ValueError(f"{path}: not a checkpoint, or a damaged one.") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path}: not a checkpoint of this project: it has no state_dict.")
    return content


def _check_archive(path: Path) -> None:
    """Raises BadZipFile for a zip file whose sums do not agree, which torch does not compare, or that is packed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)  # torch writes none, but would unpack it
        if packed or sum(part.file_size for part in parts) > path.stat().st_size or archive.testzip():
            raise zipfile.BadZipFile
