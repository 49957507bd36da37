"""Common parts of train.py and evaluate.py: help, the process's environment, and an end by a signal or a user error."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from omegaconf import DictConfig

from cli.environment import prepare_process
from cli.reference import help_text
from cli.signals import StopSignals
from core.errors import report_user_errors
from core.lock import release_locks

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
