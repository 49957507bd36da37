"""The Weights & Biases run of a run folder."""

import os
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from core.errors import UserError
from core.types import PathStr


class WandbRun(WandbLogger):
    """Lightning's logger, whose run gets its id at the first start from `callbacks.run_manifest`, and the same on resume.

    Building it on rank 0 logs in, see `log_in`; `mode` and WANDB_MODE come before that.

    Args:
        save_dir: the run folder; W&B writes to its subfolder wandb/.
        id: an id given here takes precedence over that in run.json.
        resume: what `wandb.init` does with an id that the server knows; "allow" continues it.
        finish_timeout: seconds to wait for uploads when the training ends, 0 for no limit.
        settings: further fields of `wandb.Settings`.
        more: further keywords of `WandbLogger` and `wandb.init`, such as entity, group, mode, tags, notes.
    """

    def __init__(
        self,
        save_dir: PathStr,
        project: str = "handful",
        name: str | None = None,
        id: str | None = None,
        resume: Literal["allow", "must", "never", "auto"] = "allow",
        finish_timeout: float = 600.0,
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        no_summary = {"max_end_of_run_history_metrics": 0, "max_end_of_run_summary_metrics": 0}
        settings = {"finish_timeout": finish_timeout, "finish_timeout_raises": True, **no_summary, **(settings or {})}
        if rank_zero_only.rank == 0 and not more.get("mode") and not more.get("offline") and not log_in():
            more["mode"] = "offline"
            settings["silent"] = True  # the line that log_in printed says what matters
        super().__init__(name=name, save_dir=save_dir, id=id, project=project, resume=resume, settings=settings, **more)
        self._wandb_init.pop("anonymous", None)  # wandb warns of this keyword, which Lightning passes in any case

    @property
    def experiment(self) -> Any:
        """The W&B run, begun at the first access; UserError if the server does not let it begin."""
        from wandb.errors import Error

        try:
            return super().experiment
        except Error as error:
            raise UserError(f"W&B: the run could not be started: {error}") from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run, so that another one can begin in this process, and forked processes, too, wait for its uploads."""
        super().finalize(status)
        run, self._experiment = self._experiment, None
        if run is not None:
            folder = Path(run.dir).parent
            try:
                run.finish(exit_code=0 if status == "success" else 1)
            except TimeoutError:
                print(f"W&B: not everything is uploaded. Send the rest by: wandb sync --no-skip-online {quote(str(folder))}")

    def use_id(self, id: str) -> None:
        if self._experiment is None:
            self._id = self._wandb_init["id"] = id

    def log_table(self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None, **more: Any) -> None:
        """Like Lightning's; uint8 arrays [H, W, 3] among the `data` become images."""
        from wandb import Image  # takes a second

        rows = [[Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in data or []]
        super().log_table(key, columns, rows, **more)


def log_in() -> bool:
    """False if W&B has no credentials (environment, netrc, its settings files) for its server, which is printed; True
    otherwise, also if the mode is not online. UserError if the server refuses them or does not answer within 10 seconds
    (WANDB_HTTP_TIMEOUT), or if WANDB_MODE=online and there are none."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") != "online" or wandb.run is not None:
        return True
    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled"):  # by `wandb offline` or `wandb disabled`
        return True
    remedy = "Set WANDB_MODE=offline to keep the run on this machine."
    try:
        if wandb.login(prompt=False, verify=True):
            return True
    except wandb.Error as error:
        raise UserError(f"W&B login to {settings.base_url} failed; check network and key. {remedy} ({error})") from None
    if os.environ.get("WANDB_MODE") == "online":
        raise UserError(f"W&B: WANDB_MODE=online, but there is no key for {settings.base_url}. Run `wandb login`.")
    print(f"W&B: no key for {settings.base_url}, so this run stays on this machine (WANDB_MODE=offline).")
    return False
