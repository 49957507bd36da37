"""Files of tensors from untrusted sources: read without running code, identified by their content."""

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO

import torch

from core.errors import UserError


def read_hashed(path: str | Path) -> tuple[Any, str]:
    """Contents of a file written by `torch.save`, on the CPU by the safe loader, and the file's SHA-256, hexadecimal. The file
    is read once, its CRC-32s, which torch does not compare, are checked. UserError if it is damaged, packed, or would run
    code."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            source = io.BytesIO(_read_archive(file)) if zipfile.is_zipfile(file) else file
            source.seek(0)
            tensors = torch.load(source, map_location="cpu", weights_only=True)
            source.seek(0)
            return tensors, hashlib.file_digest(source, "sha256").hexdigest()
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"loading it would run code ({name[1]})" if name else "it is not a file of tensors, or would run code"
        raise UserError(f"{path}: refused, {reason}; a checkpoint holds tensors and plain values only") from None
    except Exception:  # torch raises nearly anything for files that are something else
        raise UserError(f"{path}: not a checkpoint, or a damaged one") from None


def check_keys(keys: Set[str], expected: Set[str], method: str, further: Sequence[str] = ()) -> None:
    """UserError with the first problems of a source checkpoint: keys that are missing or unexpected, and `further` ones."""
    problems = [f"missing {key}" for key in sorted(expected - keys)] + [f"unexpected {key}" for key in sorted(keys - expected)]
    problems += further
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"the source checkpoint does not fit {method}: {'; '.join(problems[:8])}{more}")


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_archive(file: BinaryIO) -> bytes:
    """The bytes of a zip file; BadZipFile if it is packed or its check sums disagree."""
    with zipfile.ZipFile(file) as archive:  # reads the directory only
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)  # torch writes none, but would unpack it
    if packed or sum(member.file_size for member in members) > file.seek(0, io.SEEK_END):
        raise zipfile.BadZipFile
    file.seek(0)
    data = file.read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.testzip():
            raise zipfile.BadZipFile
    return data
