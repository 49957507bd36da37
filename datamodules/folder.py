"""ImageFolder: images as float images in [-1, 1] of one size."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.utils import make_grid

from datamodules.archive import locate, read_content
from datamodules.decode import Treatment, decode, probe
from datamodules.fingerprints import file_digests, fingerprint_of, sha256
from datamodules.labels import read_attributes
from datamodules.listing import printable, shorten
from modules.ops.images import from_uint8

NUM_DECODED_EARLY = 32  # images of a set that is not in memory which are decoded at the start, to find damage


@dataclass(eq=False, repr=False)
class ImageFolder(Dataset):
    """Images of one size: entry i is file i, and with `flip` entry N + i is file i mirrored left to right.

    UserError names the first unreadable file; a warning lists the images that had to be enlarged.

    Args:
        image_size: (height, width).
        labels: class index of each file.
        in_memory: decode now; else only the headers are read now (and a few images decoded), and every access decodes.
        pixels: uint8 [N, 3, H, W] of images in memory, which may be in no files.
        table: CSV file of `attributes`, relative to `folder` or absolute.
    """

    folder: Path
    files: Sequence[str]
    image_size: Sequence[int]
    flip: bool = False
    labels: Sequence[int] | Tensor | None = None
    in_memory: bool = True
    pixels: Tensor | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        self.files, self.image_size = list(self.files), tuple(self.image_size)
        self.labels = None if self.labels is None else torch.as_tensor(self.labels)
        self.treatments: list[Treatment] = []  # of files
        if self.pixels is None:
            self._read()
        if small := [name for name, factor in zip(self.files, self.enlargement, strict=True) if factor > 1]:
            size = "×".join(map(str, self.image_size))
            rank_zero_warn(f"images of {self.folder} smaller than image_size {size}, enlarged: {shorten(small)}")

    def __len__(self) -> int:
        return len(self.files) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> Tensor:
        """Entry `index` as float32 [3, H, W] in [-1, 1]."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        pixels = self.bytes_of(index % len(self.files))
        return from_uint8(pixels.flip(-1) if index >= len(self.files) else pixels)

    def bytes_of(self, position: int) -> Tensor:
        """File number `position`, not mirrored, as uint8 [3, H, W]."""
        if self.pixels is not None:
            return self.pixels[position]
        path = self.folder / self.files[position]
        return decode(read_content(path), path, self.image_size)[0]

    def take(self, indices: Iterable[int]) -> Tensor:
        """Entries as float32 [N, 3, H, W] in [-1, 1]."""
        entries = [self[index] for index in indices]
        return torch.stack(entries) if entries else torch.empty(0, 3, *self.image_size)

    def stack(self) -> Tensor:
        """All entries, mirrored ones included, as float32: 12·len(self)·H·W bytes. For small sets."""
        return self.take(range(len(self)))

    def originals(self) -> "ImageFolder":
        """The same images without mirrored entries; the memory is shared."""
        plain = copy.copy(self)
        plain.flip = False
        return plain

    def tiled(self, tile: str) -> "ImageFolder":
        """One image: all side by side (row), one below the other (column), or in a nearly square table (grid), whose last
        cells repeat the first images; mirrored as a whole if the set is."""
        count = len(self.files)
        columns = {"row": count, "column": 1, "grid": math.ceil(math.sqrt(count))}[tile]
        cells = [self.bytes_of(cell % count) for cell in range(math.ceil(count / columns) * columns)]
        pixels = make_grid(torch.stack(cells), columns, padding=0)[None]
        tiled = ImageFolder(self.folder, [f"{tile} of {shorten(self.files)}"], pixels.shape[2:], self.flip, pixels=pixels)
        tiled.digests = [sha256("\n".join([tile, *self.digests]).encode())]
        return tiled

    @property
    def names(self) -> list[str]:
        names = [printable(name) for name in self.files]
        return names + [f"{name} (mirrored)" for name in names] * self.flip

    @cached_property
    def attributes(self) -> dict[str, list[str]]:
        """Columns of the table, by name, with a value for each file; empty without such a file."""
        exists = self.table is not None and locate(self.folder / self.table).is_file()
        return read_attributes(self.table, self.folder, self.files) if exists else {}

    @property
    def enlargement(self) -> list[float]:
        return [treatment.enlargement for treatment in self.treatments] or [1.0] * len(self.files)

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of every file's content (of the pixels where there are no files), in the order of `files`."""
        if self.treatments or self.pixels is None:
            return file_digests(self.folder, self.files)
        return [sha256(image.numpy().tobytes()) for image in self.pixels]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted file names with their digests, the same for a folder and a zip file with the same files."""
        return fingerprint_of(self.files, self.digests)

    def _read(self) -> None:
        step = 1 if self.in_memory else max(1, len(self.files) // NUM_DECODED_EARLY)
        if self.in_memory:
            self.pixels = torch.empty(len(self.files), 3, *self.image_size, dtype=torch.uint8)
            self.digests = []
        for position, path in enumerate(self.folder / name for name in self.files):
            if position % step:
                self.treatments.append(probe(path, self.image_size))
                continue
            data = read_content(path)
            pixels, treatment = decode(data, path, self.image_size)
            self.treatments.append(treatment)
            if self.in_memory:
                self.pixels[position] = pixels
                self.digests.append(sha256(data))


def shared_files(first: ImageFolder, second: ImageFolder) -> list[tuple[str, str]]:
    """Pairs of names (one of each set) of files with the same content."""
    names = dict(zip(first.digests, first.files, strict=True))
    return [(names[digest], name) for digest, name in zip(second.digests, second.files, strict=True) if digest in names]
