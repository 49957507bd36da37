"""Whether the keys that callbacks monitor are logged, before a training begins."""

import re

from lightning import LightningModule, Trainer

from callbacks.sample_metrics import SampleMetrics
from core.errors import UserError, nearest_hint
from metrics.suite import QUICK, metric_key


def check_monitors(trainer: Trainer, module: LightningModule) -> None:
    """UserError for a monitored key that no callback or module can log.

    Keys are train/… of the method and val/… of SampleMetrics. Names of losses and diagnostics belong to the method and are
    not known here; those of distances are.
    """
    metrics = next((callback for callback in trainer.callbacks if isinstance(callback, SampleMetrics)), None)
    for callback in trainer.callbacks:
        key, name = getattr(callback, "monitor", None), type(callback).__name__
        if key is None or key.startswith("train/"):
            continue
        if metrics is None or not key.startswith("val/"):
            needed = "callbacks.metrics, which is null" if key.startswith("val/") else "a key such as val/kd_mobilenet_v2"
            raise UserError(f"{name}: monitor={key} is not logged; it needs {needed}.")
        if re.match(r"val/(fd|kd|fid|kid)(_|$)", key):
            metrics.setup(trainer, module, "fit")  # loads the backbone, which the keys are named after
            known = [f"val/{metric_key(metric, metrics.backbone)}" for metric in metrics.quick or QUICK]
            if key not in known:
                raise UserError(f"{name}: monitor={key} is not logged.{nearest_hint(key, known)}")
