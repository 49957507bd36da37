"""Methods that learn nothing: the training images themselves are the model."""

import time
from collections.abc import Mapping

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import UserError
from core.units import human_bytes, human_time
from experiment.cost import PeakMemory
from modules.base import GenerativeModule
from modules.ops.checks import check_scale
from modules.ops.images import from_uint8, to_uint8
from modules.ops.scales import proportional_size, scale_sizes

TRIAL_SECONDS = 6.0  # about how long a trial may take by which time and memory are estimated


class BankModule(GenerativeModule):
    """Base of methods that keep the training images and compute each output from them.

    `fit` is one epoch that copies the image set into the buffer `bank`, so that checkpoints, evaluation and tasks work as
    for a trained method. No optimizer steps, so that Lightning writes `last.ckpt` only, at the end (P 6.11), and there is
    nothing to share between processes: `devices: 1` (P 3.6). A method writes `sample` and its capabilities.

    `max_images` sizes the bank, so that any checkpoint of a configuration fits it; `sizes` are the scales, 0 = coarsest.
    """

    trial: tuple[str, int]  # a setting that the time of a sample depends on linearly, and a small value of it

    def __init__(self, image_size: list[int], max_images: int, min_size: int, scale_factor: float, patch: int) -> None:
        super().__init__()
        if min_size < patch:
            raise UserError(f"min_size is {min_size}, patch {patch}: the coarsest scale has to hold a patch")
        self.patch = patch
        self.image_size = tuple(image_size)
        self.sizes = scale_sizes(self.image_size, min_size, scale_factor=scale_factor)
        self.num_scales = len(self.sizes)
        if max_images < 1:
            raise UserError(f"max_images is {max_images}; it has to be at least 1")
        self.register_buffer("bank", torch.zeros(max_images, 3, *self.image_size, dtype=torch.uint8))
        self.register_buffer("stored", torch.tensor(0))

    @property
    def samples_ready(self) -> bool:
        return int(self.stored) > 0

    def finished(self, epochs: int) -> bool:
        """See `GenerativeModule.finished`."""
        return self.samples_ready

    @property
    def images(self) -> Tensor:
        """The stored images [n, 3, H, W] in [-1, 1]. ValueError before the fit."""
        if not self.samples_ready:
            raise UserError(f"this {type(self).__name__} holds no images yet; fit stores them")
        return from_uint8(self.bank[: int(self.stored)])

    def store(self, images: Tensor) -> None:
        """Keeps the images [n, 3, H, W] in [-1, 1] in place of those there were; n is at most `max_images`."""
        self.bank[: len(images)] = to_uint8(images).to(self.device)
        self.stored.fill_(len(images))

    def size_at(self, scale: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at a scale of an output that is `size` at the finest; never below a patch."""
        return tuple(max(self.patch, side) for side in proportional_size(size, self.image_size, self.sizes[scale]))

    def check_output(self, size: tuple[int, int], scale: int = 0) -> None:
        """ValueError for an output that holds no patch, or a scale that is not there."""
        if min(size) < self.patch:
            raise UserError(f"{size[0]}×{size[1]} pixels (height × width) are below a patch of {self.patch}")
        check_scale(self.num_scales, scale=scale)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        number, room = len(sets["image"]), len(self.bank)
        if number > room:
            raise UserError(f"module.max_images is {room} and there are {number} images; set module.max_images={number}")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1:
            name = type(self).__name__
            raise UserError(f"{name} trains nothing that processes could share; set trainer.devices=1 trainer.num_nodes=1")

    def on_train_start(self) -> None:
        if self.samples_ready:  # a finished run that is resumed
            self.trainer.should_stop = True
            return
        self.store(self.trainer.datamodule.sets()["image"].stack())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Nothing to learn; logs how many images are stored."""
        self.log("train/images", float(self.stored), prog_bar=True, batch_size=len(batch["image"]))

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def sample_cost(self, images: Tensor) -> tuple[float, float]:
        """Seconds and bytes that `sample(1)` takes with `images` [n, 3, H, W] stored, on this module's device.

        Measured by samples of a copy with a small value of the setting that `trial` names, on which the time depends
        linearly, and with a larger one, if possible the setting's own. The random state stays as it is.
        """
        (name, few), memory = self.trial, PeakMemory(self.device)
        whole = self.hparams[name]

        def seconds(value: int) -> float:
            copy = type(self)(**self.hparams | {name: value, "max_images": len(images)}).to(self.device)
            copy.store(images)
            torch.manual_seed(0)
            start = time.perf_counter()
            copy.sample(1)
            return time.perf_counter() - start

        with torch.random.fork_rng(range(torch.cuda.device_count())):
            first = seconds(few)  # takes longer than the same again
            many = max(2 * few, min(whole, int(few * TRIAL_SECONDS / first)))
            short, long = seconds(few), seconds(many)
        slope = max(0.0, long - short) / (many - few)
        return short + (whole - few) * slope, memory.growth() + self.bank.nbytes

    def plan(self, datamodule: LightningDataModule, trainer: Trainer) -> str:
        """Table of scales, and time and memory of one sample from all images."""
        images = datamodule.sets()["image"].stack()
        seconds, memory = self.to(trainer.strategy.root_device).sample_cost(images)
        rows = [f"scale {scale}  {height}×{width}" for scale, (height, width) in enumerate(self.sizes)]
        cost = f"about {human_time(seconds)} here and {human_bytes(memory)} of memory"
        return "\n".join([
            *rows,
            "no training: fit stores the images",
            f"a sample of {len(images)} image(s): {cost}",
            "from shorter trials; without libraries",
        ])  # fmt: skip
