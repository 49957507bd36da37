"""FewShotDataModule: the k training images, one of them, or one image made of all."""

import difflib
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from core.errors import UserError
from core.types import ImageSize, NonNegativeInt, PathStr, PositiveInt, Seed
from datamodules.folder import ImageFolder, list_images, shorten
from datamodules.image_datamodule import ImageDataModule
from datamodules.sampler import StridedSampler

ARRANGEMENTS = ("row", "column", "grid")


class FewShotDataModule(ImageDataModule):
    """The images of one folder (its subfolders are not searched), or a single image file; decoded once, kept in memory.

    A folder with one image only gives a warning, since more were probably meant; a file does not.
    Batches have `image` and `index`; `sets()` has `image`, and with `tile` the single images as `tile`, which validation
    and test give then.

    Args:
        image: take this one only: the name of a file of the folder, with or without its ending, or its place in the
            sorted list, from 0 on.
        tile: one training image made of all: side by side (row), one below the other (column), or in a nearly square
            table (grid), where places that are left over repeat the first images. `image_size` is the size of one tile.
        The others: see `ImageDataModule`.
    """

    def __init__(
        self,
        root: PathStr,
        image_size: ImageSize,
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        image: str | int | None = None,
        tile: str | None = None,
        seed: Seed = 0,
        heldout_root: PathStr | None = None,
    ) -> None:
        super().__init__(root, image_size, batch_size, samples_per_epoch, num_workers, flip, seed, heldout_root)
        check_arrangement(tile)
        self.image = image
        self.tile = tile

    def load_sets(self) -> dict[str, ImageFolder]:
        folder, files = list_images(self.root)
        if self.image is not None:
            files = [chosen(files, self.image, str(folder))]
        elif len(files) == 1 and Path(self.root).name != files[0]:
            rank_zero_warn(f"root: {folder} holds one image only, {files[0]}; all training rests on it")
        return with_tiling(ImageFolder(folder, files, self.image_size, self.flip), self.tile)

    def val_dataloader(self) -> DataLoader:
        """The reference images, see the class."""
        return reference_loader(self)


class TiledImages(ImageFolder):
    """One image made of all images of a set, see `FewShotDataModule`; mirrored as a whole if the set is."""

    def __init__(self, images: ImageFolder, tile: str) -> None:
        number, (height, width) = len(images.files), images.image_size
        rows, columns = table_shape(number, tile)
        cells = images.pixels[torch.arange(rows * columns) % number].view(rows, columns, 3, height, width)
        self.folder, self.flip = images.folder, images.flip
        self.files = [f"{tile} of {shorten(images.files)}"]
        self.image_size = (rows * height, columns * width)
        self.pixels = cells.permute(2, 0, 3, 1, 4).reshape(1, 3, *self.image_size)
        self.digests = [hashlib.sha256("\n".join([tile, *images.digests]).encode()).hexdigest()]


def table_shape(number: int, tile: str) -> tuple[int, int]:
    """Rows and columns of an arrangement of `number` images."""
    columns = {"row": number, "column": 1, "grid": math.ceil(math.sqrt(number))}[tile]
    return -(-number // columns), columns


def with_tiling(images: ImageFolder, tile: str | None) -> dict[str, ImageFolder]:
    """The sets: `image` alone, or the tiling as `image` and the single images as `tile`."""
    return {"image": images} if tile is None else {"image": TiledImages(images, tile), "tile": images}


def reference_loader(module: ImageDataModule) -> DataLoader:
    """The single images in order, each on one rank: what samples are measured against, also where training sees a tiling."""
    images = module.sets().get("tile", module.sets()["image"]).originals()
    return module._loader({"image": images}, StridedSampler(len(images), *module._place()), module.batch_size)


def check_arrangement(tile: str | None) -> None:
    """Raises ValueError for an unknown arrangement."""
    if tile is not None and tile not in ARRANGEMENTS:
        raise UserError(f"tile is {tile!r}; allowed are null, {', '.join(ARRANGEMENTS)}")


def chosen(files: Sequence[str], image: str | int, where: str) -> str:
    """The one of `files` that `image` names or counts; ValueError with what is there."""
    if isinstance(image, int):
        if not 0 <= image < len(files):
            raise UserError(f"image: there is no number {image}; {where} holds {len(files)}, counted from 0")
        return files[image]
    matches = [name for name in files if image in (name, Path(name).stem)]
    if len(matches) > 1:
        raise UserError(f"image: {image} fits {', '.join(matches)}; give the ending, too")
    if not matches:
        close = difflib.get_close_matches(image, files, 1)
        hint = f"Did you mean {close[0]}?" if close else f"It holds {shorten(files)}."
        raise UserError(f"image: {image} is not in {where}. {hint}")
    return matches[0]
