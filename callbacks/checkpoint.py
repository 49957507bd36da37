"""Checkpoint files that are whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

DRAFT = ".draft"  # ends the name of a file that is being written; no checkpoint ends so


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, to the disk, then renames: after a kill or a loss of power there is the old file or the new.

    Lightning's own writes to the system's temporary folder and moves the file, which is a copy where that folder is on
    another disk: a kill leaves half of it under the final name. It also holds a second copy of the checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # a remote store, which shows a file only when it is complete
            return super().save_checkpoint(checkpoint, path, storage_options)
        with _whole(Path(path)) as file:
            torch.save(checkpoint, file)


def copy_checkpoint(source: str | Path, target: Path) -> None:
    """Gives `target` the content of `source`, all of it or none."""
    with open(source, "rb") as original, _whole(target) as file:
        shutil.copyfileobj(original, file)


def remove_leftovers(run_dir: str | Path) -> None:
    """Removes what a killed run left that is no checkpoint to go on from; before training begins, any process may call it.

    These are drafts of checkpoints and pictures, and the files that Lightning writes within an epoch on SLURM's requeue
    signal: it would go on from them by itself, with other random numbers than those of the uninterrupted run.
    """
    for pattern in (f"checkpoints/*.ckpt{DRAFT}", f"images/*{DRAFT}", "hpc_ckpt_*.ckpt"):
        for file in Path(run_dir).glob(pattern):
            file.unlink(missing_ok=True)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when all of it is on the disk; after an error `path` is as it was."""
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Brings the renaming to the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
