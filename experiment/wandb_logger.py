"""The Weights & Biases run of a run folder."""

from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger


class WandbRun(WandbLogger):
    """Lightning's logger, whose run gets its id at the first start from `callbacks.run_manifest`, and the same on resume.

    Args:
        save_dir: the run folder; W&B writes to its subfolder wandb/.
        id: one that is given here wins over the one in run.json.
        resume: what `wandb.init` does with an id that the server knows; "allow" goes on with it.
        more: further keywords of `WandbLogger` and `wandb.init`, such as entity, group, tags, notes.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "handful",
        name: str | None = None,
        id: str | None = None,
        resume: str = "allow",
        **more: Any,
    ) -> None:
        super().__init__(name=name, save_dir=save_dir, id=id, project=project, resume=resume, **more)
        self._wandb_init.pop("anonymous", None)  # wandb warns of this keyword, which Lightning passes in any case

    def use_id(self, id: str) -> None:
        """Sets the id of a run that has not begun; afterwards nothing happens."""
        if self._experiment is None:
            self._id = self._wandb_init["id"] = id

    def log_table(self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None, **more: Any) -> None:
        """As Lightning's; arrays [H, W, 3] of bytes among the `data` become pictures."""
        from wandb import Image  # takes a second

        rows = [[Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in data or []]
        super().log_table(key, columns, rows, **more)
