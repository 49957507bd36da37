"""Grids of samples and reconstructions, drawn while a method trains."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from PIL import Image
from torch import Tensor

from core.files import atomic_write
from core.types import AtLeastTwo, PositiveInt, Seed
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Injects, Reconstructs
from modules.ops.images import image_grid, to_uint8


def to_pixels(image: Tensor) -> np.ndarray:
    """An image [3, H, W] in [-1, 1] as uint8 [H, W, 3]."""
    return to_uint8(image).permute(1, 2, 0).cpu().numpy()


def log_images(trainer: Trainer, images: Mapping[str, np.ndarray], **options: Any) -> None:
    """Hands images, uint8 [H, W, 3] by key, to the loggers that take them, at the step that losses are logged with (P 10.2)."""
    for logger in trainer.loggers:
        for key, pixels in images.items() if hasattr(logger, "log_image") else ():
            logger.log_image(key, [pixels], step=trainer.fit_loop.total_batch_idx, **options)


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
        self, num_images: AtLeastTwo = 16, every_n_epochs: PositiveInt = 1, log_every_n_epochs: PositiveInt = 5, seed: Seed = 0
    ) -> None:
        self.num_images, self.seed = num_images, seed
        self.every_n_epochs, self.log_every_n_epochs = every_n_epochs, log_every_n_epochs
        self._epoch: int | None = None  # has ended, its grids are not drawn yet

    def on_train_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._epoch = trainer.current_epoch - 1 if trainer.current_epoch else None  # the interrupted run may have drawn it
        if self._epoch is not None and pl_module.ends_stage(self._epoch):
            self._draw_if_due(trainer, pl_module)  # now: the module enters its next stage after this

    def on_train_epoch_start(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._draw_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._epoch = trainer.current_epoch  # drawn later: the module's own epoch end comes after this

    def on_train_end(self, trainer: Trainer, pl_module: GenerativeModule) -> None:
        self._draw_if_due(trainer, pl_module, force=True)

    def _draw_if_due(self, trainer: Trainer, module: GenerativeModule, force: bool = False) -> None:
        """Writes the grids and hands them to the loggers; files get their names when all of that is done."""
        epoch, self._epoch = self._epoch, None
        if epoch is None or not trainer.is_global_zero:
            return
        force = force or module.ends_stage(epoch)
        drawn, logged = (force or (epoch + 1) % interval == 0 for interval in (self.every_n_epochs, self.log_every_n_epochs))
        if not drawn and not logged:
            return
        folder = Path(trainer.default_root_dir) / "images"
        grids = self._grids(module, trainer.datamodule.sets())
        paths = {kind: folder / f"{kind}_{epoch:04d}.png" for kind in grids}
        logged = logged and not any(path.exists() for path in paths.values())  # else a run that was interrupted has done it
        with ExitStack() as files:
            for kind, pixels in grids.items():
                Image.fromarray(pixels).save(files.enter_context(atomic_write(paths[kind])), format="PNG")
            if logged:
                log_images(trainer, {f"grids/{kind}": pixels for kind, pixels in grids.items()})

    def _grids(self, module: GenerativeModule, sets: dict[str, Any]) -> dict[str, np.ndarray]:
        """Grid by kind: uint8 [H, W, 3]. Image i of each depends on (seed, i) alone."""
        grids, columns = {}, math.ceil(math.sqrt(self.num_images))
        if module.samples_ready:
            with sampling_mode(module, self.seed, range(self.num_images)):
                grids["samples"] = to_pixels(image_grid(module.sample(self.num_images), columns))
        pairs = {"reconstruction": ("image", module.reconstruct)} if isinstance(module, Reconstructs) else {}
        if isinstance(module, Injects):
            pairs["conditional"] = ("side_heldout" if len(sets.get("side_heldout", ())) else "side", module.inject)
        for kind, (name, render) in pairs.items():
            if name in sets:
                originals = sets[name].originals()
                inputs = originals.take(range(min(len(originals), self.num_images // 2))).to(module.device)
                with sampling_mode(module, self.seed, range(len(inputs))):
                    grids[kind] = to_pixels(image_grid(torch.cat([inputs, render(inputs)]), len(inputs)))
        return grids
