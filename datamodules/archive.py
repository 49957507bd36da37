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
from datamodules.decode import MAX_FILE_BYTES, check_file_bytes


def split_archive(path: Path) -> tuple[Path, str] | None:
    """The zip file that `path` leads into and the member's name in it ("" for its top); None outside of zip files."""
    for parent in (path, *path.parents):
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, "/".join(path.relative_to(parent).parts)
    return None


def read_content(path: Path) -> bytes:
    """The content of an image file, which may lie in a zip file; UserError that names it if it cannot be read."""
    inside = split_archive(path)
    if inside is not None:
        return read_member(*inside)
    try:
        check_file_bytes(path, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error


def member_names(archive: Path, folder: str = "") -> list[str]:
    """Names of the files below `folder`, relative to it; none if there is no such folder. Errors: see `read_member`."""
    start = f"{folder}/" if folder else ""
    return [name.removeprefix(start) for name in _open(archive)[1] if name.startswith(start)]


def read_member(archive: Path, name: str) -> bytes:
    """The content of one member, at most MAX_FILE_BYTES.

    Raises UserError that names the member if it is larger, missing, encrypted or damaged, or if the archive is no zip
    file or has members outside of it, links, or two members of one name.
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
    """Cached, since reading a large archive's directory is slow; not over a fork, which would share the file position."""
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
            raise UserError(f"{archive}: refused, it has two members named {info.filename!r}")
        members[info.filename] = info
    return content, members


def _check_member(archive: Path, info: ZipInfo) -> None:
    name = info.orig_filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise UserError(f"{archive}: refused, the name {info.orig_filename!r} leads out of the archive")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{archive}: refused, {info.filename!r} is a link")
