"""ImageFolder: image files as float images in [-1, 1]; and the listing of files it starts from."""

import copy
import difflib
import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.decode import ENDINGS, decode, probe

PROJECT = Path(__file__).resolve().parents[1]
# Images too, but none that this project decodes: worth a warning, unlike a text file.
UNREAD_ENDINGS = (".dng", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg")


def list_images(root: str, recursive: bool = False, key: str = "root") -> tuple[Path, list[str]]:
    """The folder and the sorted names ('/' between folders) of the images in `root`, a folder or a single image file.

    Hidden files are left out. A relative `root` is looked up from the working directory, then from the project's own
    folder, so that the starter images are found from anywhere. `key` is what errors call the setting.
    Raises FileNotFoundError (with the nearest existing name) or ValueError (a folder without images).
    """
    folder = Path(root).expanduser()
    if not folder.exists() and (PROJECT / folder).exists():
        folder = PROJECT / folder
    if not folder.exists():
        raise FileNotFoundError(f"{key}: {folder} does not exist. {_nearest(folder)}")
    if folder.is_file():
        if folder.suffix.lower() not in ENDINGS:
            raise ValueError(f"{key}: {folder} is not an image; endings that are read: {', '.join(ENDINGS)}")
        return folder.parent, [folder.name]
    files = _visible_files(folder, recursive)
    images = sorted(name for name in files if name.lower().endswith(ENDINGS))
    if not images:
        read = f"endings that are read: {', '.join(ENDINGS)}"
        raise ValueError(f"{key}: no image in {folder}; {read}. {_content(folder)}")
    unread = sorted(name for name in files if name.lower().endswith(UNREAD_ENDINGS))
    if unread:
        rank_zero_warn(f"{key}: left out, because their format is not read: {shorten(unread)}")
    return folder, images


class ImageFolder(Dataset):
    """Images of one size: entry i is file i, and with `flip` entry N + i is file i mirrored left to right.

    So everything computed from an entry is a function of its index and may be cached.

    Args:
        folder, files: as `list_images` gives them; `files` may be a part of the list.
        image_size: (height, width); see `datamodules.decode` for how an image is fitted.
        in_memory: decode now and keep bytes, N·3·H·W of them; else only the headers are read now and every access
            decodes its file.
    Raises ValueError that names the first unreadable file. One warning lists the images that had to be enlarged;
    `enlargement` holds each file's factor, 1 or less where none was needed.
    """

    def __init__(
        self, folder: Path, files: Sequence[str], image_size: Sequence[int], flip: bool = False, in_memory: bool = True
    ) -> None:
        self.folder = folder
        self.files = list(files)
        self.image_size = (image_size[0], image_size[1])
        self.flip = flip
        self.pixels: Tensor | None = None
        if in_memory:
            self.enlargement = self._decode_all()
        else:
            self.enlargement = [probe(folder / name, self.image_size) for name in self.files]
        small = [name for name, factor in zip(self.files, self.enlargement, strict=True) if factor > 1]
        if small:
            size = "×".join(map(str, self.image_size))
            rank_zero_warn(f"images of {folder} smaller than image_size {size}, enlarged: {shorten(small)}")

    def __len__(self) -> int:
        return len(self.files) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> Tensor:
        """Entry `index` as float32 [3, H, W] in [-1, 1]."""
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of a set of {len(self)}")
        position = index % len(self.files)
        pixels = self._decode(position) if self.pixels is None else self.pixels[position]
        if index >= len(self.files):
            pixels = pixels.flip(-1)
        return pixels.float().div(127.5).sub(1)

    def stack(self) -> Tensor:
        """All entries, mirrored ones included, as float32 [len(self), 3, H, W] in [-1, 1]."""
        return torch.stack([self[index] for index in range(len(self))])

    def originals(self) -> "ImageFolder":
        """The same images without mirrored entries; the memory is shared."""
        plain = copy.copy(self)
        plain.flip = False
        return plain

    @property
    def names(self) -> list[str]:
        """One name for each entry."""
        return self.files + [f"{name} (mirrored)" for name in self.files] * self.flip

    @cached_property
    def digests(self) -> list[str]:
        """The SHA-256 of every file's content, in the order of `files`."""
        return [_sha256(_content_of(self.folder / name)) for name in self.files]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted file names with their digests; neither size nor flip nor the folder's place count."""
        rows = sorted(zip(self.files, self.digests, strict=True))
        return _sha256(b"\n".join(os.fsencode(f"{digest} {name}") for name, digest in rows))

    def _decode(self, position: int) -> Tensor:
        path = self.folder / self.files[position]
        return decode(_content_of(path), path, self.image_size)[0]

    def _decode_all(self) -> list[float]:
        """Fill `pixels` and `digests` in one pass over the files; returns the enlargement of each image."""
        self.pixels = torch.empty(len(self.files), 3, *self.image_size, dtype=torch.uint8)
        factors, digests = [], []
        for position, name in enumerate(self.files):
            data = _content_of(self.folder / name)
            digests.append(_sha256(data))
            self.pixels[position], factor = decode(data, self.folder / name, self.image_size)
            factors.append(factor)
        self.digests = digests
        return factors


def shared_files(first: ImageFolder, second: ImageFolder) -> list[tuple[str, str]]:
    """Pairs of names (one of each set) of files with the same content."""
    known = dict(zip(first.digests, first.files, strict=True))
    pairs = zip(second.digests, second.files, strict=True)
    return [(known[digest], name) for digest, name in pairs if digest in known]


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _visible_files(folder: Path, recursive: bool) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.glob("**/*" if recursive else "*") if path.is_file())
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _nearest(path: Path) -> str:
    """What the writer of a path that does not exist may have meant."""
    while not path.parent.is_dir():
        path = path.parent
    siblings = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(path.name, siblings, 1)
    if close:
        return f"Did you mean {path.parent / close[0]}?"
    return f"{path.parent.resolve()} holds: {shorten(siblings) or 'nothing'}."


def _content(folder: Path) -> str:
    """What a folder without images holds instead."""
    names = _visible_files(folder, recursive=True)
    subfolders = sorted({name.split("/")[0] for name in names if "/" in name and name.lower().endswith(ENDINGS)})
    if subfolders:
        return f"There are images in its subfolder(s) {shorten(subfolders)}: give one of them."
    endings = sorted({Path(name).suffix.lower() or "none" for name in names})
    return f"Endings found: {shorten(endings)}." if endings else "It is empty."


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error.strerror}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
