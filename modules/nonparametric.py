"""Methods that learn nothing: the training images themselves are the model."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from modules.base import GenerativeModule
from modules.ops.cost import human_bytes, human_time
from modules.ops.images import from_uint8, resize, to_uint8
from modules.ops.scales import proportional_size, scale_sizes


class NonParametricModule(GenerativeModule):
    """Base of methods that keep the training images and compute each output from them.

    `fit` is one epoch that copies the image set into the buffer `bank`, so that checkpoints, evaluation and tasks work as
    for a trained method. No optimizer steps, so that Lightning writes `last.ckpt` only, at the end (P 6.11), and there is
    nothing to share between processes: `devices: 1` (P 3.6). A method writes `sample` and its capabilities.

    `max_images` sizes the bank, so that any checkpoint of a configuration fits it; `sizes` are the scales, 0 = coarsest.
    """

    trial: tuple[str, int]  # a setting that the time of a sample is proportional to, and a small value of it

    def __init__(self, image_size: list[int], max_images: int, min_size: int, scale_factor: float, patch: int) -> None:
        super().__init__()
        if min_size < patch:
            raise ValueError(f"min_size is {min_size}, patch {patch}: the coarsest scale has to hold a patch")
        self.patch = patch
        self.image_size = tuple(image_size)
        self.sizes = scale_sizes(self.image_size, min_size, scale_factor=scale_factor)
        self.num_scales = len(self.sizes)
        if max_images < 1:
            raise ValueError(f"max_images is {max_images}; it has to be at least 1")
        self.register_buffer("bank", torch.zeros(max_images, 3, *self.image_size, dtype=torch.uint8))
        self.register_buffer("stored", torch.tensor(0))

    @property
    def samples_ready(self) -> bool:
        return int(self.stored) > 0

    @property
    def images(self) -> Tensor:
        """The stored images [n, 3, H, W] in [-1, 1]. ValueError before the fit."""
        if not self.samples_ready:
            raise ValueError(f"this {type(self).__name__} holds no images yet; fit stores them")
        return from_uint8(self.bank[: int(self.stored)])

    def size_at(self, scale: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at a scale of an output that is `size` at the finest; never below a patch."""
        return tuple(max(self.patch, side) for side in proportional_size(size, self.image_size, self.sizes[scale]))

    def check_output(self, size: tuple[int, int], scale: int = 0) -> None:
        """ValueError for an output that holds no patch, or a scale that is not there."""
        if min(size) < self.patch:
            raise ValueError(f"{size[0]}×{size[1]} pixels (height × width) are below a patch of {self.patch}")
        if not 0 <= scale < self.num_scales:
            raise ValueError(f"scale is {scale}; this model has the scales 0 (coarsest) to {self.num_scales - 1} (finest)")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return []

    def check_data(self, sets: Mapping[str, Dataset]) -> None:
        number, room = len(sets["image"]), len(self.bank)
        if number > room:
            raise ValueError(f"module.max_images is {room} and there are {number} images; set module.max_images={number}")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1:
            name = type(self).__name__
            raise ValueError(f"{name} trains nothing that processes could share; set trainer.devices=1 trainer.num_nodes=1")

    def on_train_start(self) -> None:
        if self.samples_ready:  # a finished run that is resumed
            self.trainer.should_stop = True
            return
        images = self.trainer.datamodule.sets()["image"].stack()
        self.bank[: len(images)] = to_uint8(images).to(self.device)
        self.stored.fill_(len(images))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Nothing to learn; logs how many images are stored."""
        self.log("train/images", float(self.stored), prog_bar=True, batch_size=len(batch["image"]))

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def sample_memory(self) -> float:
        """Bytes that sample(1) needs with one training image, beside the module and the framework."""
        raise TypeError(f"{type(self).__name__} does not define sample_memory()")

    def plan(self, samples_per_epoch: int, batch_size: int, world_size: int = 1) -> str:
        """Table of scales, and an estimate of time and memory of one sample from one training image.

        The time is taken from a sample of a drawn picture with the setting named in `trial` made small.
        """
        (name, few), settings = self.trial, dict(self.hparams)
        trial = type(self)(**settings | {name: few, "max_images": 1})
        trial.bank.copy_(to_uint8(_clouds(self.image_size)))
        trial.stored.fill_(1)
        start = time.perf_counter()
        trial.sample(1)
        seconds = (time.perf_counter() - start) * settings[name] / few
        rows = [f"scale {scale}  {height}×{width}" for scale, (height, width) in enumerate(self.sizes)]
        cost = f"about {human_time(seconds)} here and {human_bytes(self.sample_memory())} of memory"
        return "\n".join([*rows, "no training: fit stores the images", f"a sample of one image: {cost} (estimates)"])


def _clouds(size: tuple[int, int]) -> Tensor:
    """A picture [1, 3, H, W] with a spectrum like that of photographs: noise of equal strength in every octave."""
    octaves = range(min(size).bit_length())
    layers = [torch.randn(1, 3, *(max(2, side >> octave) for side in size)) for octave in octaves]
    return sum(resize(0.3 * layer, size) for layer in layers)
