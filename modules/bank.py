"""Methods without training: fit stores something of each training image, and samples are computed from it."""

from collections.abc import Mapping

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from modules.base import GenerativeModule
from modules.ops.bank_rows import Bank
from modules.ops.images import from_uint8, to_uint8
from modules.ops.scales import check_scale, proportional_size, scale_sizes

CHUNK = 16  # images that are stored at once


class BankModule(GenerativeModule):
    """Base of methods that store something of each training image, in one epoch, and compute every output from it. Without
    optimizer steps Lightning writes `last.ckpt` only (P 6.11). A method sets `bank`, and writes `bank_rows` and `sample`."""

    bank: Bank
    cost_setting: tuple[str, int] | None  # what a sample's time depends on linearly, and a small value; None: it takes a moment

    def bank_rows(self, images: Tensor) -> Tensor:
        """The rows that are stored for images [n, 3, H, W], one each; by default uint8 pixels."""
        return to_uint8(images)

    @torch.no_grad()
    def store(self, images: Dataset | Tensor) -> None:
        """Stores images [3, H, W] in place of those before."""
        self.bank.clear()
        starts = range(0, len(images), CHUNK)
        for start in Tqdm(starts, desc="storing images", unit="batch", leave=False, delay=3, disable=None):
            chunk = torch.stack([images[i] for i in range(start, min(start + CHUNK, len(images)))])
            self.bank.append(self.bank_rows(chunk.to(self.device)))

    @property
    def samples_ready(self) -> bool:
        return len(self.bank) > 0

    def finished(self, epochs: int) -> bool:
        return self.samples_ready

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        images, capacity = len(sets["image"]), self.bank.capacity
        if images > capacity:
            raise UserError(f"module.max_images is {capacity} and there are {images} images; set module.max_images={images}")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.trainer.world_size > 1:
            method = f"{type(self).__name__} trains nothing that processes could share"  # P 3.6
            raise UserError(f"{method}; set trainer.devices=1 trainer.num_nodes=1")

    def on_train_start(self) -> None:
        if self.samples_ready:  # a finished run that is resumed
            self.trainer.should_stop = True
        else:
            self.store(self.training_sets["image"])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("train/images", float(len(self.bank)), prog_bar=True, batch_size=len(batch["image"]))

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True


class PatchBankModule(BankModule):
    """A bank of the training images, from whose patches outputs are made coarse to fine (GPNN, GPDM).

    Args:
        image_size: height and width of the training images; any output size can be asked for.
        max_images: most training images that fit, mirrored ones included.
        min_size: shorter side of the coarsest scale.
        scale_factor: nominal ratio of neighboring scales, see `scale_sizes`.
        patch: side of a patch in pixels.
    """

    def __init__(self, image_size: list[int], max_images: int, min_size: int, scale_factor: float, patch: int) -> None:
        super().__init__()
        if min_size < patch:
            raise UserError(f"min_size is {min_size}, patch {patch}: the coarsest scale has to hold a patch")
        self.patch = patch
        self.image_size = tuple(image_size)
        self.sizes = scale_sizes(self.image_size, min_size, scale_factor)
        self.num_scales = len(self.sizes)
        self.bank = Bank(max_images, (3, *self.image_size), torch.uint8)

    @property
    def images(self) -> Tensor:
        if not self.samples_ready:
            raise UserError(f"this {type(self).__name__} holds no images yet; fit stores them")
        return from_uint8(self.bank.rows)

    def size_at(self, scale: int, size: tuple[int, int]) -> tuple[int, int]:
        """Size at a scale of an output of `size`, at least a patch; UserError for an output or a scale that is impossible."""
        if min(size) < self.patch:
            raise UserError(f"{size[0]}×{size[1]} pixels (height × width) are below a patch of {self.patch}")
        check_scale(self.num_scales, scale=scale)
        return tuple(max(self.patch, side) for side in proportional_size(size, self.image_size, self.sizes[scale]))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.inject(images)
