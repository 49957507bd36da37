"""SyntheticDataModule: drawn scenes in place of files, for tests and first steps."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, NonNegativeInt, OpenFraction, PathStr, PositiveInt, Seed
from datamodules.fewshot import check_arrangement, reference_loader, with_tiling
from datamodules.folder import ImageFolder
from datamodules.image_datamodule import MAX_PIXELS
from datamodules.side import SideDataModule, split_heldout


class SyntheticDataModule(SideDataModule):
    """Batches and sets of every other data module at once, without a file.

    It takes the keys of all of them, so changing `class_path` alone makes any configuration run: `root`, `side_root`
    and `max_memory_gib` are accepted and ignored, and any `heldout_root` gives three more drawings. Batches: `image`,
    `index`, `side`, `side_index`; `sets()`: `image`, `side`, `side_heldout`, `source`, and with `tile` also `tile`. The
    drawings depend on `image_size`, set and position only, never on `seed`.

    Args:
        image: take one drawing only, number `image` modulo their number; any name stands for 0.
        tile: see `FewShotDataModule`.
        num_images, num_side, num_source: drawings per set, together at most MAX_PIXELS; `num_side` is split into `side` and
            `side_heldout`.
    """

    def __init__(
        self,
        image_size: ImageSize,
        root: PathStr = "",
        side_root: PathStr = "",
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        side_flip: bool = False,
        heldout_fraction: OpenFraction = 0.1,
        max_memory_gib: NonNegativeFloat = 1.0,
        num_images: PositiveInt = 3,
        num_side: PositiveInt = 8,
        num_source: PositiveInt = 8,
        image: str | int | None = None,
        tile: str | None = None,
        seed: Seed = 0,
        heldout_root: PathStr | None = None,
    ) -> None:
        sampling = (image_size, batch_size, samples_per_epoch, num_workers)
        super().__init__(root, side_root, *sampling, flip, side_flip, heldout_fraction, seed, heldout_root)
        if num_images < 1 or num_side < 2 or num_source < 1:
            raise UserError(f"num_images={num_images}, num_side={num_side}, num_source={num_source}: at least 1, 2, 1")
        pixels = (num_images + num_side + num_source) * self.image_size[0] * self.image_size[1]
        if pixels > MAX_PIXELS:
            raise UserError(
                f"num_images={num_images}, num_side={num_side}, num_source={num_source} of {image_size[0]}×{image_size[1]}: "
                f"more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit of what is drawn"
            )
        check_arrangement(tile)
        self.image = image
        self.tile = tile
        self.num_images = num_images
        self.num_side = num_side
        self.num_source = num_source

    def load_sets(self) -> dict[str, ImageFolder]:
        train, heldout = split_heldout(_names("side", self.num_side), self.heldout_fraction)
        names = _names("image", self.num_images)
        if self.image is not None:
            names = [names[self.image % len(names) if isinstance(self.image, int) else 0]]
        return {
            **with_tiling(DrawnImages(names, self.image_size, self.flip), self.tile),
            "side": DrawnImages(train, self.image_size, self.side_flip),
            "side_heldout": DrawnImages(heldout, self.image_size),
            "source": DrawnImages(_names("source", self.num_source), self.image_size, self.flip),
        }

    def _heldout(self, root: str) -> ImageFolder:
        return DrawnImages(_names("heldout", 3), self.image_size)

    def val_dataloader(self) -> DataLoader:
        """The reference images, with `tile` the single drawings."""
        return reference_loader(self)


class DrawnImages(ImageFolder):
    """An ImageFolder whose pictures are drawn from their names; its digests are those of the pixels."""

    def __init__(self, files: list[str], image_size: list[int], flip: bool = False) -> None:
        self.folder = Path("drawn")
        self.files = files
        self.image_size = (image_size[0], image_size[1])
        self.flip = flip
        self.enlargement = [1.0] * len(files)
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
        centre_y, centre_x, radius = uniform(1), uniform(1), uniform(1, low=0.08, high=0.2)
        inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        scene = torch.where(inside, uniform(3, 1, 1), scene)
    return (scene * 255).round().clamp(0, 255).to(torch.uint8)


def _names(kind: str, number: int) -> list[str]:
    return [f"{kind}_{position:03d}.png" for position in range(number)]
