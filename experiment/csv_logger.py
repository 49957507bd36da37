"""Scalar metrics as a table on disk."""

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from core.files import atomic_write
from core.types import PathStr


class MetricsCSV(Logger):
    """Writes `metrics.csv`: a row for each logging call; columns step (batches since the start), epoch and metrics.

    A resumed run appends to the same file, which Lightning's CSVLogger deletes: its first row replaces all from its step on.

    Args:
        run_dir: folder of the file.
    """

    name = "csv"
    version = ""

    def __init__(self, run_dir: PathStr) -> None:
        super().__init__()
        self.file = Path(run_dir) / "metrics.csv"
        self._columns: list[str] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step or 0, "epoch": metrics.get("epoch", ""), **metrics}
        if not self._columns:
            self._write([old for old in self._rows() if old["step"].isdigit() and int(old["step"]) < row["step"]], row)
        elif not row.keys() <= set(self._columns):
            self._write(self._rows(), row)
        with self.file.open("a", newline="") as file:
            values = [row.get(column, "") for column in self._columns]
            csv.writer(file).writerow(f"{v:.8g}" if isinstance(v, float) else v for v in values)

    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""

    def _rows(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="") as file:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]

    def _write(self, rows: list[dict[str, str]], newest: Mapping[str, Any]) -> None:
        self._columns = list({**(rows[0] if rows else {}), **newest})
        writer = csv.DictWriter(table := StringIO(), self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(self.file) as file:
            file.write(table.getvalue().encode())
