"""Environment variables that have to be right before torch and wandb are imported. Standard library only.

Threads. torch computes on the CPU with OpenMP, whose threads by default spin while they wait for each other. That is
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

W&B. Without a key a run is kept on disk and can be sent later; nobody is asked anything.
"""

import logging
import netrc
import os
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from urllib.parse import urlsplit


def use_sleeping_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes OpenMP threads sleep after a short wait. Has to come before torch is imported, which loads the runtime."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # the second is for libgomp, where it wins


def hide_known_noise() -> None:
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


def choose_wandb_mode(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Sets WANDB_MODE=offline when nothing says otherwise and no key is found; returns a line for the user, or None.

    A key is WANDB_API_KEY, an identity token or a netrc entry for the host of WANDB_BASE_URL (default api.wandb.ai).
    """
    given = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if any(environment.get(name) for name in given):
        return None
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    if _netrc_knows(host, environment):
        return None
    environment["WANDB_MODE"] = "offline"
    environment.setdefault("WANDB_SILENT", "true")  # the one line below says what matters
    return f"W&B: no key for {host} found, so this run stays on this machine (WANDB_MODE=offline)."


def _netrc_knows(host: str, environment: MutableMapping[str, str]) -> bool:
    named = environment.get("NETRC")
    files = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    for file in files:
        try:
            if netrc.netrc(file.expanduser()).authenticators(host):
                return True
        except (OSError, RuntimeError, netrc.NetrcParseError):  # not there, no home folder, or not readable as a netrc
            continue
    return False
