"""What train.py and evaluate.py have in common: help, the process's environment, and an end by a signal or a user error."""

from collections.abc import Callable

from omegaconf import DictConfig

from cli.environment import prepare_process
from cli.reference import help_text
from cli.signals import StopSignals
from cli.user_errors import report_user_errors
from core.lock import release_locks


def run_command(
    usage: str, arguments: list[str], configuration: Callable[[list[str]], DictConfig], command: Callable[..., int]
) -> int:
    """The exit code of `command(words, stop)`; with --help the usage, or the keys of `configuration(words)` are printed."""
    words = [argument for argument in arguments if argument not in ("--help", "-h")]
    show_help = len(words) < len(arguments)
    if show_help and not words:
        print(usage.strip())
        return 0
    prepare_process()
    with StopSignals() as stop, report_user_errors() as errors:
        if not show_help:
            return command(words, stop)
        print(help_text(configuration(words)))
    release_locks()
    return stop.exit_code or errors.exit_code
