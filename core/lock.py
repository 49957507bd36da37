"""A lock on a folder that ends with the processes that hold it."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from core.errors import UserError

_held: dict[tuple[int, Path], IO[str]] = {}  # locks of this process


def lock_folder(folder: str | Path, name: str = ".lock", wait: bool = False) -> IO[str]:
    """Locks a folder for this process and those that inherit the open lock file, which is returned, until it is closed. With
    `wait` waits for another holder to end, in place of a UserError that names it."""
    key = os.getpid(), Path(folder).resolve() / name
    if key in _held and not _held[key].closed:
        return _held[key]
    file = open(key[1], "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read().strip() or "another process"
        raise UserError(f"{folder} is in use by {holder}. Wait for it to end, or choose another folder.") from None
    except OSError:
        pass  # no locks on this file system
    _held[key] = file
    return file


def sign_lock(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def release_locks() -> None:
    for key in [key for key in _held if key[0] == os.getpid()]:
        _held.pop(key).close()
