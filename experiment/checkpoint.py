"""Checkpoint files: safe reading, atomic writing."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from core.errors import UserError, nearest_hint
from core.files import DRAFT, atomic_write
from modules.ops.weights import read_hashed


class StoredCheckpoint(NamedTuple):
    """A checkpoint that was read from the file `path`, with the file's SHA-256 in hexadecimal."""

    path: str
    checkpoint: dict[str, Any]
    sha256: str


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, to the disk, then renames, so that a kill never leaves half a file as Lightning's own does.

    Args:
        stored: a checkpoint that was read already: the first load of its path returns it without reading the file again.
    """

    def __init__(self, stored: StoredCheckpoint | None = None) -> None:
        super().__init__()
        self._stored = stored

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # a remote store, which shows a file only when it is complete
            return super().save_checkpoint(checkpoint, path, storage_options)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Contents of a file on the CPU, by the safe loader only, whatever `map_location` and `weights_only` are."""
        if self._stored is None or self._stored.path != str(path):
            return read_hashed(path)[0]
        stored, self._stored = self._stored, None
        return stored.checkpoint


def remove_leftovers(run_dir: str | Path) -> None:
    """Removes drafts of a killed run, and the files that Lightning writes within an epoch on SLURM's requeue signal, from which
    it would resume by itself."""
    for pattern in (f"checkpoints/*.ckpt{DRAFT}", f"images/*{DRAFT}", "hpc_ckpt_*.ckpt"):
        for file in Path(run_dir).glob(pattern):
            file.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    return load_stored(path).checkpoint


def load_stored(path: str | Path) -> StoredCheckpoint:
    """Reads a checkpoint to the CPU, in one pass and by the safe loader only; FileNotFoundError with the nearest file, or
    UserError for one that is no checkpoint, is damaged or holds code."""
    path = Path(path)
    if not path.is_file():
        siblings = sorted(file.name for file in path.parent.glob("*.ckpt"))
        raise FileNotFoundError(f"{path}: no such checkpoint.{nearest_hint(path.name, siblings)}")
    checkpoint, sha256 = read_hashed(path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of this project: it has no state_dict.")
    return StoredCheckpoint(str(path), checkpoint, sha256)
