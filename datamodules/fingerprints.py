"""SHA-256 of image files and sets, cached on the disk for large sets."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core.files import atomic_write
from datamodules.archive import archive_of, read_content

MIN_CACHED = 1000  # files of a set; fewer are hashed in a second
SETTLE_SECONDS = 5.0  # a file changed this recently may change again within one tick of its time stamps


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fingerprint_of(files: Sequence[str], digests: Sequence[str]) -> str:
    rows = sorted(zip(files, digests, strict=True))
    return sha256(b"\n".join(os.fsencode(f"{digest} {name}") for name, digest in rows))


def file_digests(folder: Path, files: Sequence[str]) -> list[str]:
    """SHA-256 of the content of every file, for sets of at least MIN_CACHED files cached in `$XDG_CACHE_HOME/handful`.

    A cached one is valid while size, inode and times of the file or its zip file are the same; the status-change time cannot
    be set back, so a changed file is hashed again. A cache that cannot be read or written is ignored.
    """
    if len(files) < MIN_CACHED:
        return [sha256(read_content(folder / name)) for name in files]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache_file = root / "handful" / "fingerprints" / f"{sha256(os.fsencode(folder.resolve()))}.json"
    cached, added, digests = {}, {}, []
    with suppress(OSError, TypeError, ValueError, RecursionError):
        cached = dict(json.loads(cache_file.read_bytes()))
    settled = (time.time() - SETTLE_SECONDS) * 1e9
    for name in files:
        path = folder / name
        state = (archive_of(path) or path).stat()
        key = f"{state.st_size} {state.st_ino} {state.st_mtime_ns} {state.st_ctime_ns}"
        cached_key, _, digest = str(cached.get(name)).rpartition(" ")
        if cached_key != key:
            digest = sha256(read_content(path))
            if max(state.st_mtime_ns, state.st_ctime_ns) < settled:
                added[name] = f"{key} {digest}"
        digests.append(digest)
    if added:
        with suppress(OSError), atomic_write(cache_file) as file:
            file.write(json.dumps(cached | added).encode())
    return digests
