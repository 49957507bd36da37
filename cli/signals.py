"""Graceful shutdown on SIGTERM, SIGINT and SIGHUP. Standard library only."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}



class StopSignals:
    """Context in which a signal ends the block with one line for the user, and a second one the process at once; `exit_code` is
    128 + the signal's number then. A SystemExit ends the block, too, with its code."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.exit_code: int | str = 0  # a text, when a SystemExit has one, is what sys.exit prints
        self.checkpoints: Path | None = None  # the folder of a training's checkpoints, once it is known

    def __enter__(self) -> "StopSignals":
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        nohup = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        self._before = {signum: signal.signal(signum, self._stop) for signum in (SIGNALS - nohup if in_main else ())}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if error is None or self.signum is None:
            self.exit_code = (isinstance(error, SystemExit) and error.code) or 0
            return isinstance(error, SystemExit)
        self.exit_code = 128 + self.signum
        if is_first_process():
            hint = f" {resume_hint(self.checkpoints)}" if self.checkpoints else ""
            print(f"Ended by {signal.Signals(self.signum).name} (exit code {self.exit_code}).{hint}", file=sys.stderr)
        return True

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if multiprocessing.current_process().daemon:  # a loader's worker, which inherits the handler
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return  # Ctrl-C and a hang-up reach all processes of a terminal; the main process ends its workers
        if self.signum is not None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + signum)
        self.signum = signum
        raise SystemExit(128 + signum)  # by which forked processes end without a traceback


def resume_hint(checkpoints: Path) -> str:
    files = sorted(checkpoints.glob("*.ckpt"), key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"))
    return f"Last checkpoint: {files[-1]}; resume=auto resumes from it." if files else "There is no checkpoint yet."


def is_first_process() -> bool:
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), 0)) == 0
