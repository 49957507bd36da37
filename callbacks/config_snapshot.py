"""Stores the configuration of a run in its folder, in every checkpoint and at the loggers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf


class ConfigSnapshot(Callback):
    """Writes `config.yaml` when training begins, adds "config" to checkpoints, hands the values to the loggers once.

    Checkpoints get "data", too: number of images and fingerprint of every set; and "roots": the absolute path of each root.

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
        checkpoint["roots"] = trainer.datamodule.roots() if hasattr(trainer.datamodule, "roots") else {}
