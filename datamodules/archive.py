"""Zip files as folders, read in place: nothing is unpacked, so no member can be written anywhere.

`photos.zip` is the folder of all members, `photos.zip/birds` a folder in it, `photos.zip/birds/a.png` one file.
"""

import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO
from zipfile import Path as ZipPath
from zipfile import ZipFile

from core.errors import UserError

MAX_FILE_BYTES = 256 * 2**20  # of one image file, packed or not; 89 million pixels, Pillow's limit, are 255 MiB of bytes


def archive_of(path: Path) -> Path | None:
    """The zip file that `path` is or leads into; None outside of zip files."""
    return next((p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and p.is_file()), None)


def locate(path: Path) -> Path | ZipPath:
    """`path`, or what it names in a zip file, which has the same `is_file`, `is_dir` and `open`; UserError for an archive
    that is damaged or has members outside of it, links, or two members of one name."""
    archive = archive_of(path)
    if archive is None:
        return path
    state = archive.stat()
    top = ZipPath(_opened(archive, state.st_size, state.st_mtime_ns, os.getpid()))
    return top.joinpath(*path.relative_to(archive).parts)


def open_file(path: Path) -> IO[bytes]:
    """An image file, which may lie in a zip file, to read; UserError if it is too large."""
    found = locate(path)
    size = found.stat().st_size if isinstance(found, Path) else found.root.getinfo(found.at).file_size
    if size > MAX_FILE_BYTES:  # of a member the declared size; zipfile reads no byte more
        raise UserError(f"it has {size / 2**20:.0f} MiB, the limit is {MAX_FILE_BYTES // 2**20}")
    return found.open("rb")


def read_content(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except Exception as error:  # each decompressor has its own: zlib.error, lzma.LZMAError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path.name} in {path.parent}: {reason}") from error


@lru_cache(maxsize=4)
def _opened(archive: Path, size: int, changed: int, process: int) -> ZipFile:
    """Cached, since reading a large archive's directory is slow; not over a fork, which would share the file position."""
    try:
        content = ZipFile(archive)
    except Exception as error:
        raise UserError(f"{archive}: not a zip file, or a damaged one ({error})") from error
    names: set[str] = set()
    for info in content.infolist():
        name = info.orig_filename.replace("\\", "/")
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise UserError(f"{archive}: refused, the name {info.orig_filename!r} points outside of the archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{archive}: refused, {info.filename!r} is a link")
        if info.filename in names and not info.is_dir():
            raise UserError(f"{archive}: refused, it has two members named {info.filename!r}")
        names.add(info.filename)
    return content
