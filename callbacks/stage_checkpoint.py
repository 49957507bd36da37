"""Writes the checkpoints of a run, keeps some of them and uploads some to W&B."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from pydantic import Field

from core.errors import UserError
from core.files import atomic_link
from core.types import PathStr, PositiveInt
from experiment.manifest import read_manifest
from modules.base import GenerativeModule
from modules.ops.weights import file_sha256

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state


class StageCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with the ends of stages and of the training, which it may leave out.

    `last.ckpt` is always the newest state; `stage_<n>.ckpt` is the end of stage n and stays; `epoch_<n>.ckpt` are the others
    that are kept. Each epoch is written once: its further names are hard links, or copies where the file system has none. A
    run that was cut off between two names of an epoch makes up for it when it is resumed from that epoch. Files of the
    state are looked up by name in `dirpath`, so that a run can be moved.

    With `upload`, checkpoints become versions of the W&B artifact `model-<id of the run>`, with the aliases last, best,
    stage-<n> and sha256-<first 16 digits>, by which parents in the run manifest's lineage are found and marked as used.
    With save_top_k=-1 the ends of stages get no name of their own. Epochs before the first value of `monitor` are not compared.
    """

    def __init__(
        self,
        dirpath: PathStr,
        every_n_epochs: PositiveInt = 1,
        save_top_k: Annotated[int, Field(ge=-1)] = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_on_exception: bool = False,
        upload: Sequence[Literal["last", "best", "stages"]] = (),
    ) -> None:
        if monitor is None and save_top_k > 1:
            raise UserError(f"save_top_k={save_top_k} with monitor={monitor}: it has to be -1 (all), 0 or 1 (the newest)")
        if "best" in upload and (monitor is None or save_top_k == 0):
            raise UserError("upload: best needs a monitor, the logged key that it is the best of, and save_top_k other than 0")
        self.upload = upload
        super().__init__(
            dirpath, "epoch_{epoch:04d}", monitor, mode=mode, save_top_k=save_top_k, save_last=True,
            every_n_epochs=every_n_epochs, save_on_exception=save_on_exception, save_on_train_epoch_end=True,
            auto_insert_metric_name=False,  # else the name would hold "epoch=", which the command line takes for a key
            enable_version_counter=False,  # a resumed run replaces last.ckpt, no last-v1.ckpt beside it
        )  # fmt: skip

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if self._resumed_here(trainer):
            self._complete_epoch(trainer, pl_module)
        for run in _wandb_runs(trainer) if self.upload else ():
            for parent in read_manifest(trainer.default_root_dir).get("lineage", []):
                if not run.offline and not run.disabled and parent["wandb_id"] not in (None, run.id):
                    _use_artifact(run, parent)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        epoch, stage_ends = trainer.current_epoch, pl_module.ends_stage(trainer.current_epoch)
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

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        if trainer.is_last_batch and not self._resumed_here(trainer):
            super().on_train_end(trainer, pl_module)  # writes last.ckpt where no optimizer steps (P 6.11)
        self._upload(trainer, "last", "last", self.last_model_path)
        self._upload(trainer, "best", "best", self.best_model_path)
        if self.monitor is not None and not self.best_model_path:
            logged = ", ".join(sorted(key for key in trainer.callback_metrics if "/" in key)) or "nothing"
            rank_zero_warn(f"monitor: {self.monitor} was never logged, so no checkpoint is the best; logged was {logged}")

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
        if not self._last_checkpoint_saved:
            self._save_checkpoint(trainer, path)
        elif trainer.is_global_zero:
            atomic_link(self._last_checkpoint_saved, path)

    def _resumed_here(self, trainer: Trainer) -> bool:
        return trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == Path(self.dirpath).resolve()

    def _complete_epoch(self, trainer: Trainer, module: GenerativeModule) -> None:
        """Makes up for a kill during saving: links this epoch's file, removes the older one, uploads a stage's."""
        atomic_link(trainer.ckpt_path, Path(self.dirpath) / "last.ckpt")
        epoch = trainer.current_epoch - 1
        if self.monitor is None and self.save_top_k == 1:  # a kill may have come before the older epoch was removed
            for file in Path(self.dirpath).glob("epoch_*.ckpt"):
                if file.stem < f"epoch_{epoch:04d}":
                    file.unlink()
        if self.save_top_k == -1 or not module.ends_stage(epoch):
            return
        stage = module.stage_at(epoch)
        file = self._stage_file(stage)
        if not (Path(file).is_file() and Path(file).samefile(trainer.ckpt_path)):  # missing, or of a time when it was shorter
            atomic_link(trainer.ckpt_path, file)
            self._upload(trainer, "stages", f"stage-{stage}", file)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning's own never removes the file that a training was resumed from."""
        return previous != current and Path(self.dirpath).absolute() in Path(previous).absolute().parents

    def _upload(self, trainer: Trainer, kind: str, alias: str, path: str) -> None:
        if kind not in self.upload or not path or not trainer.is_global_zero:
            return
        for run in _wandb_runs(trainer):
            try:
                aliases = [alias, _digest_alias(file_sha256(path))]
                run.log_artifact(path, name=f"model-{run.id}", type="model", aliases=aliases)
            except Exception as error:  # of many types; a server that is away must not end the training
                rank_zero_warn(f"{path} was not uploaded to W&B: {error}")


def _wandb_runs(trainer: Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _use_artifact(run: Any, parent: dict[str, Any]) -> None:
    name = f"model-{parent['wandb_id']}:{_digest_alias(parent['sha256'])}"
    try:
        run.use_artifact(name, type="model")
    except Exception as error:  # of many types; a parent that was never uploaded must not end the training
        rank_zero_warn(f"W&B does not know {parent['path']} as {name} ({error}); its lineage is in run.json only")


def _digest_alias(sha256: str) -> str:
    return f"sha256-{sha256[:16]}"
