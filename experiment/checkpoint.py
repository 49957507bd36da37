"""Checkpoint files that are whole or not there."""

import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from core.errors import UserError
from core.files import DRAFT, atomic_write
from modules.ops.weights import read_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, to the disk, then renames: after a kill or a loss of power there is the old file or the new.

    Lightning's own writes to the system's temporary folder and moves the file, which is a copy where that folder is on
    another disk: a kill leaves half of it under the final name. It also holds a second copy of the checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # a remote store, which shows a file only when it is complete
            return super().save_checkpoint(checkpoint, path, storage_options)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def copy_checkpoint(source: str | Path, target: Path) -> None:
    """Gives `target` the content of `source`, all of it or none."""
    with open(source, "rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file)


def remove_leftovers(run_dir: str | Path) -> None:
    """Removes what a killed run left that is no checkpoint to go on from; before training begins, any process may call it.

    These are drafts of checkpoints and pictures, and the files that Lightning writes within an epoch on SLURM's requeue
    signal: it would go on from them by itself, with other random numbers than those of the uninterrupted run.
    """
    for pattern in (f"checkpoints/*.ckpt{DRAFT}", f"images/*{DRAFT}", "hpc_ckpt_*.ckpt"):
        for file in Path(run_dir).glob(pattern):
            file.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint on the CPU, by the safe loader only.

    FileNotFoundError names the nearest file; ValueError for a file that is no checkpoint or that holds code.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        close = get_close_matches(path.name, beside, n=1, cutoff=0) or ["no checkpoint at all"]
        raise FileNotFoundError(f"{path}: no such checkpoint; {path.parent} has {close[0]}.")
    content = read_tensors(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path}: not a checkpoint of this project: it has no state_dict.")
    return content
