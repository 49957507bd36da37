"""Which checkpoints a run writes, which of them it keeps, and which W&B gets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field

from callbacks.run_manifest import file_sha256, read_manifest
from callbacks.stages import ends_stage
from core.errors import UserError
from core.types import PathStr, PositiveInt
from experiment.checkpoint import copy_checkpoint, read_checkpoint

UPLOADS = ("last", "best", "stages")


class StageCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with the ends of stages and of the training, which it may leave out.

    `last.ckpt` is always the newest state, whatever is monitored; `stage_<n>.ckpt` is the end of stage n and stays;
    `epoch_<n>.ckpt` are the others that are kept, counted from epoch 0, and a second copy of the newest one. A run that was
    cut off before it wrote the end of a stage makes up for it when it goes on from that epoch.

    With `upload`, checkpoints become versions of the W&B artifact `model-<id of the run>`, with the aliases last, best,
    stage-<n> and sha256-<first 16 digits of the file's>. By the last one the artifact of a parent in the run card's
    lineage is found and marked as used. Offline the uploads wait in the W&B folder for `wandb sync`, and the lineage is
    in the run's config only.

    Args:
        dirpath: folder of the files.
        every_n_epochs: epochs between two checkpoints; the ends of stages and of the training are written in any case.
        save_top_k: how many epochs stay beside the last one and the ends of stages: 1 is the newest, k the k best by
            `monitor`; 0 none; -1 all, and the ends of stages need no file of their own.
        monitor: a logged key, such as val/kd_mobilenet_v2; epochs before its first value are not compared.
        mode: whether a low (min) or a high (max) value of it is good.
        save_on_exception: also within an epoch, from where a training does not go on exactly.
        upload: any of last (when training ends), best (then, too) and stages (as they end).
    Raises ValueError for numbers and names that say nothing.
    """

    def __init__(
        self,
        dirpath: PathStr,
        every_n_epochs: PositiveInt = 1,
        save_top_k: Annotated[int, Field(ge=-1)] = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_on_exception: bool = False,
        upload: Sequence[str] = (),
    ) -> None:
        _check(every_n_epochs, save_top_k, monitor, mode, upload)
        self.upload = tuple(upload)
        super().__init__(
            dirpath, "epoch_{epoch:04d}", monitor, mode=mode, save_top_k=save_top_k, save_last=True,
            every_n_epochs=every_n_epochs, save_on_exception=save_on_exception, save_on_train_epoch_end=True,
            auto_insert_metric_name=False,  # else the name would hold "epoch=", which the command line takes for a key
            enable_version_counter=False,  # a resumed run replaces last.ckpt, no last-v1.ckpt beside it
        )  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._complete_stage(trainer, pl_module)
        if self.upload:
            parents = read_manifest(trainer.default_root_dir).get("lineage", [])
            for experiment in _online(trainer):
                _use(experiment, [parent for parent in parents if parent["wandb_id"] not in (None, experiment.id)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, stage_ends = trainer.current_epoch, ends_stage(pl_module, trainer.current_epoch)
        due = (epoch + 1) % self._every_n_epochs == 0 or stage_ends or trainer.should_stop or epoch + 1 == trainer.max_epochs
        if not due or self._should_skip_saving_checkpoint(trainer):
            return
        values = self._monitor_candidates(trainer)
        if compared := self.monitor is None or self.monitor in values:
            self._save_topk_checkpoint(trainer, values)
        if stage_ends:
            if self.save_top_k != -1 or not compared:
                self._save_checkpoint(trainer, str(self._stage_file(pl_module.stage)))
            self._offer(trainer, "stages", f"stage-{pl_module.stage}", self._last_checkpoint_saved)
        self._save_last_checkpoint(trainer, values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._offer(trainer, "last", "last", self.last_model_path)
        self._offer(trainer, "best", "best", self.best_model_path)
        if self.monitor is not None and not self.best_model_path:
            logged = ", ".join(sorted(key for key in trainer.callback_metrics if "/" in key)) or "nothing"
            rank_zero_warn(f"monitor: {self.monitor} was never logged, so no checkpoint is the best; logged was {logged}")

    def _stage_file(self, stage: int) -> Path:
        return Path(self.dirpath) / f"stage_{stage}.ckpt"

    def _complete_stage(self, trainer: Trainer, module: LightningModule) -> None:
        """After a kill between the two files of an epoch that ends a stage: the other file, and its upload."""
        source, epoch = trainer.ckpt_path, trainer.current_epoch - 1
        own = source is not None and Path(source).resolve().parent == Path(self.dirpath).resolve()
        if not own or self.save_top_k == -1 or not ends_stage(module, epoch):
            return
        stage = module.stage_at(epoch)
        file = self._stage_file(stage)
        if _epoch_of(file) != epoch:  # missing, or of a time when the stage was shorter
            copy_checkpoint(source, file)
            self._offer(trainer, "stages", f"stage-{stage}", str(file))

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning's own keeps for ever the file that a training was resumed from."""
        return previous != current and Path(self.dirpath).absolute() in Path(previous).absolute().parents

    def _offer(self, trainer: Trainer, kind: str, alias: str, path: str) -> None:
        """Logs a file as artifact if its kind is to be uploaded."""
        if kind not in self.upload or not path or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                aliases = [alias, _content_alias(file_sha256(path))]
                try:
                    logger.experiment.log_artifact(path, name=f"model-{logger.version}", type="model", aliases=aliases)
                except Exception as error:  # of many types; a server that is away must not end the training
                    rank_zero_warn(f"{path} was not uploaded to W&B: {error}")


def _check(every_n_epochs: int, save_top_k: int, monitor: str | None, mode: str, upload: Sequence[str]) -> None:
    if every_n_epochs < 1:
        raise UserError(f"every_n_epochs={every_n_epochs}: at least 1 is needed")
    if save_top_k < -1 or (monitor is None and save_top_k > 1):
        allowed = "-1 (all), 0 or 1 (the newest)" if monitor is None else "-1 (all), 0 or more"
        raise UserError(f"save_top_k={save_top_k} with monitor={monitor}: it has to be {allowed}")
    if mode not in ("min", "max"):
        raise UserError(f"mode={mode}: it has to be min or max")
    for name in upload:
        if name not in UPLOADS:
            raise UserError(f"upload: there is no {name}, only {', '.join(UPLOADS)}")
    if "best" in upload and (monitor is None or save_top_k == 0):
        raise UserError("upload: best needs a monitor, the logged key that it is the best of, and save_top_k other than 0")


def _epoch_of(file: Path) -> int | None:
    """The epoch that a checkpoint was written in; None for no file and for a damaged one."""
    try:
        return read_checkpoint(file)["epoch"]
    except (OSError, ValueError):
        return None


def _online(trainer: Trainer) -> list[Any]:
    """The W&B runs that talk with a server."""
    runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return [run for run in runs if not run.offline and not run.disabled]


def _use(experiment: Any, parents: Sequence[dict[str, Any]]) -> None:
    for parent in parents:
        name = f"model-{parent['wandb_id']}:{_content_alias(parent['sha256'])}"
        try:
            experiment.use_artifact(name, type="model")
        except Exception as error:  # of many types; a parent that was never uploaded must not end the training
            rank_zero_warn(f"W&B does not know {parent['path']} as {name} ({error}); its lineage is in run.json only")


def _content_alias(sha256: str) -> str:
    return f"sha256-{sha256[:16]}"
