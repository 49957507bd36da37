"""SyntheticDataModule: drawn scenes instead of files, for tests and first steps."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, NonNegativeInt, OpenFraction, PathStr, PositiveInt, Seed
from datamodules.folder import ImageFolder
from datamodules.image_datamodule import MAX_PIXELS, ImageDataModule, split_heldout


class SyntheticDataModule(ImageDataModule):
    """Batches and sets of `ImageDataModule` without a file.

    It takes the same keys, so changing `class_path` alone makes any configuration run: `root`, `side_root`, `source_root`
    and `max_memory_gib` are ignored. There are always side and source images; any `heldout_root` gives three more drawings,
    any `labels` the class i modulo `num_classes` for drawing i. The drawings depend on `image_size`, set and position only,
    never on `seed`.

    Args:
        image: use one drawing only, number `image` modulo their number; any name stands for 0.
        num_images, num_side, num_source: drawings per set, together at most MAX_PIXELS; `num_side` is split into `side` and
            `side_heldout`.
        num_classes: of `label`.
    """

    def __init__(
        self,
        image_size: ImageSize,
        root: PathStr = "",
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        seed: Seed = 0,
        image: str | int | None = None,
        tile: Literal["row", "column", "grid"] | None = None,
        labels: str | None = None,
        side_root: PathStr | None = None,
        side_flip: bool = False,
        heldout_fraction: OpenFraction = 0.1,
        source_root: PathStr | None = None,
        heldout_root: PathStr | None = None,
        max_memory_gib: NonNegativeFloat = 1.0,
        num_images: PositiveInt = 3,
        num_side: PositiveInt = 8,
        num_source: PositiveInt = 8,
        num_classes: PositiveInt = 2,
    ) -> None:
        sampling = (batch_size, samples_per_epoch, num_workers, flip, seed, image, tile, labels)
        super().__init__(
            root, image_size, *sampling, side_root, side_flip, heldout_fraction, source_root, heldout_root, max_memory_gib
        )
        if num_side < 2:
            raise UserError(f"num_side={num_side}: at least two are needed, one to train on and one held out")
        pixels = (num_images + num_side + num_source) * self.image_size[0] * self.image_size[1]
        if pixels > MAX_PIXELS:
            raise UserError(
                f"num_images={num_images}, num_side={num_side}, num_source={num_source} of {image_size[0]}×{image_size[1]}: "
                f"more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit of what is drawn"
            )
        self.num_images = num_images
        self.num_side = num_side
        self.num_source = num_source
        self.num_classes = num_classes

    def load_sets(self) -> dict[str, ImageFolder]:
        names, labels = _names("image", self.num_images), None
        if self.image is not None:
            names = [names[self.image % len(names) if isinstance(self.image, int) else 0]]
        if self.labels is not None:
            self.label_names = [f"class_{index}" for index in range(self.num_classes)]
            labels = [int(name[-7:-4]) % self.num_classes for name in names]
        train, heldout = split_heldout(_names("side", self.num_side), self.heldout_fraction)
        sets = {
            "image": DrawnImages(names, self.image_size, self.flip, labels),
            "side": DrawnImages(train, self.image_size, self.side_flip),
            "side_heldout": DrawnImages(heldout, self.image_size),
            "source": DrawnImages(_names("source", self.num_source), self.image_size, self.flip),
        }
        return sets | ({"image_heldout": DrawnImages(_names("heldout", 3), self.image_size)} if self.heldout_root else {})

    def roots(self) -> dict[str, str]:
        return {}


class DrawnImages(ImageFolder):
    """An ImageFolder whose images are drawn from their names; its digests are those of the pixels."""

    def __init__(
        self, files: list[str], image_size: list[int], flip: bool = False, labels: Sequence[int] | None = None
    ) -> None:
        self.folder = Path("drawn")
        self.files = files
        self.image_size = (image_size[0], image_size[1])
        self.flip = flip
        self.labels = None if labels is None else torch.tensor(labels)
        self.pixels = torch.stack([draw_scene(name, self.image_size) for name in files])
        self.digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.pixels]


def draw_scene(name: str, size: tuple[int, int]) -> Tensor:
    """A bright fading sky above a darker striped ground, and three discs, chosen by the name: uint8 [3, H, W]."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    y = ((torch.arange(size[0]) + 0.5) / size[0]).view(-1, 1)
    x = ((torch.arange(size[1]) + 0.5) / size[1]).view(1, -1)
    horizon = uniform(1, low=0.4, high=0.7)
    sky = uniform(3, 1, 1, low=0.5) * (1 - 0.4 * y)
    ground = uniform(3, 1, 1, high=0.5) * (0.8 + 0.2 * torch.sin(40 * y + 6 * x))
    scene = torch.where(y < horizon, sky, ground).expand(3, *size).clone()
    for _ in range(3):
        center_y, center_x, radius = uniform(1), uniform(1), uniform(1, low=0.08, high=0.2)
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
        scene = torch.where(inside, uniform(3, 1, 1), scene)
    return (scene * 255).round().clamp(0, 255).to(torch.uint8)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{position:03d}.png" for position in range(count)]
