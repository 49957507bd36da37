"""Which epoch was the best: quality against diversity, as the training goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from core.errors import UserError
from core.types import PathStr, PositiveInt
from experiment.checkpoint import copy_checkpoint
from metrics.pareto import DIVERSITY, QUALITY, REPEATED, Candidate, Choice, choose, first_key

NEAREST = "val/nearest_psnr_max"  # in dB; looked at where there is no verdict
UNDECIDED = "val/undecided"  # 0 or 1; such epochs take part, and best.json tells how many they are


class BestCheckpoint(Checkpoint):
    """Keeps `front_<epoch>.ckpt` of the epochs that no other beats in quality and diversity at once, and says which is best.

    The rule is `metrics.pareto.choose`: epochs whose samples repeat training images do not count, of the
    others the best gives up least of quality and diversity together. `best.json`, beside the folder of the
    checkpoints, names its file and says why, after every measurement. Files of epochs that are beaten later are removed.
    A run that was cut off in between makes up for it when it goes on from that epoch.

    With `patience` the training ends once the best epoch has stayed the same for so many measurements, of the last stage
    where there are several. A measurement is a validation in which both values were logged; epochs without samples, or
    between two measurements by `callbacks.metrics.every_n_epochs`, do not count.

    Args:
        dirpath: folder of the files.
        quality: logged key, low is good; null: the first of val/kid, val/kd_…, val/fid, val/fd_…, val/sifid_…, val/sifd_….
        diversity: logged key, high is good; null: val/pixel_diversity.
        copies: logged key of the constraint, by default the verdict of the measurement, 0 or 1. Where it is not logged,
            val/nearest_psnr_max above 30 dB is copying; without that, too, a warning says that nothing looks at it.
        copies_above: its highest value that is still no repetition.
        patience: measurements; null: the training is not ended.
    Raises ValueError for a patience below 1.
    """

    def __init__(
        self,
        dirpath: PathStr,
        quality: str | None = None,
        diversity: str | None = None,
        copies: str = "val/copies",
        copies_above: float = 0.5,
        patience: PositiveInt | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise UserError(f"patience={patience}: at least 1 measurement is needed, or null")
        self.folder, self.patience = Path(dirpath), patience
        self.quality, self.diversity, self.copies, self.copies_above = quality, diversity, copies, copies_above
        self.epochs: list[int] = []
        self.measured: list[Candidate] = []
        self.best_epoch: int | None = None
        self.unchanged = 0
        self._logged_before: dict[str, Tensor] = {}
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._patience_is_over():  # a finished run that is resumed would train one epoch more
            trainer.should_stop = True
        if trainer.ckpt_path and trainer.is_global_zero and self.epochs[-1:] == [trainer.current_epoch - 1]:
            choice, file = self.choice(), self._file(self.epochs[-1])
            if self.epochs[-1] in self._front(choice) and not file.exists():
                copy_checkpoint(trainer.ckpt_path, file)
            self._publish(choice)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged_before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        candidate = self._candidate(trainer)
        if candidate is None or trainer.current_epoch in self.epochs:
            return
        self.epochs.append(trainer.current_epoch)
        self.measured.append(candidate)
        choice = self.choice()
        best = None if choice.best is None else self.epochs[choice.best]
        same = best == self.best_epoch and best is not None and _in_last_stage(pl_module)
        self.unchanged = self.unchanged + 1 if same else 0
        self.best_epoch = best
        if self._patience_is_over():
            rank_zero_info(f"BestCheckpoint: no better epoch in {self.patience} measurements: training ends. {choice.reason}")
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.epochs or self.epochs[-1] != trainer.current_epoch:
            return
        choice = self.choice()
        if trainer.current_epoch in self._front(choice):
            file = self._file(trainer.current_epoch)
            trainer.save_checkpoint(file, weights_only=False)  # on all ranks: a sharded model is gathered for it
        if trainer.is_global_zero:
            self._publish(choice)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epochs:
            rank_zero_info(f"Best checkpoint: {self.choice().reason}")
        else:
            logged = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/"))) or "nothing"
            rank_zero_warn(f"BestCheckpoint: no epoch had both a quality and a diversity; of val/… there was {logged}")

    def choice(self) -> Choice:
        """Of the epochs so far; positions count measurements."""
        names = [key or default for key, default in ((self.quality, "quality"), (self.diversity, "diversity"))]
        return choose(self.measured, *(name.removeprefix("val/") for name in names))

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": list(self.epochs),
            "measured": [list(candidate) for candidate in self.measured],
            "keys": [self.quality, self.diversity],
            "best_epoch": self.best_epoch,
            "unchanged": self.unchanged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
        self.measured = [Candidate(*row) for row in state_dict["measured"]]
        self.quality, self.diversity = state_dict["keys"]
        self.best_epoch, self.unchanged = state_dict["best_epoch"], state_dict["unchanged"]

    def _patience_is_over(self) -> bool:
        return self.patience is not None and self.unchanged >= self.patience

    def _candidate(self, trainer: Trainer) -> Candidate | None:
        """The epoch's values, None without both; the keys that the first one has are kept."""
        logged = self._logged_now(trainer)
        found = {key.removeprefix("val/"): key for key in logged if key.startswith("val/")}
        quality = self.quality or found.get(first_key(QUALITY, found))
        diversity = self.diversity or found.get(first_key(DIVERSITY, found))
        if quality not in logged or diversity not in logged:
            return None
        self.quality, self.diversity = quality, diversity
        open_verdict = logged.get(UNDECIDED, 0.0) > 0.5
        name = f"epoch {trainer.current_epoch}"
        return Candidate(name, logged[quality], logged[diversity], self._repeats(logged), open_verdict)

    def _logged_now(self, trainer: Trainer) -> dict[str, float]:
        """What this validation logged. `callback_metrics` keeps older values, too, but as the tensors they were before."""
        before, now = self._logged_before, trainer.callback_metrics
        return {key: float(value) for key, value in now.items() if value is not before.get(key)}

    def _repeats(self, logged: Mapping[str, float]) -> bool:
        if self.copies in logged:
            return logged[self.copies] > self.copies_above
        if NEAREST not in logged and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"BestCheckpoint: neither {self.copies} nor {NEAREST} is logged, so epochs that repeat training images count"
            )
        return logged.get(NEAREST, float("-inf")) > REPEATED

    def _file(self, epoch: int) -> Path:
        return self.folder / f"front_{epoch:04d}.ckpt"

    def _front(self, choice: Choice) -> set[int]:
        return {self.epochs[i] for i in choice.front}

    def _publish(self, choice: Choice) -> None:
        """Writes `best.json`, then removes the files of beaten epochs, so that it never names a file that is gone."""
        content = {
            "best_epoch": self.best_epoch,
            "checkpoint": None if self.best_epoch is None else str(self._file(self.best_epoch).name),
            "why": choice.reason,
            "quality": self.quality,
            "diversity": self.diversity,
            "front": [self.epochs[i] for i in choice.front],
            "measured": [row._asdict() for row in self.measured],
        }
        file = self.folder.parent / "best.json"
        draft = file.with_name("best.json.tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, file)
        for epoch in set(self.epochs) - self._front(choice):
            self._file(epoch).unlink(missing_ok=True)


def _in_last_stage(module: LightningModule) -> bool:
    return getattr(module, "stage", 0) + 1 >= (getattr(module, "num_stages", None) or 1)
