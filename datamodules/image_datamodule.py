"""ImageDataModule: what all image data have in common — the batch contract, the loaders, the sets."""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from core.errors import UserError
from core.types import ImageSize, NonNegativeInt, PathStr, PositiveInt, Seed
from datamodules.findings import brief, quick_check
from datamodules.folder import ImageFolder, list_images, shared_files, shorten
from datamodules.sampler import NO_ENTRY, EpochSampler, JoinedSampler, StridedSampler

MAX_PIXELS = 2**26  # of one image, and of all that are drawn: a size from a stranger's checkpoint must not fill the memory


class ImageDataModule(LightningDataModule):
    """Batches are dicts: `image` float32 [N, 3, H, W] in [-1, 1] and `index` int64 [N], the entry in `sets()["image"]`.

    Further sets in `train_keys` add `<key>` and `<key>_index` of the same length. A subclass writes `load_sets`.

    Training: an epoch is `samples_per_epoch` samples over all devices, rounded up to a multiple of their number; see
    `EpochSampler` for their order. All batches have the same size, so the end of an epoch that does not fill one is
    left out; if a device's share is smaller than `batch_size`, the share is the epoch's one batch, with a warning.
    Validation and test: the image set without mirrored entries, in order, each image on one rank only; a rank that gets
    none gets one batch with N = 0.

    Args:
        root: folder of images, or one image file.
        image_size: [height, width] of all images.
        batch_size: per device.
        samples_per_epoch: over all devices. 4000 makes the work between two epochs negligible (P 5.10).
        num_workers: loader processes; 0 is fastest for a set that is in memory.
        flip: also train on the mirrored images.
        seed: of the order of the samples; nothing else here is random.
        heldout_root: images of the kind that is learned, subfolders included, which training never sees: the set
            `image_heldout`. A measurement tells whether an encoder reconstructs the training images better than these.
    Files are first read in `setup`; its errors are FileNotFoundError or ValueError with one readable message.
    """

    train_keys: tuple[str, ...] = ("image",)

    def __init__(
        self,
        root: PathStr,
        image_size: ImageSize,
        batch_size: PositiveInt = 1,
        samples_per_epoch: PositiveInt = 4000,
        num_workers: NonNegativeInt = 0,
        flip: bool = False,
        seed: Seed = 0,
        heldout_root: PathStr | None = None,
    ) -> None:
        super().__init__()
        check_image_size(image_size)
        _check_at_least(1, batch_size=batch_size, samples_per_epoch=samples_per_epoch)
        _check_at_least(0, num_workers=num_workers)
        self.root = root
        self.image_size = list(image_size)
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers
        self.flip = flip
        self.seed = seed
        self.heldout_root = heldout_root
        self._sets: dict[str, ImageFolder] = {}

    def load_sets(self) -> dict[str, ImageFolder]:
        """Read the files. `image` must be there; the others are `side`, `side_heldout`, `source`, `tile`."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the files once, on every rank; `stage` does not matter."""
        if not self._sets:
            self._sets = self.load_sets()
            if self.heldout_root is not None:
                self._sets["image_heldout"] = self._heldout(self.heldout_root)

    def _heldout(self, root: str) -> ImageFolder:
        folder, files = list_images(root, recursive=True, key="heldout_root")
        heldout = ImageFolder(folder, files, self.image_size)
        known = self._sets.get("tile", self._sets["image"])
        if pairs := shared_files(known, heldout):
            raise UserError(f"heldout_root: {folder} holds training images: {shorten([name for _, name in pairs])}")
        return heldout

    def sets(self) -> dict[str, ImageFolder]:
        """The image sets by key, the same on every rank. Raises RuntimeError before `setup`."""
        if not self._sets:
            raise RuntimeError("the image sets are read in setup(), which has not run yet")
        return self._sets

    def check_images(self) -> None:
        """A quick look at the images, see `datamodules.doctor`: one warning for each kind of doubt.

        Raises ValueError if training would be wrong.
        """
        found = quick_check(self.sets())
        errors = [finding for finding in found if finding.level == "error"]
        if errors:
            raise UserError("\n".join(brief(errors)))
        for line in brief(found):
            rank_zero_warn(line)

    def fingerprints(self) -> dict[str, str]:
        """For every set the SHA-256 over its file names and contents."""
        return {key: images.fingerprint for key, images in self.sets().items()}

    def train_dataloader(self) -> DataLoader:
        """See the class."""
        sets = {key: self.sets()[key] for key in self.train_keys}
        ranks, rank = self._place()
        share = -(-self.samples_per_epoch // ranks)
        if share < self.batch_size:
            rank_zero_warn(
                f"samples_per_epoch={self.samples_per_epoch} gives each of {ranks} device(s) {share} sample(s), fewer "
                f"than batch_size={self.batch_size}: an epoch is one batch of {share}"
            )
        samplers = [EpochSampler(len(images), share * ranks, self.seed, key) for key, images in sets.items()]
        sampler = JoinedSampler(samplers, ranks, rank)
        if self.trainer:
            # A resumed fit makes the loader's iterator before it calls set_epoch, and workers then fetch at once.
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return self._loader(sets, sampler, min(self.batch_size, share), drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The reference images, see the class."""
        images = self.sets()["image"].originals()
        return self._loader({"image": images}, StridedSampler(len(images), *self._place()), self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Goes into the checkpoint, so that a resumed run can tell whether its images are still the same."""
        return {"fingerprints": self.fingerprints()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns when a set is not the one the checkpoint was trained on; training goes on with the new one."""
        now, then = self.fingerprints(), state_dict["fingerprints"]
        changed = sorted(key for key in now if now[key] != then.get(key))
        if changed:
            rank_zero_warn(f"not the files this checkpoint was trained on: the image set(s) {', '.join(changed)}")

    def _place(self) -> tuple[int, int]:
        """Number of ranks and own rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(
        self, sets: dict[str, ImageFolder], sampler: Sampler, batch_size: int, drop_last: bool = False
    ) -> DataLoader:
        return DataLoader(
            JoinedSets(sets),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_is,
            worker_init_fn=_end_quietly,
            generator=torch.Generator().manual_seed(self.seed),  # else every iterator draws from the global one (P 5.7)
        )


class JoinedSets(Dataset):
    """Image sets read side by side into whole batches; an index is an int, or a tuple with one int for each set."""

    def __init__(self, sets: dict[str, ImageFolder]) -> None:
        self.sets = sets

    def __len__(self) -> int:
        return len(next(iter(self.sets.values())))

    def __getitems__(self, indices: Sequence[int | tuple[int, ...]]) -> dict[str, Tensor]:
        """The batch for `indices`; NO_ENTRY is left out, so a batch may be empty."""
        rows = [index if isinstance(index, tuple) else (index,) for index in indices if index != NO_ENTRY]
        batch = {}
        for column, (key, images) in enumerate(self.sets.items()):
            entries = [row[column] for row in rows]
            batch[key] = torch.empty(len(entries), 3, *images.image_size, dtype=torch.float32)
            for place, entry in enumerate(entries):
                batch[key][place] = images[entry]
            batch["index" if key == "image" else f"{key}_index"] = torch.tensor(entries, dtype=torch.int64)
        return batch


def check_image_size(image_size: Sequence[int]) -> None:
    """Raises ValueError unless `image_size` is [height, width], two positive whole numbers, of at most MAX_PIXELS."""
    numbers = list(image_size) if isinstance(image_size, Sequence) and not isinstance(image_size, str) else []
    if len(numbers) != 2 or not all(type(number) is int and number > 0 for number in numbers):
        raise UserError(f"image_size must be [height, width], two positive whole numbers, but is {image_size!r}")
    if numbers[0] * numbers[1] > MAX_PIXELS:
        raise UserError(f"image_size={numbers} has more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit")


def _check_at_least(least: int, **values: int) -> None:
    for key, value in values.items():
        if type(value) is not int or value < least:
            raise UserError(f"{key} must be a whole number, at least {least}, but is {value!r}")


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _end_quietly(worker: int) -> None:
    """Of a worker that loses its main process, which was ended by a signal, nobody needs to read."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            before(kind, error, trace)

    sys.excepthook = hook  # the threads that hand over file descriptors answer to it, too
