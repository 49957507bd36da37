"""Pictures of what a method makes while it trains."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from modules.base import sampling_mode
from modules.ops.images import image_grid, to_uint8


class ImageGrid(Callback):
    """One picture of each kind at epoch ends, as PNG in `<run folder>/images` and at loggers that take images.

    Kinds: `samples`, as soon as they mean something; `reconstruction` (above a training image, below what the module
    makes of it); `conditional` (above a side image, below the module's rendering of it); each where the module can.

    Only rank 0 draws: nothing here waits for other ranks. The random state of training is left as it was, so that a run
    gives the same numbers with and without pictures.

    Args:
        num_images: images in a picture; half of them, at most, are given ones in the two kinds of pairs.
        every_n_epochs: the last epoch is always drawn.
        seed: of the random draws, the same at all epochs, so that pictures can be compared.
    """

    def __init__(self, num_images: int = 16, every_n_epochs: int = 1, seed: int = 0) -> None:
        if num_images < 2 or every_n_epochs < 1:
            raise ValueError(f"num_images={num_images}, every_n_epochs={every_n_epochs}: at least 2 and 1 are needed")
        self.num_images, self.every_n_epochs, self.seed = num_images, every_n_epochs, seed
        self._ended_epoch: int | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended_epoch = trainer.current_epoch  # drawn later: the module's own epoch end comes after the callbacks'

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ended_epoch is not None and (self._ended_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, self._ended_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ended_epoch is not None:
            self._draw(trainer, pl_module, self._ended_epoch)

    def _draw(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        sets = trainer.datamodule.sets() if hasattr(trainer.datamodule, "sets") else {}
        with sampling_mode(module, self.seed):
            for kind, images, columns in self._kinds(module, sets):
                pixels = to_uint8(image_grid(images, columns)).permute(1, 2, 0).cpu().numpy()
                Image.fromarray(pixels).save(folder / f"{kind}_{epoch:04d}.png")
                for logger in trainer.loggers:
                    if hasattr(logger, "log_image"):  # the step is the one that Lightning logs losses with (P 10.2)
                        logger.log_image(f"grids/{kind}", [pixels], step=trainer.fit_loop.total_batch_idx)

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
