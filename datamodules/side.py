"""SideDataModule: the few training images and a larger set of any other images beside them."""

import hashlib
import os
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from core.errors import UserError
from core.types import ImageSize, NonNegativeInt, OpenFraction, PathStr, PositiveInt, Seed
from datamodules.folder import ImageFolder, list_images, shared_files, shorten
from datamodules.image_datamodule import ImageDataModule


class SideDataModule(ImageDataModule):
    """Few-shot images and side images in one batch: `image`, `index`, `side`, `side_index`, all of length N.

    Both are decoded once and kept in memory; each has its own order of samples. `sets()` has `image`, `side` and
    `side_heldout`, the part of the side images that no training batch shows (see `split_heldout`).

    Args:
        root: folder with the few images (subfolders are not searched), or one image file; one image gives a warning.
        side_root: folder with the side images, subfolders included; at least two.
        side_flip: also train on mirrored side images; held-out ones are never mirrored.
        heldout_fraction: of the side images, above 0 and below 1; at least one image is held out and one is not.
        The others: see `ImageDataModule`.
    Warns about files with the same content in two of the sets.
    """

    train_keys = ("image", "side")

    def __init__(
        self,
        root: PathStr,
        side_root: PathStr,
        image_size: ImageSize,
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        side_flip: bool = False,
        heldout_fraction: OpenFraction = 0.1,
        seed: Seed = 0,
        heldout_root: PathStr | None = None,
    ) -> None:
        super().__init__(root, image_size, batch_size, samples_per_epoch, num_workers, flip, seed, heldout_root)
        if not 0 < heldout_fraction < 1:
            raise UserError(f"heldout_fraction must lie above 0 and below 1, but is {heldout_fraction!r}")
        self.side_root = side_root
        self.side_flip = side_flip
        self.heldout_fraction = heldout_fraction

    def load_sets(self) -> dict[str, ImageFolder]:
        folder, files = list_images(self.root)
        if len(files) == 1:
            rank_zero_warn(f"root: one training image only, {folder / files[0]}; this method is made for several")
        side_folder, side_files = list_images(self.side_root, recursive=True, key="side_root")
        if len(side_files) < 2:
            raise UserError(
                f"side_root: {side_folder} holds one image; at least two are needed, one to train on and one held out"
            )
        train, heldout = split_heldout(side_files, self.heldout_fraction)
        sets = {
            "image": ImageFolder(folder, files, self.image_size, self.flip),
            "side": ImageFolder(side_folder, train, self.image_size, self.side_flip),
            "side_heldout": ImageFolder(side_folder, heldout, self.image_size),
        }
        _warn_shared(sets)
        return sets


def split_heldout(files: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Training and held-out names, both in the order of `files` (at least two).

    A function of the names alone, the same on every rank, in every run and for every seed: names are ranked by their
    SHA-256, and the lowest round(fraction · N), at least 1 and at most N - 1, are held out. So adding a file moves at
    most a name or two between the parts.
    """
    number = min(max(1, round(fraction * len(files))), len(files) - 1)
    heldout = set(sorted(files, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:number])
    return [name for name in files if name not in heldout], [name for name in files if name in heldout]


def _warn_shared(sets: dict[str, ImageFolder]) -> None:
    for first, second in (("image", "side"), ("image", "side_heldout"), ("side", "side_heldout")):
        pairs = shared_files(sets[first], sets[second])
        if pairs:
            listed = shorten([f"{sets[first].folder / a} = {sets[second].folder / b}" for a, b in pairs])
            rank_zero_warn(f"the same file is in the sets {first} and {second}: {listed}")
