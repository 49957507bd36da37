"""Output streams, and environment variables that have to be right before torch is imported. Standard library only.

torch computes on the CPU with OpenMP, whose threads by default spin while they wait for each other. That is
good on an idle machine and ruinous on a busy one, where a spinning thread holds the core that the awaited one needs. A
step with gradient penalty on two cores took 14-22 ms on the idle machine and 851 ms beside two busy processes. Threads
that sleep at once are as bad the other way: waking them costs more than a small convolution. Three such steps, at 25x34,
56x74 and 72x96 pixels, took (ms; idle | beside two busy processes)
    one thread                      4.6  19  32 | 15  34  56
    two, asleep at once              12  34  47 | 18  80  53
    two, after 1,000 turns          4.9  14  21 | 13  46  75
    two, after 3,000 turns          4.3  13  19 | 25 105 113
so they sleep after 1,000 turns, unless the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT. OpenMP starts a thread for each
core of the process's affinity mask; where a control group (a container's --cpus) allows less, that number is set, unless the
user has set OMP_NUM_THREADS. Of several processes on one machine Lightning gives each its share of the mask.
"""

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
    """Makes standard output and error streams lenient."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), LenientStream):
            setattr(sys, name, LenientStream(getattr(sys, name)))


def configure_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes OpenMP threads sleep after a short wait, and no more of them than there are CPUs to use. Has to come before torch
    is imported, which loads the runtime."""
    quota, cores = cpu_quota(), len(os.sched_getaffinity(0))
    if quota is not None and quota < cores:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(quota))))
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # the second is for libgomp, where it wins


def cpu_quota(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float | None:
    """CPUs that the control groups of this process allow, the least of all levels; None without a limit.

    Version 2 has cpu.max ("200000 100000" for two CPUs), version 1 cpu.cfs_quota_us and cpu.cfs_period_us in the hierarchy of
    the controller cpu.
    """
    quotas: list[float] = []
    with suppress(OSError, ValueError):
        for line in Path(groups).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = Path(root, controllers) if Path(root, controllers).is_dir() else Path(root, "cpu" if controllers else "")
            folder = top / path.strip("/")
            for level in [folder, *folder.parents]:
                if level.is_relative_to(top):
                    quotas += _quota_of(level)
    return min(quotas, default=None)


def _quota_of(folder: Path) -> list[float]:
    with suppress(OSError):
        files = [folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"]
        values = (folder / "cpu.max").read_text().split() if (folder / "cpu.max").exists() else [f.read_text() for f in files]
        if values[0].strip() not in ("max", "-1"):
            return [int(values[0]) / int(values[1])]
    return []


def use_short_temporary_folder() -> None:
    """Workers of a loader pass batches on through sockets in the temporary folder. Where its path is too long for a socket,
    they would wait for ever; then temporary files of this process go to a shorter folder of the system."""
    if len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_PATH:
        folders = [folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK | os.X_OK)]
        tempfile.tempdir = next(iter(folders), tempfile.tempdir)


def filter_warnings() -> None:
    """Drops messages of Lightning that tell a user of this project nothing, or that something intended is suspicious;
    warnings come without the line of code that gave them."""
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
