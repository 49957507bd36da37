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
so they sleep after 1,000 turns, unless the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT. Their number is left alone for
one process; of several processes on one machine Lightning gives each its share of the cores.
"""

import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any


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
    """Makes OpenMP threads sleep after a short wait. Has to come before torch is imported, which loads the runtime."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # the second is for libgomp, where it wins


def filter_warnings() -> None:
    """Drops messages of Lightning that tell a user of this project nothing, or that something intended is suspicious;
    warnings come without the line of code that gave them."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "litlogger" not in record.getMessage())  # an advertisement
    for message in (
        r".*LeafSpec.* is deprecated",  # in Lightning's own code
        r"Found \d+ module\(s\) in eval mode",  # frozen parts are
        r"Checkpoint directory .* exists and is not empty",  # so it is when a run goes on
        r"The number of training batches \(\d+\) is smaller than the logging interval",  # the last one is logged anyway
    ):
        warnings.filterwarnings("ignore", message=message)
