"""Pictures of what a method makes while it trains."""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor

from callbacks.stages import ends_stage
from core.errors import UserError
from core.files import DRAFT
from modules.base import sampling_mode
from modules.ops.images import image_grid, to_uint8


class Picture(NamedTuple):
    kind: str
    pixels: np.ndarray  # uint8 [H, W, 3]
    file_bytes: int


class Pending(NamedTuple):
    """An epoch that has ended and is not drawn yet."""

    epoch: int
    in_any_case: bool
    restored: bool = False  # from a checkpoint: a run that was cut off may have drawn it after that


class ImageGrid(Callback):
    """One picture of each kind at epoch ends, as PNG in `<run folder>/images`; some of them at loggers that take images.

    Kinds: `samples`, as soon as they mean something; `reconstruction` (above a training image, below what the module
    makes of it); `conditional` (above a side image, below the module's rendering of it); each where the module can.

    Only rank 0 draws: nothing here waits for other ranks. The random state of training is left as it was, so that a run
    gives the same numbers with and without pictures. A run that was cut off between a checkpoint and its pictures draws
    them when it is resumed.

    Loggers get the first pictures and then ever fewer, those of the ends of stages and of the training, and no more than
    the budget, which counts over all resumes of a run and is kept open for the last pictures.

    Args:
        num_images: images in a picture; half of them, at most, are given ones in the two kinds of pairs.
        every_n_epochs: between two drawings; the last epoch and those that end a stage are drawn in any case.
        seed: of the random draws, the same at all epochs, so that pictures can be compared.
        log_growth: drawing number n is followed at the loggers by the one of number log_growth * n, rounded up; 1 for all.
        max_pictures, max_megabytes: the budget, the latter in 10^6 bytes of PNG; null for no limit, 0 to log none.
    """

    def __init__(
        self,
        num_images: int = 16,
        every_n_epochs: int = 1,
        seed: int = 0,
        log_growth: float = 1.25,
        max_pictures: int | None = 300,
        max_megabytes: float | None = 200.0,
    ) -> None:
        if num_images < 2 or every_n_epochs < 1:
            raise UserError(f"num_images={num_images}, every_n_epochs={every_n_epochs}: at least 2 and 1 are needed")
        for name, value, least in (
            ("log_growth", log_growth, 1),
            ("max_pictures", max_pictures, 0),
            ("max_megabytes", max_megabytes, 0),
        ):
            if value is not None and not value >= least:
                raise UserError(f"{name}={value}: at least {least} is needed")
        self.num_images, self.every_n_epochs, self.seed, self.log_growth = num_images, every_n_epochs, seed, log_growth
        self.max_pictures = math.inf if max_pictures is None else max_pictures
        self.max_bytes = math.inf if max_megabytes is None else max_megabytes * 1e6
        self.logged = {"pictures": 0, "bytes": 0}
        self._pending: Pending | None = None
        self._told = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        # Drawn later: the module's own epoch end comes after this.
        self._pending = Pending(epoch, ends_stage(pl_module, epoch) or epoch + 1 == trainer.max_epochs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ended = self._pending
        if ended and ends_stage(pl_module, ended.epoch) and not pl_module.finished(ended.epoch + 1):
            self._draw_if_due(trainer, pl_module)  # now: the module enters its next stage after this

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending is not None:
            self._draw(trainer, pl_module, self._pending, logs=True, last=True)

    def state_dict(self) -> dict[str, Any]:
        return {"logged": dict(self.logged), "pending": self._pending and tuple(self._pending[:2])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.logged, pending = dict(state_dict["logged"]), state_dict["pending"]
        self._pending = pending and Pending(*pending, restored=True)

    def _draw_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        ended, self._pending = self._pending, None
        if ended and (ended.in_any_case or (ended.epoch + 1) % self.every_n_epochs == 0):
            self._draw(trainer, module, ended, self._is_logged(ended))

    def _is_logged(self, ended: Pending) -> bool:
        number, next_one = (ended.epoch + 1) // self.every_n_epochs, 1
        while next_one < number:
            next_one = max(next_one + 1, math.ceil(next_one * self.log_growth))
        return ended.in_any_case or next_one == number

    def _draw(self, trainer: Trainer, module: LightningModule, ended: Pending, logs: bool, last: bool = False) -> None:
        """Writes the pictures of an epoch, with the same bytes where they are there, and hands them to the loggers once if
        it `logs`. They get their names after that: pictures with names are at the loggers."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        sets = trainer.datamodule.sets() if hasattr(trainer.datamodule, "sets") else {}
        drafts: dict[Path, Path] = {}
        pictures = []
        try:
            with sampling_mode(module, self.seed):
                for kind, images, columns in self._kinds(module, sets):
                    pixels = to_uint8(image_grid(images, columns)).permute(1, 2, 0).cpu().numpy()
                    file = folder / f"{kind}_{ended.epoch:04d}.png"
                    draft = drafts[file] = file.with_suffix(DRAFT)
                    Image.fromarray(pixels).save(draft, format="PNG")
                    pictures.append(Picture(kind, pixels, draft.stat().st_size))
            if logs:
                again = ended.restored and any(file.exists() for file in drafts)
                self._log(trainer, pictures, last, again)
            for file, draft in drafts.items():
                draft.replace(file)
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)

    def _log(self, trainer: Trainer, pictures: list[Picture], last: bool, again: bool) -> None:
        """Counts the pictures and, unless it is done `again` by a resumed run, hands them over."""
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if loggers and self._affordable(pictures, last):
            for logger, picture in product([] if again else loggers, pictures):
                # The step is the one that losses are logged with (P 10.2).
                logger.log_image(f"grids/{picture.kind}", [picture.pixels], step=trainer.fit_loop.total_batch_idx)
            self.logged["pictures"] += len(pictures)
            self.logged["bytes"] += sum(picture.file_bytes for picture in pictures)

    def _affordable(self, pictures: list[Picture], last: bool) -> bool:
        """Whether the budget has room for these and, unless they are the last, once more for as many."""
        times = 1 if last else 2
        size = sum(picture.file_bytes for picture in pictures)
        fits = self.logged["pictures"] + times * len(pictures) <= self.max_pictures
        fits = fits and self.logged["bytes"] + times * size <= self.max_bytes
        if not fits and not self._told and self.max_pictures and self.max_bytes:
            rank_zero_info(
                f"ImageGrid: {self.logged['pictures']} pictures with {self.logged['bytes'] / 1e6:.1f} MB are logged. The "
                f"rest of the budget (max_pictures, max_megabytes) is for the last ones; all others are in images/ only."
            )
            self._told = True
        return fits

    def _kinds(self, module: LightningModule, sets: dict[str, Any]) -> Iterator[tuple[str, Tensor, int]]:
        """Kind, images [N, 3, H, W] in [-1, 1] and number of columns of each picture."""
        if getattr(module, "samples_ready", True):
            yield "samples", module.sample(self.num_images), math.ceil(math.sqrt(self.num_images))
        side = "side_heldout" if len(sets.get("side_heldout", ())) else "side"
        for kind, name, capability in (("reconstruction", "image", "reconstruct"), ("conditional", side, "inject")):
            if hasattr(module, capability) and name in sets:
                given = self._first(sets[name]).to(module.device)
                yield kind, torch.cat([given, getattr(module, capability)(given)]), len(given)

    def _first(self, images: Any) -> Tensor:
        """The first images of a set, without the mirrored copies that a flipped set has in its second half."""
        originals = len(images) // (2 if getattr(images, "flip", False) else 1)
        return torch.stack([images[i] for i in range(min(originals, self.num_images // 2))])
