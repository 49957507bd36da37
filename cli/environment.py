"""Output streams, and environment variables that have to be right before torch is imported. Standard library only."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_TEMPORARY_PATH = 70  # bytes; the path of a socket has at most 107, and multiprocessing appends up to 33


class LenientStream:
    """An output stream whose errors, such as a full disk or a closed pipe, do not end a run; unknown letters are escaped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def protect_output() -> None:
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), LenientStream):
            setattr(sys, name, LenientStream(getattr(sys, name)))


def prepare_process() -> None:
    configure_openmp()  # before anything imports torch, which loads the OpenMP runtime
    use_short_temporary_folder()
    protect_output()
    filter_warnings()


def configure_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes OpenMP threads sleep after a short wait (figures in docs/training.md), and no more of them than a control group
    such as a container's --cpus allows."""
    quota, cores = cpu_quota(), len(os.sched_getaffinity(0))
    if quota is not None and quota < cores:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(quota))))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # the second is for libgomp, where it wins


def cpu_quota(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float | None:
    """CPUs that the control groups (version 1 or 2) of this process allow, the least of all levels; None without a limit."""
    quotas: list[float] = []
    with suppress(OSError, ValueError):
        for line in Path(groups).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = Path(root, controllers) if Path(root, controllers).is_dir() else Path(root, "cpu" if controllers else "")
            for folder in [top / path.strip("/"), *(top / path.strip("/")).parents]:
                files = ["cpu.max"] if (folder / "cpu.max").exists() else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
                if folder.is_relative_to(top) and all((folder / file).exists() for file in files):
                    quota, period = " ".join((folder / file).read_text() for file in files).split()
                    quotas += [int(quota) / int(period)] if quota not in ("max", "-1") else []
    return min(quotas, default=None)


def use_short_temporary_folder() -> None:
    """Loader workers use sockets in the temporary folder and would wait for ever where its path is too long for them."""
    if len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_PATH:
        folders = (folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK | os.X_OK))
        tempfile.tempdir = next(folders, tempfile.tempdir)


def filter_warnings() -> None:
    """Drops warnings of Lightning about what is intended; others come without the line of code that gave them."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "litlogger" not in record.getMessage())  # an advertisement
    for message in (
        r".*LeafSpec.* is deprecated",  # in Lightning's own code
        r"Found \d+ module\(s\) in eval mode",  # frozen parts are
        r"Checkpoint directory .* exists and is not empty",  # so it is on resume
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # which may be others now
        r"The number of training batches \(\d+\) is smaller than the logging interval",  # the last one is logged anyway
    ):
        warnings.filterwarnings("ignore", message=message)
