"""Checks before a training that the keys which callbacks monitor are logged."""

import inspect
import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from itertools import takewhile
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from callbacks.sample_metrics import SampleMetrics
from core.errors import UserError, nearest_hint


def check_monitors(trainer: Trainer, module: LightningModule, sets: Mapping[str, Any]) -> None:
    """UserError for a monitored key that nothing logs, with the names most like it.

    `val/…` are the metrics that SampleMetrics can measure with these image sets, and the method's diagnostics, `train/…` the
    method's losses. What a method logs is not known before it runs, but a name that is nowhere in its code is wrong. As this
    is all that `EarlyStopping.strict` would find, it is switched off: keys that not every epoch has are waited for.
    """
    metrics = next((callback for callback in trainer.callbacks if isinstance(callback, SampleMetrics)), None)
    for callback in (callback for callback in trainer.callbacks if getattr(callback, "monitor", None)):
        phase, _, name = callback.monitor.rpartition("/")
        problem = f"{type(callback).__name__}: monitor={callback.monitor} is not logged"
        if phase not in ("train", "val") or (phase == "val" and metrics is None):
            needed = "callbacks.metrics, which is null" if phase == "val" else "a key such as val/kd_mobilenet_v2"
            raise UserError(f"{problem}; it needs {needed}.")
        known = ["stage"] if phase == "train" else metrics.keys_in_training(sets)
        known += names_in_code(type(module))
        if not any(fnmatch(name, pattern) for pattern in known):
            raise UserError(f"{problem}.{nearest_hint(callback.monitor, (f'{phase}/{pattern}' for pattern in known))}")
        if isinstance(callback, EarlyStopping):
            callback.strict = False


def names_in_code(kind: type) -> list[str]:
    """The strings in the files of a class and its bases that can be logged names, with * for what an f-string inserts."""
    classes = takewhile(lambda base: base is not LightningModule, kind.__mro__)
    sources = [inspect.getsource(sys.modules[name]) for name in dict.fromkeys(base.__module__ for base in classes)]
    strings = [string for source in sources for string in re.findall(r'"(?:train/)?((?:\w|\{[^{}"]*\})+)"', source)]
    names = dict.fromkeys(re.sub(r"\{[^{}]*\}", "*", string) for string in strings)
    return [name for name in names if re.search(r"\w\w", name)]
