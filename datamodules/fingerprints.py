"""SHA-256 of image files and sets, cached on the disk for large sets, and the comparison with those of a training."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.files import atomic_write
from datamodules.archive import read_content, split_archive

MIN_CACHED = 1000  # files of a set; fewer are hashed in a second
SETTLE_SECONDS = 5.0  # a file changed this recently may change again within one tick of its time stamps


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fingerprint_of(files: Sequence[str], digests: Sequence[str]) -> str:
    """SHA-256 over the sorted file names with the SHA-256 of their contents."""
    rows = sorted(zip(files, digests, strict=True))
    return sha256(b"\n".join(os.fsencode(f"{digest} {name}") for name, digest in rows))


def file_digests(folder: Path, files: Sequence[str]) -> list[str]:
    """SHA-256 of the content of every file.

    For sets of at least MIN_CACHED files they are cached in the user's cache folder (`$XDG_CACHE_HOME/handful`), each with
    the file's size, inode, modification and status-change time. The last one cannot be set back, so a changed file is
    hashed again whatever its modification time says. A cache that cannot be read or written is ignored.
    """
    if len(files) < MIN_CACHED:
        return [sha256(read_content(folder / name)) for name in files]
    start, cache_file = time.time(), _cache_file(folder)
    cached, entries = _read_cache(cache_file), {}
    for name in files:
        state = _state(folder / name)
        entry = cached.get(name)
        if not (isinstance(entry, list) and entry[:-1] == state):
            entry = [*state, sha256(read_content(folder / name))]
        entries[name] = entry
    settled = {name: entry for name, entry in entries.items() if max(entry[2:4]) < (start - SETTLE_SECONDS) * 1e9}
    if any(cached.get(name) != entry for name, entry in settled.items()):
        with suppress(OSError), atomic_write(cache_file) as file:
            file.write(json.dumps(cached | settled).encode())
    return [entries[name][-1] for name in files]


def compare_fingerprints(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line with both fingerprints for every image set of either side that differs from the other side's."""
    pairs = {key: (stored.get(key, "none"), now.get(key, "none")) for key in sorted({*stored, *now})}
    return [f"files of the image set {key}: {old[:12]} → {new[:12]}" for key, (old, new) in pairs.items() if old != new]


def _cache_file(folder: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "handful" / "fingerprints" / f"{sha256(os.fsencode(folder.resolve()))}.json"


def _read_cache(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _state(path: Path) -> list[int]:
    """Size, inode, modification and status-change time (ns) of a file; of a member of a zip file those of the zip file."""
    inside = split_archive(path)
    state = (inside[0] if inside else path).stat()
    return [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
