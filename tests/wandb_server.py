"""A W&B-compatible server on this machine: the package openwandb, in an environment of its own (`make test-all`).

Its limits: it accepts any key (a refused one is tested in tests/experiment/test_wandb_logger.py), it registers artifacts
without asking for their files, and its step counter begins anew when a run is resumed.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMAND = shutil.which("openwandb", path=f"{sys.prefix}/wandb-server/bin{os.pathsep}{os.environ['PATH']}")
PATIENCE = 600  # seconds for what takes a few on an idle machine


def until(condition, reason: str, pause: float = 0.1) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, reason
        time.sleep(pause)
    return value


class WandbServer:
    """Context in which the server runs; `stop` and `start` again keep its data and port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def __enter__(self) -> "WandbServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        log, port = self.folder / "server.log", self.url.rpartition(":")[2]
        command = [COMMAND, "serve", "--host", "127.0.0.1", "-p", port, "--data-dir", str(self.folder / "data")]
        environment = {**os.environ, "HOME": str(self.folder)}
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        until(lambda: "startup complete" in log.read_text() or self.process.poll(), "the server does not start")
        assert self.process.poll() is None, log.read_text()
        self.key = re.search(r"WANDB_API_KEY=(\w+)", log.read_text())[1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def environment(self, **more: str) -> dict[str, str]:
        """Environment variables of a user who has a key for this server."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PL_"))}
        own = {"HOME": str(self.folder), "WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "OMP_NUM_THREADS": "1"}
        return {**inherited, **own, **more}

    def train(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """`python train.py …` that logs to this server."""
        return subprocess.Popen(
            [sys.executable, "train.py", *arguments], cwd=ROOT, env=self.environment(**environment), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def sync(self, *arguments: str) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *arguments], cwd=self.folder, env=self.environment(), capture_output=True,
            text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr

    def get(self, path: str) -> Any:
        """JSON from the server's API, below /api/v2/runs/."""
        with urllib.request.urlopen(f"{self.url}/api/v2/runs/{path}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def files(self, run_id: str) -> Path:
        """Folder of what the server has received for a run."""
        return self.folder / "data/files/default/handful" / run_id

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """Rows as they have arrived; there may be some twice after `wandb sync`."""
        file = self.files(run_id) / "wandb-history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines() if line] if file.exists() else []
