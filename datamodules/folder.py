"""ImageFolder: image files as float images in [-1, 1]; and the listing of files it starts from, in folders and zip files."""

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

from core.errors import UserError
from datamodules.archive import in_archive, member_names, read_member
from datamodules.decode import Treatment, decode, probe
from datamodules.image_files import ENDINGS, check_file_bytes

PROJECT = Path(__file__).resolve().parents[1]
# Images too, but none that this project decodes: worth a warning, unlike a text file.
UNREAD_ENDINGS = (".dng", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg")


def list_images(root: str, recursive: bool = False, key: str = "root") -> tuple[Path, list[str]]:
    """The folder and the sorted names ('/' between folders) of the images in `root`: a folder, a zip file, a folder in a
    zip file (photos.zip/birds), or a single image file.

    Hidden files are left out. A relative `root` is looked up from the working directory, then from the project's own
    folder, so that the starter images are found from anywhere. `key` is what errors call the setting.
    Raises FileNotFoundError (with the nearest existing name) or ValueError (a folder without images, a file that
    `check_place` refuses).
    """
    folder, images, others = survey(root, recursive, key)
    for name in images:
        check_place(folder, name)
    unread = [name for name in others if name.lower().endswith(UNREAD_ENDINGS)]
    if unread:
        rank_zero_warn(f"{key}: left out, because their format is not read: {shorten(unread)}")
    return folder, images


def survey(root: str, recursive: bool = False, key: str = "root") -> tuple[Path, list[str], list[str]]:
    """As `list_images`, without its last check, and the sorted names of the visible files that are left out."""
    folder = Path(root).expanduser()
    if not _exists(folder) and _exists(PROJECT / folder):
        folder = PROJECT / folder
    if not _exists(folder):
        raise FileNotFoundError(f"{key}: {folder} does not exist. {_nearest(folder)}")
    place = in_archive(folder)
    if (place is None and folder.is_file()) or (place and place[1] in member_names(place[0])):
        if folder.suffix.lower() not in ENDINGS:
            raise UserError(f"{key}: {folder} is not an image; endings that are read: {', '.join(ENDINGS)} and .zip")
        return folder.parent, [folder.name], []
    files = sorted(visible_files(folder, recursive))
    images = [name for name in files if name.lower().endswith(ENDINGS)]
    if not images:
        read = f"endings that are read: {', '.join(ENDINGS)}"
        raise UserError(f"{key}: no image in {folder}; {read}. {_content(folder)}")
    return folder, images, [name for name in files if not name.lower().endswith(ENDINGS)]


def visible_files(folder: Path, recursive: bool) -> list[str]:
    """The names of the files of `folder`, which may lie in a zip file; hidden ones and those in hidden folders left out."""
    place = in_archive(folder)
    if place is None:
        names = [path.relative_to(folder).as_posix() for path in folder.glob("**/*" if recursive else "*") if path.is_file()]
    else:
        names = [name for name in member_names(*place) if recursive or "/" not in name]
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def check_place(folder: Path, name: str) -> None:
    """Raises ValueError for a file of a set that is a link out of the folder, or whose name holds control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise UserError(f"{folder}: the file name {name!r} holds control characters: rename it")
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link out of its folder, to {path.resolve()}: put a copy there instead")


def read_content(path: Path) -> bytes:
    """The content of an image file, which may lie in a zip file; ValueError that names it if it cannot be read."""
    place = in_archive(path)
    if place is not None:
        return read_member(*place)
    try:
        check_file_bytes(path, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error


def fingerprint_of(files: Sequence[str], digests: Sequence[str]) -> str:
    """SHA-256 over the sorted file names with the SHA-256 of their contents."""
    rows = sorted(zip(files, digests, strict=True))
    return sha256(b"\n".join(os.fsencode(f"{digest} {name}") for name, digest in rows))


def sha256(data: bytes) -> str:
    """The digest of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class ImageFolder(Dataset):
    """Images of one size: entry i is file i, and with `flip` entry N + i is file i mirrored left to right.

    So everything computed from an entry is a function of its index and may be cached.

    Args:
        folder, files: as `list_images` gives them; `files` may be a part of the list.
        image_size: (height, width); see `datamodules.decode` for how an image is fitted.
        in_memory: decode now and keep bytes, N·3·H·W of them; else only the headers are read now and every access
            decodes its file.
    Raises ValueError that names the first unreadable file. One warning lists the images that had to be enlarged;
    `enlargement` holds each file's factor, 1 or less where none was needed, `treatments` all that is done to each.
    """

    treatments: Sequence[Treatment] = ()  # a set that is drawn or put together has none

    def __init__(
        self, folder: Path, files: Sequence[str], image_size: Sequence[int], flip: bool = False, in_memory: bool = True
    ) -> None:
        self.folder = folder
        self.files = list(files)
        self.image_size = (image_size[0], image_size[1])
        self.flip = flip
        self.pixels: Tensor | None = None
        self.treatments = self._decode_all() if in_memory else [self._probe(name) for name in self.files]
        self.enlargement = [treatment.enlargement for treatment in self.treatments]
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
        return [sha256(read_content(self.folder / name)) for name in self.files]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted file names with their digests; neither size nor flip nor the folder's place count.

        A zip file has the fingerprint of a folder with the same files.
        """
        return fingerprint_of(self.files, self.digests)

    def _decode(self, position: int) -> Tensor:
        path = self.folder / self.files[position]
        return decode(read_content(path), path, self.image_size)[0]

    def _probe(self, name: str) -> Treatment:
        path = self.folder / name
        return probe(path, self.image_size, read_content(path) if in_archive(path) else None)

    def _decode_all(self) -> list[Treatment]:
        """Fill `pixels` and `digests` in one pass over the files; returns what was done to each."""
        self.pixels = torch.empty(len(self.files), 3, *self.image_size, dtype=torch.uint8)
        treatments, digests = [], []
        for position, name in enumerate(self.files):
            data = read_content(self.folder / name)
            digests.append(sha256(data))
            self.pixels[position], treatment = decode(data, self.folder / name, self.image_size)
            treatments.append(treatment)
        self.digests = digests
        return treatments


def shared_files(first: ImageFolder, second: ImageFolder) -> list[tuple[str, str]]:
    """Pairs of names (one of each set) of files with the same content."""
    known = dict(zip(first.digests, first.files, strict=True))
    pairs = zip(second.digests, second.files, strict=True)
    return [(known[digest], name) for digest, name in pairs if digest in known]


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _exists(path: Path) -> bool:
    place = in_archive(path)
    if place is None:
        return path.exists()
    return not place[1] or place[1] in member_names(place[0]) or bool(member_names(*place))


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
    names = visible_files(folder, recursive=True)
    subfolders = sorted({name.split("/")[0] for name in names if "/" in name and name.lower().endswith(ENDINGS)})
    if subfolders:
        return f"There are images in its subfolder(s) {shorten(subfolders)}: give one of them."
    endings = sorted({Path(name).suffix.lower() or "none" for name in names})
    return f"Endings found: {shorten(endings)}." if endings else "It is empty."
