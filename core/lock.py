"""A lock on a folder that ends with the processes that hold it."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from core.errors import UserError

_held: dict[tuple[int, Path], IO[str]] = {}  # locks of this process


def lock_folder(folder: str | Path, name: str = ".lock", wait: bool = False) -> IO[str]:
    """Locks an existing folder for this process and returns the open lock file; closing it releases the lock.

    Processes that inherit the file, such as forked ranks, hold the lock too. It is an advisory lock of the system (`flock`),
    which no kill leaves behind; where a file system has none, nothing is locked. A second call of the same process returns
    the same file.

    Args:
        name: the lock file in `folder`.
        wait: wait for the holder to end, in place of a UserError that names its process and host.
    """
    key = os.getpid(), Path(folder).resolve() / name
    if key in _held and not _held[key].closed:
        return _held[key]
    file = open(key[1], "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{folder} is in use by {holder}. Wait for it to end, or choose another folder.") from None
    except OSError:
        pass  # no locks on this file system
    _held[key] = file
    return file


def sign_lock(file: IO[str]) -> None:
    """Writes process id and host into a lock file, for the message that others get."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def release_locks() -> None:
    """Releases all locks of this process."""
    for key in [key for key in _held if key[0] == os.getpid()]:
        _held.pop(key).close()
