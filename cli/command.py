"""Common parts of train.py and evaluate.py: help, the process's environment, and an end by a signal or a user error."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from omegaconf import DictConfig

from cli.environment import prepare_process
from cli.reference import help_text
from core.errors import report_user_errors
from core.lock import release_locks

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
SIGNALLED = 128  # and the signal's number is the exit code of a command that a signal has ended


def run_command(
    usage: str, arguments: list[str], configuration: Callable[[list[str]], DictConfig], command: Callable[..., int]
) -> int:
    """The exit code of `command(arguments, stop)`; --help prints the usage, or the keys of `configuration(arguments)`."""
    show_help = bool({"--help", "-h"} & {*arguments})
    arguments = [argument for argument in arguments if argument not in ("--help", "-h")]
    if show_help and not arguments:
        print(usage.strip())
        return 0
    prepare_process()
    with StopSignals() as stop, report_user_errors() as errors:
        if not show_help:
            return command(arguments, stop)
        print(help_text(configuration(arguments)))
    release_locks()
    return stop.exit_code or errors.exit_code


def end_process(exit_code: int | str) -> NoReturn:
    """Ends the process, after a signal without the interpreter's teardown: with torch loaded it takes 1.6 s of CPU time,
    many times that on a busy machine, which a batch system may not wait for. Exit handlers run."""
    if isinstance(exit_code, int) and exit_code > SIGNALLED:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


class StopSignals:
    """Context in which a signal ends the block with one line for the user, and a second one the process at once; `exit_code` is
    128 + the signal's number then. A SystemExit ends the block, too, with its code."""

    signum: int | None = None
    exit_code: int | str = 0  # a text, when a SystemExit has one, is what sys.exit prints
    checkpoints: Path | None = None  # the folder of a training's checkpoints, once it is known

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
        self.exit_code = SIGNALLED + self.signum
        if is_first_process():
            hint = f" {resume_hint(self.checkpoints)}" if self.checkpoints else ""
            print(f"Ended by {signal.Signals(self.signum).name} (exit code {self.exit_code}).{hint}", file=sys.stderr)
        return True

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if multiprocessing.current_process().daemon:  # a loader's worker, which inherits the handler
            if signum == signal.SIGTERM:
                os._exit(SIGNALLED + signum)
            return  # Ctrl-C and a hang-up reach all processes of a terminal; the main process ends its workers
        if self.signum is not None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(SIGNALLED + signum)
        self.signum = signum
        raise SystemExit(SIGNALLED + signum)  # by which forked processes end without a traceback


def resume_hint(checkpoints: Path) -> str:
    files = sorted(checkpoints.glob("*.ckpt"), key=lambda file: (file.stat().st_mtime_ns, file.name == "last.ckpt"))
    return f"Last checkpoint: {files[-1]}; resume=auto resumes from it." if files else "There is no checkpoint yet."


def is_first_process() -> bool:
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), 0)) == 0
