"""Writes the checkpoints of a run, keeps some of them and uploads some to W&B."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field

from callbacks.stages import ends_stage
from core.errors import UserError
from core.files import atomic_link
from core.types import PathStr, PositiveInt
from experiment.checkpoint import read_checkpoint
from experiment.manifest import read_manifest
from modules.ops.weights import file_sha256

UPLOADS = ("last", "best", "stages")
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state


class StageCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with the ends of stages and of the training, which it may leave out.

    `last.ckpt` is always the newest state, whatever is monitored; `stage_<n>.ckpt` is the end of stage n and stays;
    `epoch_<n>.ckpt` are the others that are kept, counted from epoch 0. Each epoch is written once: its further names are
    hard links, or copies where the file system has none. A run that was cut off between two names of an epoch makes up for
    it when it is resumed from that epoch.

    The state in a checkpoint holds file names relative to `dirpath`, so that a run can be moved and resumed; those whose files
    are not there, as in a run that was begun from another one's checkpoint, are forgotten.

    With `upload`, checkpoints become versions of the W&B artifact `model-<id of the run>`, with the aliases last, best,
    stage-<n> and sha256-<first 16 digits of the file's>. By the last one the artifact of a parent in the run manifest's
    lineage is found and marked as used. Offline the uploads wait in the W&B folder for `wandb sync`, and the lineage is
    in the run's config only.

    Args:
        dirpath: folder of the files.
        every_n_epochs: epochs between two checkpoints; the ends of stages and of the training are written in any case.
        save_top_k: how many epochs stay beside the last one and the ends of stages: 1 is the newest, k the k best by
            `monitor`; 0 none; -1 all, and the ends of stages get no name of their own.
        monitor: a logged key, such as val/kd_mobilenet_v2; epochs before its first value are not compared.
        mode: whether a low (min) or a high (max) value of it is good.
        save_on_exception: also within an epoch, from where a training cannot be resumed exactly.
        upload: any of last (when training ends), best (then, too) and stages (as they end).
    Raises UserError for values out of range and unknown names.
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
        if self._resumed_here(trainer):
            self._complete_epoch(trainer, pl_module)
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
        self._last_checkpoint_saved = ""  # of this epoch
        if compared := self.monitor is None or self.monitor in values:
            self._save_topk_checkpoint(trainer, values)
        if stage_ends:
            file = self._last_checkpoint_saved
            if self.save_top_k != -1 or not compared:
                self._save_or_link(trainer, file := self._stage_file(pl_module.stage))
            self._upload(trainer, "stages", f"stage-{pl_module.stage}", file)
        self._save_last_checkpoint(trainer, values)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch and not self._resumed_here(trainer):
            super().on_train_end(trainer, pl_module)  # writes last.ckpt where no optimizer steps (P 6.11)
        self._upload(trainer, "last", "last", self.last_model_path)
        self._upload(trainer, "best", "best", self.best_model_path)
        if self.monitor is not None and not self.best_model_path:
            logged = ", ".join(sorted(key for key in trainer.callback_metrics if "/" in key)) or "nothing"
            rank_zero_warn(f"monitor: {self.monitor} was never logged, so no checkpoint is the best; logged was {logged}")

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        best = {Path(path).name: score for path, score in self.best_k_models.items()}
        names = {key: Path(state[key]).name for key in PATHS}
        return {**state, **names, "best_k_models": best, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        files = {key: self._existing(state_dict[key]) for key in PATHS}
        best = {self._existing(name): score for name, score in state_dict["best_k_models"].items() if self._existing(name)}
        super().load_state_dict({**state_dict, **files, "best_k_models": best, "dirpath": self.dirpath})

    def _existing(self, name: str) -> str:
        """Path of a file in this folder; an empty text if it is not there."""
        path = Path(self.dirpath) / Path(name).name
        return str(path) if path.is_file() else ""

    def _stage_file(self, stage: int) -> str:
        return str(Path(self.dirpath) / f"stage_{stage}.ckpt")

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        self.last_model_path = str(Path(self.dirpath) / "last.ckpt")
        self._save_or_link(trainer, self.last_model_path)

    def _save_or_link(self, trainer: Trainer, path: str) -> None:
        """Saves the state, or adds a name to the file that holds it since the epoch's end."""
        if not self._last_checkpoint_saved:
            self._save_checkpoint(trainer, path)
        elif trainer.is_global_zero:
            atomic_link(self._last_checkpoint_saved, path)

    def _resumed_here(self, trainer: Trainer) -> bool:
        """True if the training was resumed from a file in this folder."""
        return trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == Path(self.dirpath).resolve()

    def _complete_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """Does what a kill has prevented: the names of this epoch, the end of the older one, the upload of a stage."""
        atomic_link(trainer.ckpt_path, Path(self.dirpath) / "last.ckpt")
        epoch = trainer.current_epoch - 1
        if self.monitor is None and self.save_top_k == 1:  # a kill may have come before the older epoch was removed
            for file in Path(self.dirpath).glob("epoch_*.ckpt"):
                if file.stem < f"epoch_{epoch:04d}":
                    file.unlink()
        if self.save_top_k == -1 or not ends_stage(module, epoch):
            return
        stage = module.stage_at(epoch)
        file = self._stage_file(stage)
        linked = Path(file).is_file() and Path(file).samefile(trainer.ckpt_path)
        if not linked and _epoch_of(file) != epoch:  # missing, or of a time when the stage was shorter
            atomic_link(trainer.ckpt_path, file)
            self._upload(trainer, "stages", f"stage-{stage}", file)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning's own version never removes the file that a training was resumed from."""
        return previous != current and Path(self.dirpath).absolute() in Path(previous).absolute().parents

    def _upload(self, trainer: Trainer, kind: str, alias: str, path: str) -> None:
        """Logs a file as artifact if `upload` has its kind."""
        if kind not in self.upload or not path or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                aliases = [alias, _digest_alias(file_sha256(path))]
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


def _epoch_of(file: str) -> int | None:
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
        name = f"model-{parent['wandb_id']}:{_digest_alias(parent['sha256'])}"
        try:
            experiment.use_artifact(name, type="model")
        except Exception as error:  # of many types; a parent that was never uploaded must not end the training
            rank_zero_warn(f"W&B does not know {parent['path']} as {name} ({error}); its lineage is in run.json only")


def _digest_alias(sha256: str) -> str:
    return f"sha256-{sha256[:16]}"
