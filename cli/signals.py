"""How a run ends that is told to: by SIGTERM (kill, a scheduler) or SIGINT (Ctrl-C); on SLURM it comes back after SIGUSR1.

Standard library only.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Raised wherever the program is when the signal comes. A SystemExit: forked processes end by it without a traceback."""


class StopSignals:
    """Context in which a signal ends the block, and a second one the process at once.

    The block is left with one line for the user instead of an error, whatever is raised on the way out (a process that
    lost another one may see that first); `exit_code` is 128 + the signal's number then. A SystemExit leaves the block, too,
    with its code.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.exit_code: int | str = 0  # a text, when a SystemExit has one, is what sys.exit prints
        self.checkpoints = Path()  # the folder to name a checkpoint from, once it is known

    def __enter__(self) -> "StopSignals":
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        self._before = {signum: signal.signal(signum, self._stop) for signum in SIGNALS if in_main}
        if in_main and os.environ.get("SLURM_JOB_ID"):
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, _requeue)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if error is not None and self.signum is not None:
            self.exit_code = 128 + self.signum
            if is_first_process():
                print(self._report(), file=sys.stderr)
            return True
        self.exit_code = (isinstance(error, SystemExit) and error.code) or 0
        return isinstance(error, SystemExit)

    def _report(self) -> str:
        files = sorted(self.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
        last = f"Last checkpoint: {files[-1]}; resume=auto goes on from it." if files else "There is no checkpoint yet."
        return f"Ended by {signal.Signals(self.signum or 0).name} (exit code {self.exit_code}). {last}"

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if multiprocessing.current_process().daemon:  # a loader's worker, which inherits the handler
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return  # Ctrl-C reaches all processes of a terminal; the main process ends its workers
        if self.signum is not None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + signum)
        self.signum = signum
        raise Interrupted(128 + signum)


def is_first_process() -> bool:
    """True for rank 0, as the variables of torchrun, SLURM and Lightning tell it."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), 0)) == 0


def _requeue(signum: int, frame: FrameType | None) -> None:
    """Puts the SLURM job back into the queue, as the first of its processes; all of them get the signal. Once is enough."""
    if multiprocessing.current_process().daemon or not is_first_process():
        return
    signal.signal(signum, signal.SIG_IGN)
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]
    command = ["scontrol", "requeue", job]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        problem = result.returncode and f"exit code {result.returncode}. {result.stderr.strip()}"
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    done = f"failed: {problem} The training goes on until it is ended." if problem else "done; resume=auto will go on."
    print(f"SIGUSR1: {' '.join(command)}: {done}", file=sys.stderr, flush=True)
    if problem:
        signal.signal(signum, _requeue)  # another warning, another try
