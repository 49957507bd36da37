"""SourceDataModule: images of a source domain, for pre-training and for estimates on it."""

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from core.errors import UserError
from core.types import ImageSize, NonNegativeFloat, NonNegativeInt, PathStr, PositiveInt, Seed
from datamodules.folder import ImageFolder, list_images
from datamodules.image_datamodule import ImageDataModule


class SourceDataModule(ImageDataModule):
    """A folder of many images, subfolders included. Batches have `image` and `index`.

    Memory rule: decoded, N images take N·3·H·W bytes in every device's process. Up to `max_memory_gib` they are decoded
    once, at the start (4,000 images of 128×128: 0.18 GiB). Beyond that only the headers are checked at the start and
    each access decodes its file, which wants `num_workers` > 0; damage behind a header is then found when it is met.

    `sets()` has the set twice, as `image` and as `source`. Other arguments: see `ImageDataModule`.
    """

    def __init__(
        self,
        root: PathStr,
        image_size: ImageSize,
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        max_memory_gib: NonNegativeFloat = 1.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(root, image_size, batch_size, samples_per_epoch, num_workers, flip, seed)
        if not max_memory_gib >= 0:
            raise UserError(f"max_memory_gib must be a number, at least 0, but is {max_memory_gib!r}")
        self.max_memory_gib = max_memory_gib

    def load_sets(self) -> dict[str, ImageFolder]:
        folder, files = list_images(self.root, recursive=True)
        gib = len(files) * 3 * self.image_size[0] * self.image_size[1] / 2**30
        in_memory = gib <= self.max_memory_gib
        if not in_memory:
            rank_zero_info(f"{folder}: {len(files)} images would take {gib:.1f} GiB, so they are decoded when needed")
        images = ImageFolder(folder, files, self.image_size, self.flip, in_memory)
        return {"image": images, "source": images}
