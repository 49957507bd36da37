"""Stores the configuration of a run in its folder, in every checkpoint and at the loggers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf


class ConfigSnapshot(Callback):
    """Writes `config.yaml` when training begins, hands the values to the loggers once, and adds to checkpoints "config", in
    plain containers (P 8.2), "data", number and fingerprint of every set, and "roots", their absolute paths."""

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
        checkpoint["roots"] = trainer.datamodule.roots() if hasattr(trainer.datamodule, "roots") else {}
