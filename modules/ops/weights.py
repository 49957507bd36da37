"""Files of tensors from strangers: read without running code, identified by their content."""

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError


def read_tensors(path: str | Path) -> Any:
    """Contents of a file written by `torch.save`, on the CPU, by torch's safe loader: tensors and plain values only.

    Raises FileNotFoundError, and UserError for a file that is damaged, packed, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"loading it would run code ({name[1]})" if name else "it is not a file of tensors, or would run code"
        raise UserError(f"{path}: refused, {reason}; a checkpoint holds tensors and plain values only") from None
    except Exception:  # torch raises nearly anything for files that are something else
        raise UserError(f"{path}: not a checkpoint, or a damaged one") from None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_archive(path: Path) -> None:
    """Raises BadZipFile for a zip file whose check sums disagree, which torch does not compare, or that is packed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)  # torch writes none, but would unpack it
        if packed or sum(member.file_size for member in members) > path.stat().st_size or archive.testzip():
            raise zipfile.BadZipFile
