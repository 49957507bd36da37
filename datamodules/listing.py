"""The image files below a root: a folder, a zip file, a folder in a zip file, or one image file."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from core.errors import UserError, nearest_hint
from core.files import PROJECT
from datamodules.archive import locate
from datamodules.decode import EXTENSIONS, open_image

UNSUPPORTED_EXTENSIONS = (".dng", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg")  # images that this project cannot decode
HIDDEN = re.compile(r"(^|/)\.")
MAX_IDENTIFIED = 1000  # files without a known extension whose headers are read
MAX_FOLDERS = 1000  # folders below a root without subfolders that are searched for images
LEFT_OUT = {
    "unsupported format": "their format is not supported",
    "unknown extension": "they are images, but their names do not end in a known extension: rename them",
    "broken link": "links to files that do not exist",
    "linked folder": "links to folders are not followed: copy the images",
    "subfolder": "subfolders are not searched here",
}


class Listing(NamedTuple):
    """Sorted names of files in a folder and, with '/', below it; `left_out` by reason: of LEFT_OUT, or "not an image"."""

    folder: Path
    images: list[str]
    left_out: dict[str, list[str]]


def list_images(root: str, recursive: bool = False, key: str = "root") -> tuple[Path, list[str]]:
    """Folder and images of `list_files`, each name checked by `check_file_name`; a warning per reason of LEFT_OUT."""
    folder, images, left_out = list_files(root, recursive, key)
    for name in images:
        check_file_name(folder, name)
    for reason, explanation in LEFT_OUT.items():
        if names := left_out.get(reason):
            rank_zero_warn(f"{key}: left out of {folder}, because {explanation}: {shorten(names)}")
    return folder, images


def list_files(root: str, recursive: bool = False, key: str = "root") -> Listing:
    """The images in `root`, and what is left out; hidden files and folders count as absent. UserError if there is no image.

    A relative `root` is searched in the working directory, then in the project's own folder, so that the starter images
    are found from anywhere. `key` is the setting's name in errors.
    """
    folder, supported = find_root(root), ", ".join(EXTENSIONS)
    if folder is None:
        raise UserError(f"{key}: {root} does not exist.{_nearest(Path(root).expanduser())}")
    if locate(folder).is_file():
        if folder.suffix.lower() not in EXTENSIONS:
            raise UserError(f"{key}: {folder} is not an image; supported: {supported} and .zip")
        return Listing(folder.parent, [folder.name], {})
    groups = defaultdict(list)
    for name in sorted(_walk(folder, recursive)):
        groups[_group(folder, name, recursive)].append(name)
    images, unknown, _ = (groups.pop(group, []) for group in ("image", "unknown", "ignored"))
    for name in unknown[:MAX_IDENTIFIED]:
        kind = "not an image"
        with suppress(UserError), open_image(folder / name, name):
            kind = "unknown extension"
        groups[kind].append(name)
    if not images:
        subfolders = sorted({name.split("/")[0] for name in groups.get("subfolder", ())})
        extensions = sorted({Path(name).suffix.lower() or "none" for names in groups.values() for name in names})
        content = f"Extensions of its files: {shorten(extensions)}." if extensions else "It is empty."
        if subfolders:
            content = f"There are images in its subfolder(s) {shorten(subfolders)}: choose one of them."
        raise UserError(f"{key}: no image in {folder}; supported: {supported}. {content}")
    return Listing(folder, images, dict(groups))


def find_root(root: str) -> Path | None:
    """The existing path that `root` means, see `list_files`; None if there is none."""
    path = Path(root).expanduser()
    return _existing(path) or _existing(PROJECT / path)


def check_file_name(folder: Path, name: str) -> None:
    """Raises UserError for a link to a file outside of the folder and for a name with control characters."""
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise UserError(f"{folder}: the file name {name!r} contains control characters: rename it")
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link to {path.resolve()}, outside of its folder: put a copy there instead")


def printable(name: str) -> str:
    r"""A file name as text that every encoder accepts: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shorten(names: Sequence[str], limit: int = 10) -> str:
    rest = len(names) - limit
    return ", ".join(map(printable, names[:limit])) + (f" and {rest} more" if rest > 0 else "")


def same_name(first: str, second: str) -> bool:
    """True for names that look the same: composed (NFC) and decomposed (NFD) accents are equal."""
    return normalize("NFC", first) == normalize("NFC", second)


def _walk(folder: Path, recursive: bool) -> Iterator[str]:
    found = locate(folder)
    if not isinstance(found, Path):
        names = (name.removeprefix(found.at) for name in found.root.namelist() if name.startswith(found.at))
        yield from (name for name in names if not name.endswith("/") and not HIDDEN.search(name))
        return
    for parent, subfolders, files in islice(os.walk(folder), None if recursive else MAX_FOLDERS):
        subfolders[:] = [name for name in subfolders if not HIDDEN.match(name)]
        for path in (Path(parent, name) for name in [*subfolders, *files] if not HIDDEN.match(name)):
            if path.is_file() or path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _group(folder: Path, name: str, recursive: bool) -> str:
    """One of LEFT_OUT, "image", "unknown", or "ignored" for what is not even an image in a subfolder."""
    path, lower = folder / name, name.lower()
    if path.is_symlink() and not path.is_file():
        return "linked folder" if path.is_dir() else "broken link"
    if not recursive and "/" in name:
        return "subfolder" if lower.endswith(EXTENSIONS) else "ignored"
    if lower.endswith(EXTENSIONS):
        return "image"
    return "unsupported format" if lower.endswith(UNSUPPORTED_EXTENSIONS) else "unknown"


def _existing(path: Path) -> Path | None:
    """`path`, or the existing path of a name that looks the same; None if there is neither."""
    found = locate(path)
    if found.is_file() or found.is_dir():
        return path
    if not isinstance(found, Path) or path.parent == path:
        return None
    parent = _existing(path.parent)
    siblings = parent.iterdir() if parent and parent.is_dir() else ()
    return next((entry for entry in siblings if same_name(entry.name, path.name)), None)


def _nearest(path: Path) -> str:
    while not path.parent.is_dir():
        path = path.parent
    siblings = sorted(entry.name for entry in path.parent.iterdir() if not HIDDEN.match(entry.name))
    return nearest_hint(path.name, siblings) or f" {path.parent.resolve()} contains: {shorten(siblings) or 'nothing'}."
