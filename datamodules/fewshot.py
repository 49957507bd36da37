"""FewShotDataModule: the k training images."""

from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.base import ImageDataModule
from datamodules.folder import ImageFolder, list_images


class FewShotDataModule(ImageDataModule):
    """The images of one folder (its subfolders are not searched), or a single image file; decoded once, kept in memory.

    A folder with one image only gives a warning, since more were probably meant; a file does not.
    Batches have `image` and `index`; `sets()` has `image`. Arguments: see `ImageDataModule`.
    """

    def load_sets(self) -> dict[str, ImageFolder]:
        folder, files = list_images(self.root)
        if len(files) == 1 and Path(self.root).name != files[0]:
            rank_zero_warn(f"root: {folder} holds one image only, {files[0]}; all training rests on it")
        return {"image": ImageFolder(folder, files, self.image_size, self.flip)}
