"""Files that are whole or not there."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PROJECT = Path(__file__).resolve().parents[1]
DRAFT = ".draft"  # ends the name of a file that is being written


def shipped_file(path: str) -> str:
    """`path`, or where it names nothing the file of that name in the project's own folder, so that its weights are found from
    any working directory."""
    own = PROJECT / path
    return str(own) if own.is_file() and not Path(path).exists() else path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` when all of it is on the disk; after an error `path` is unchanged."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + DRAFT)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(folder: str | Path, outdated: Collection[str] = ()) -> Iterator[Path]:
    """A draft folder, whose files replace those of the same name in `folder` when all are on the disk; those in `outdated` that
    were not written anew are deleted. After an error `folder` is unchanged."""
    folder = Path(folder)
    existed, draft = folder.is_dir(), folder / DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
        files = sorted(draft.iterdir())
        for file in files:
            _sync(file)
        for file in files:
            os.replace(file, folder / file.name)
        for name in {*outdated} - {file.name for file in files}:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_link(source: str | Path, target: str | Path) -> None:
    """Gives the file `source` the second name `target`, at once: a hard link, or a copy where the file system has no links."""
    source, target = Path(source).resolve(), Path(target)
    if target.exists() and target.samefile(source) and not target.is_symlink():
        return  # renaming one name of a file to another name of it would do nothing and leave the draft
    draft = target.with_name(target.name + DRAFT)
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
        os.replace(draft, target)
    except OSError:
        draft.unlink(missing_ok=True)
        with source.open("rb") as original, atomic_write(target) as file:
            shutil.copyfileobj(original, file)
    _sync(target.parent)
