"""ImageDataModule: image files as training and reference batches."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import UserError, nearest_hint
from core.types import ImageSize, NonNegativeFloat, NonNegativeInt, OpenFraction, PathStr, PositiveInt, Seed
from datamodules.findings import quick_check, summarize
from datamodules.fingerprints import sha256
from datamodules.folder import ImageFolder, shared_files
from datamodules.labels import read_labels
from datamodules.listing import find_root, list_images, same_name, shorten
from datamodules.sampler import NO_ENTRY, JoinedSampler, StridedSampler

MAX_PIXELS = 2**26  # of one image, and of all that are drawn: a size from an untrusted checkpoint must not fill the memory
Labels = Annotated[str, Field(pattern=r"^folder$|(?i:\.csv):[^:]+$", description="folder or FILE.csv:COLUMN")]
MAX_TEMPORARY_PATH = 75  # characters; worker processes add up to 32 for a socket, whose path has at most 107


@dataclass(eq=False)
class ImageDataModule(LightningDataModule):
    """Batches are dicts: `image` float32 [N, 3, H, W] in [-1, 1] and `index` int64 [N], the entry in `sets()["image"]`;
    with `labels` also `label` int64 [N]; with side and source images also `side`, `side_index`, `source`, `source_index`.

    An epoch is `samples_per_epoch` samples, rounded up to a multiple of the number of devices, in batches of one size; what
    does not fill a batch is left out. Validation and test give the image set (with `tile` the single images) without mirrored
    entries, each image on one rank only; a rank without an image gets one batch with N = 0.

    Args:
        root: folder of images, its subfolders not included, or one image file. One image only is a warning.
        image_size: [height, width] of all images.
        batch_size: per device.
        samples_per_epoch: over all devices. 4000 makes the work between two epochs negligible (P 5.10).
        num_workers: loader processes; 0 is fastest for sets in memory.
        flip: also train on the mirrored images, and on mirrored source images.
        seed: of the order of the samples; nothing else here is random.
        image: use this image only: the name of a file with or without its extension, else its index in the sorted list.
        tile: one training image made of all, see `ImageFolder.tiled`; `image_size` is the size of one. Not with `labels`.
        labels: `folder` (each subfolder of `root` is a class) or `FILE.csv:COLUMN`, see `read_labels`.
        side_root: further, unlabelled images, subfolders included; at least two. They are split, see `split_heldout`.
        side_flip: also train on mirrored side images.
        heldout_fraction: of the side images; at least one image is held out and one is not.
        source_root: images of a source domain, subfolders included: the set `source`.
        heldout_root: images of the kind that is learned, subfolders included, which training never sees.
        max_memory_gib: for decoded images in every process; of sets beyond it, the largest ones, each access decodes its file.
        attributes: CSV file in `root` with a row for each image, if there is one, for methods that select images (LatentPatch).
    """

    root: PathStr
    image_size: ImageSize
    batch_size: PositiveInt = 1
    samples_per_epoch: PositiveInt = 4000
    num_workers: NonNegativeInt = 0
    flip: bool = False
    seed: Seed = 0
    image: str | int | None = None
    tile: Literal["row", "column", "grid"] | None = None
    labels: Labels | None = None
    side_root: PathStr | None = None
    side_flip: bool = False
    heldout_fraction: OpenFraction = 0.1
    source_root: PathStr | None = None
    heldout_root: PathStr | None = None
    max_memory_gib: NonNegativeFloat = 1.0
    attributes: PathStr = "attributes.csv"

    def __post_init__(self) -> None:
        super().__init__()
        if self.image_size[0] * self.image_size[1] > MAX_PIXELS:
            raise UserError(f"image_size={self.image_size} has more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit")
        if self.tile is not None and self.labels is not None:
            raise UserError("tile, labels: an image made of several has no label; set one of the two to null")
        self.label_names: list[str] = []
        self.unlike_training: dict[str, str] = {}  # by set, see `check_trained_on`
        self._sets: dict[str, ImageFolder] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once, on every rank. UserError for bad files, and where loader workers could not open their sockets
        in the temporary folder and the training would wait for them for ever."""
        folder = tempfile.gettempdir()
        if self.num_workers and len(os.fsencode(folder)) > MAX_TEMPORARY_PATH:
            advice = f"set TMPDIR to a path of at most {MAX_TEMPORARY_PATH} characters, or datamodule.num_workers=0"
            raise UserError(f"num_workers: the path of the temporary folder is too long for sockets, {folder}: {advice}")
        if not self._sets:
            self._sets = sets = self.load_sets()
            if self.tile is not None:
                self._sets = {"image": sets["image"].tiled(self.tile), "tile": sets.pop("image"), **sets}

    def load_sets(self) -> dict[str, ImageFolder]:
        """The image sets `image`, `side`, `side_heldout`, `source`, `image_heldout`, as far as they are configured."""
        folder, files = list_images(self.root, recursive=self.labels == "folder")
        classes = None
        if self.labels is not None:
            classes, self.label_names = read_labels(self.labels, folder, files)
        is_file = [Path(self.root).name] == files
        if self.image is not None:
            chosen = choose(files, self.image, folder, is_file)
            files, classes = [files[chosen]], classes and [classes[chosen]]
        elif len(files) == 1 and (self.side_root or not is_file):
            rank_zero_warn(f"root: one training image only, {folder / files[0]}")
        parts = {"image": (folder, files, self.flip, classes)}
        if self.side_root is not None:
            folder, files = list_images(self.side_root, recursive=True, key="side_root")
            if len(files) < 2:
                raise UserError(f"side_root: {folder} contains one image; at least two are needed, one of them held out")
            side, side_heldout = split_heldout(files, self.heldout_fraction)
            parts |= {"side": (folder, side, self.side_flip), "side_heldout": (folder, side_heldout)}
        if self.source_root is not None:
            parts["source"] = (*list_images(self.source_root, recursive=True, key="source_root"), self.flip)
        if self.heldout_root is not None:
            parts["image_heldout"] = list_images(self.heldout_root, recursive=True, key="heldout_root")
        free, sets = self.max_memory_gib * 2**30, dict.fromkeys(parts)
        for key, (folder, files, *more) in sorted(parts.items(), key=lambda item: len(item[1][1])):
            needed = len(files) * 3 * self.image_size[0] * self.image_size[1]
            if in_memory := needed <= free:
                free -= needed
            else:
                rank_zero_info(f"{folder}: {len(files)} images take {needed / 2**30:.1f} GiB, so each access decodes its file")
            sets[key] = ImageFolder(folder, files, self.image_size, *more, in_memory=in_memory)
        sets["image"].table = self.attributes
        if "image_heldout" in sets and (pairs := shared_files(sets["image"], sets["image_heldout"])):
            names = shorten([name for _, name in pairs])
            raise UserError(f"heldout_root: {sets['image_heldout'].folder} contains training images: {names}")
        for first, second in combinations([key for key in sets if key != "image_heldout"], 2):
            if pairs := shared_files(sets[first], sets[second]):
                listed = shorten([f"{sets[first].folder / a} = {sets[second].folder / b}" for a, b in pairs])
                rank_zero_warn(f"the same file is in the sets {first} and {second}: {listed}")
        return sets

    def sets(self) -> dict[str, ImageFolder]:
        if not self._sets:
            raise RuntimeError("the image sets are read in setup(), which has not run yet")
        return self._sets

    def check_images(self) -> None:
        """The quick check of `datamodules.findings`: a warning per kind of finding, UserError if training would be wrong."""
        findings = quick_check(self.sets())
        if errors := [finding for finding in findings if finding.level == "error"]:
            raise UserError("\n".join(summarize(errors)))
        for line in summarize(findings):
            rank_zero_warn(line)

    def fingerprints(self) -> dict[str, str]:
        digests = {key: images.fingerprint for key, images in self.sets().items()}
        classes = self.sets()["image"].labels
        if classes is not None:
            digests["labels"] = sha256("\n".join(self.label_names[index] for index in classes).encode())
        return digests

    def roots(self) -> dict[str, str]:
        roots = {key: getattr(self, key) for key in ("root", "side_root", "source_root", "heldout_root")}
        return {key: str(path.absolute()) for key, root in roots.items() if root and (path := find_root(root))}

    def check_trained_on(self, stored: Mapping[str, str]) -> None:
        """Warns about every set whose files are not those with the `stored` fingerprints; the lines are `unlike_training`."""
        now = self.fingerprints()
        for key in sorted(now.keys() & stored.keys()):
            if stored[key] != now[key]:
                self.unlike_training[key] = f"files of the image set {key}: {stored[key][:12]} → {now[key][:12]}"
                rank_zero_warn(f"not the images of the training: {self.unlike_training[key]}")

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprints": self.fingerprints()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.check_trained_on(state_dict["fingerprints"])

    def train_dataloader(self) -> DataLoader:
        sets = {key: images for key, images in self.sets().items() if key in ("image", "side", "source")}
        ranks, rank = self._rank()
        share = -(-self.samples_per_epoch // ranks)
        reals = getattr(getattr(self.trainer, "lightning_module", None), "reals_per_iteration", 1)
        batch_size = min(self.batch_size * reals, share // reals * reals)
        if batch_size == 0:
            raise UserError(f"samples_per_epoch={self.samples_per_epoch}: an iteration needs {reals} images on each device")
        if batch_size < self.batch_size * reals:
            per_device = f"samples_per_epoch={self.samples_per_epoch} gives each of {ranks} device(s) {share} sample(s)"
            needed = f"batch_size={self.batch_size}" + f" times {reals} per iteration" * (reals > 1)
            rank_zero_warn(f"{per_device}, fewer than {needed}: an epoch is one batch of {batch_size}")
        sizes = {key: len(images) for key, images in sets.items()}
        sampler = JoinedSampler(sizes, share * ranks, self.seed, ranks, rank)
        if self.trainer:  # a resumed fit creates the loader's iterator before it calls set_epoch, and workers fetch at once
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        return self._loader(sets, sampler=sampler, batch_size=batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        images = self.sets().get("tile", self.sets()["image"]).originals()
        sampler = StridedSampler(len(images), *self._rank())
        return self._loader({"image": images}, sampler=sampler, batch_size=self.batch_size)

    test_dataloader = val_dataloader

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(self, sets: dict[str, ImageFolder], **options: Any) -> DataLoader:
        return DataLoader(
            JoinedSets(sets),
            **options,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=dict,  # JoinedSets gives whole batches
            worker_init_fn=silence_worker_exit,
            generator=torch.Generator().manual_seed(self.seed),  # else every iterator draws from the global one (P 5.7)
        )


@dataclass(eq=False)
class JoinedSets(Dataset):
    """Image sets read side by side into whole batches; an index is an int, or a tuple with one int for each set."""

    sets: dict[str, ImageFolder]

    def __len__(self) -> int:
        return len(next(iter(self.sets.values())))

    def __getitems__(self, indices: Sequence[int | tuple[int, ...]]) -> dict[str, Tensor]:
        """The batch for `indices`; NO_ENTRY is left out, so a batch may be empty."""
        rows = [index if isinstance(index, tuple) else (index,) for index in indices if index != NO_ENTRY]
        batch = {}
        for column, (key, images) in enumerate(self.sets.items()):
            entries = torch.tensor([row[column] for row in rows], dtype=torch.int64)
            batch[key] = images.take(entries.tolist())
            batch["index" if key == "image" else f"{key}_index"] = entries
            if key == "image" and images.labels is not None:
                batch["label"] = images.labels[entries % len(images.files)]
        return batch


def split_heldout(files: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Training and held-out names, both in the order of `files` (at least two).

    A function of the names alone: those with the lowest SHA-256, round(fraction · N) of them, at least 1 and at most N - 1,
    are held out. So adding a file moves at most a name or two between the parts.
    """
    num_heldout = min(max(1, round(fraction * len(files))), len(files) - 1)
    heldout = set(sorted(files, key=lambda name: sha256(os.fsencode(name)))[:num_heldout])
    return [name for name in files if name not in heldout], [name for name in files if name in heldout]


def choose(files: Sequence[str], image: str | int, folder: Path, is_file: bool = False) -> int:
    """Index of the file called `image`, with or without its extension, else of file number `image`."""
    text = str(image)
    matches = [i for i, name in enumerate(files) if same_name(text, name) or same_name(text, str(Path(name).with_suffix("")))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"image: {image} fits {', '.join(files[i] for i in matches)}; add the extension")
    if is_file:
        raise UserError(f"image: {image} is not the name of the one image {folder / files[0]}: set datamodule.image=null")
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        if not 0 <= int(text) < len(files):
            raise UserError(f"image: index {text} is out of range; {folder} contains {len(files)} images")
        return int(text)
    raise UserError(f"image: {image} is not in {folder}.{nearest_hint(text, files) or f' It contains {shorten(files)}.'}")


def silence_worker_exit(worker: int) -> None:
    """Hides the traceback of a worker whose main process was ended by a signal."""
    show = sys.excepthook  # also called in the threads that hand over file descriptors
    sys.excepthook = lambda kind, *more: None if issubclass(kind, ConnectionError | EOFError) else show(kind, *more)
