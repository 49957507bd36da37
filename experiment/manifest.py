"""The run manifest `run.json`: what a run is, where it came from and how far it got. Pure functions on files."""

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from core.errors import UserError
from core.files import atomic_write


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run folder, empty where there is none; UserError if the file is something else."""
    file = Path(folder) / "run.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file}: not a run manifest ({error}); remove the file to get a new one.") from None
    return manifest


def write_manifest(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    with atomic_write(Path(folder) / "run.json") as file:
        file.write((json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the folder's repository, and whether its Python or YAML files differ from it; None without git."""
    try:
        commit, changed = (
            subprocess.check_output(["git", "-C", folder, *args], text=True, timeout=60, stderr=DEVNULL, stdin=DEVNULL).strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "*.py", "*.yaml"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def lineage_entry(kind: str, path: str, checkpoint: Any, sha256: str) -> dict[str, Any]:
    """A file with its contents as ancestor of a run; `kind` is resume, or source for a file that may be a foreign one."""
    checkpoint = checkpoint if isinstance(checkpoint, Mapping) else {}
    run = checkpoint.get("run") or {}
    return {
        "kind": kind,
        "path": path,
        "sha256": sha256,
        "run_name": run.get("run_name") or (checkpoint.get("config") or {}).get("run_name"),
        "wandb_id": run.get("wandb_id"),
        "iteration": checkpoint.get("iteration"),
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
