"""Zip files as folders, read in place: nothing is unpacked, so no member can be written anywhere.

`photos.zip` is the folder of all members, `photos.zip/birds` a folder in it, `photos.zip/birds/a.png` one file.
"""

import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

from core.errors import UserError
from datamodules.image_files import MAX_FILE_BYTES, check_file_bytes


def in_archive(path: Path) -> tuple[Path, str] | None:
    """The zip file that `path` leads into and the place in it ("" for its top); None for a path outside of zip files."""
    for place in (path, *path.parents):
        if place.suffix.lower() == ".zip" and place.is_file():
            return place, "/".join(path.relative_to(place).parts)
    return None


def member_names(archive: Path, place: str = "") -> list[str]:
    """The files below `place`, by their names from there; none if there is no such place. Errors: see `read_member`."""
    start = f"{place}/" if place else ""
    return [name.removeprefix(start) for name in _open(archive)[1] if name.startswith(start)]


def read_member(archive: Path, name: str) -> bytes:
    """The content of one file, at most MAX_FILE_BYTES.

    Raises ValueError that names the file if it is larger, missing, encrypted or damaged, or if the archive is no zip
    file or holds names that lead out of it, links, or one name twice.
    """
    content, members = _open(archive)
    if name not in members:
        raise UserError(f"{archive} has no {name}")
    if members[name].file_size > MAX_FILE_BYTES:  # declared; zipfile reads no byte more
        check_file_bytes(archive / name, members[name].file_size)
    try:
        return content.read(members[name])
    except (BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot read {name} in {archive}: {error}") from error
    except Exception as error:  # zlib.error, lzma.LZMAError: each decompressor has its own
        raise UserError(f"cannot read {name} in {archive}: it is damaged ({error})") from error


def _open(archive: Path) -> tuple[ZipFile, Mapping[str, ZipInfo]]:
    state = archive.stat()
    return _opened(archive, state.st_size, state.st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _opened(archive: Path, size: int, changed: int, process: int) -> tuple[ZipFile, Mapping[str, ZipInfo]]:
    """Kept open, since reading the directory of a large archive takes long; not over a fork, which would share the place."""
    try:
        content = ZipFile(archive)
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive}: not a zip file, or a damaged one ({error})") from error
    members: dict[str, ZipInfo] = {}
    for info in content.infolist():
        if info.is_dir():
            continue
        _check_member(archive, info)
        if info.filename in members:
            raise UserError(f"{archive}: refused, it holds two files named {info.filename!r}")
        members[info.filename] = info
    return content, members


def _check_member(archive: Path, info: ZipInfo) -> None:
    name = info.orig_filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise UserError(f"{archive}: refused, the name {info.orig_filename!r} leads out of the archive")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{archive}: refused, {info.filename!r} is a link")
