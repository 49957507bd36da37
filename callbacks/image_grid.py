"""Grids of samples and reconstructions, drawn while a method trains."""

import math
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, Trainer
from PIL import Image
from pydantic import Field
from torch import Tensor

from core.files import atomic_write
from core.types import PositiveInt, Seed
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Injects, Reconstructs
from modules.ops.images import image_grid, to_uint8


class PendingGrid(NamedTuple):
    epoch: int  # has ended, its grids are not drawn yet
    force: bool  # ends a stage or the training: drawn and logged whatever the intervals
    resumed: bool = False  # read from a checkpoint: the interrupted run may have drawn and logged it afterwards


class ImageGrid(Callback):
    """One grid of each kind at epoch ends, as PNG in `<run folder>/images` and at loggers that take images.

    Kinds: `samples`, once they are ready; `reconstruction` (training images above, their reconstructions below); `conditional`
    (side images above, the module's renderings of them below); each where the module has the capability.

    Only rank 0 draws, and nothing here waits for other ranks. A run gives the same numbers with and without grids. One that
    was interrupted between a checkpoint and its grids draws them when it is resumed, and no grid is logged twice.

    Args:
        num_images: images in a grid of samples; a grid of pairs shows at most half as many inputs.
        seed: of the random draws, the same at all epochs, so that grids can be compared.
    """

    def __init__(
        self,
        num_images: Annotated[int, Field(ge=2)] = 16,
        every_n_epochs: PositiveInt = 1,
        log_every_n_epochs: PositiveInt = 5,
        seed: Seed = 0,
    ) -> None:
        self.num_images, self.seed = num_images, seed
        self.every_n_epochs, self.log_every_n_epochs = every_n_epochs, log_every_n_epochs
        self._pending: PendingGrid | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        epoch = trainer.current_epoch
        # Drawn later: the module's own epoch end comes after this.
        self._pending = PendingGrid(epoch, pl_module.ends_stage(epoch) or epoch + 1 == trainer.max_epochs)

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        pending = self._pending
        if pending and pl_module.ends_stage(pending.epoch) and not pl_module.finished(pending.epoch + 1):
            self._draw_if_due(trainer, pl_module)  # now: the module enters its next stage after this

    def on_train_epoch_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._draw_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._pending = self._pending and self._pending._replace(force=True)
        self._draw_if_due(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"pending": self._pending and tuple(self._pending[:2])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pending = state_dict["pending"]
        self._pending = pending and PendingGrid(*pending, resumed=True)

    def _draw_if_due(self, trainer: Trainer, module: GenerativeModule) -> None:
        """Writes the grids and hands them to the loggers; files get their names when all of that is done."""
        pending, self._pending = self._pending, None
        if not pending or not trainer.is_global_zero:
            return
        intervals = (self.every_n_epochs, self.log_every_n_epochs)
        drawn, logged = (pending.force or (pending.epoch + 1) % interval == 0 for interval in intervals)
        if not drawn and not logged:
            return
        folder = Path(trainer.default_root_dir) / "images"
        grids = self._grids(module, trainer.datamodule.sets())
        paths = {kind: folder / f"{kind}_{pending.epoch:04d}.png" for kind in grids}
        if pending.resumed and any(path.exists() for path in paths.values()):
            logged = False  # before the interruption
        with ExitStack() as files:
            for kind, pixels in grids.items():
                Image.fromarray(pixels).save(files.enter_context(atomic_write(paths[kind])), format="PNG")
            loggers = [logger for logger in trainer.loggers if logged and hasattr(logger, "log_image")]
            for logger, (kind, pixels) in product(loggers, grids.items()):
                # The step is the one that losses are logged with (P 10.2).
                logger.log_image(f"grids/{kind}", [pixels], step=trainer.fit_loop.total_batch_idx)

    def _grids(self, module: GenerativeModule, sets: dict[str, Any]) -> dict[str, np.ndarray]:
        """Grid by kind: uint8 [H, W, 3]. Image i of each depends on (seed, i) alone."""
        grids = {}
        if module.samples_ready:
            with sampling_mode(module, self.seed, range(self.num_images)):
                grids["samples"] = _pixels(module.sample(self.num_images), math.ceil(math.sqrt(self.num_images)))
        pairs = {"reconstruction": ("image", module.reconstruct)} if isinstance(module, Reconstructs) else {}
        if isinstance(module, Injects):
            pairs["conditional"] = ("side_heldout" if len(sets.get("side_heldout", ())) else "side", module.inject)
        for kind, (name, render) in pairs.items():
            if name in sets:
                originals = sets[name].originals()
                inputs = originals.take(range(min(len(originals), self.num_images // 2))).to(module.device)
                with sampling_mode(module, self.seed, range(len(inputs))):
                    grids[kind] = _pixels(torch.cat([inputs, render(inputs)]), len(inputs))
        return grids


def _pixels(images: Tensor, columns: int) -> np.ndarray:
    return to_uint8(image_grid(images, columns)).permute(1, 2, 0).cpu().numpy()
