"""From the words of evaluate.py and a checkpoint's content to a module and a configuration.

Imports neither torch nor lightning, so that mistakes are answered at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.build import check, check_keys
from cli.loader import MAPPING, load_config
from core.errors import UserError, nearest_hint

CHANGEABLE = ("out", "datamodule", "callbacks.metrics", "trainer.accelerator", "trainer.devices", "task", "logger")
EXTRA_KEYS = {"out": (str, type(None)), "task": MAPPING}
METRICS = {"class_path": "callbacks.sample_metrics.SampleMetrics"}
TRAINER = {
    "class_path": "lightning.Trainer",
    "accelerator": "auto",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def split_words(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Checkpoints, and the words that make the configuration; UserError for mistakes that show before a file is read.

    The name of a checkpoint may contain "=" where the file exists.
    """
    words = [w for w in arguments if w.startswith("-") or w.endswith((".yaml", ".yml")) or "=" in w]
    words = [word for word in words if not (word.endswith(".ckpt") and Path(word).is_file())]
    checkpoints = [Path(word) for word in arguments if word not in words]
    for key in (word.split("=")[0] for word in words if "=" in word):
        _check_changeable(key)
    config = _load({"run_name": "unknown"}, words)
    for key in config:
        if key != "run_name":
            _check_changeable(key, "callbacks", "trainer")
    if "logger" in config and not _is_report(config):
        raise UserError("logger: only a report goes to loggers, such as configs/tasks/compare.yaml.")
    if not checkpoints:
        raise UserError("no checkpoint given, such as runs/fewgan/checkpoints/last.ckpt; --help explains.")
    for path in checkpoints if not _is_report(config) else ():  # some reports are of folders: they look for themselves
        _check_there(path)
    if "class_path" in config.get("task", {}):
        check_keys(config.task)
    return checkpoints, words


def report_config(words: list[str]) -> DictConfig | None:
    """The configuration that `words` make if its task is a report about all checkpoints at once, with `out` set; else None."""
    config = _load({"run_name": "unknown", "out": "report"}, words)
    return config if _is_report(config) else None


def stored_config(path: Path, content: Mapping[str, Any], words: list[str]) -> DictConfig:
    """The configuration in a checkpoint's `content` with `words` on top, as far as it matters after training.

    `run_dir` is the folder above `checkpoints/`, wherever the run was moved to, or that of the file. The trainer is one
    of this machine: accelerator auto, one device.
    """
    stored = content.get("config") or {}
    if not isinstance(stored, Mapping) or "${" in str(stored):  # it is stored resolved; a chain of these may be endless
        raise UserError(f"{path}: refused, its configuration is not one that a training stored.")
    start = {
        "run_name": stored.get("run_name") or "".join(c if c.isalnum() else "_" for c in path.stem),
        "run_dir": str(path.parent.parent if path.parent.name == "checkpoints" else path.parent),
        "trainer": TRAINER,
        "callbacks": {"metrics": (stored.get("callbacks") or {}).get("metrics") or METRICS},
    }
    config = _load(start | {key: stored[key] for key in ("datamodule",) if key in stored}, words)
    if "task" in config and "class_path" not in config.task:
        raise UserError("task.*: give the task's file too, such as configs/tasks/generate.yaml.")
    if "datamodule" not in config and ("task" not in config or _is_report(config)):
        raise UserError(
            f"{path} holds weights and no configuration: give datamodule.root=…, datamodule.image_size=[height,width] "
            f"and datamodule.class_path=datamodules.fewshot.FewShotDataModule."
        )
    return config


def output_folder(config: DictConfig, path: Path, checkpoints: list[Path]) -> Path:
    """Where the results of `path`, one of `checkpoints`, go: each has a folder of its own."""
    folder = Path(config.get("out") or config.run_dir)
    if config.get("out") and len(checkpoints) > 1:
        folder /= config.run_name
    if sum(other.parent == path.parent for other in checkpoints) > 1:
        folder /= path.stem
    if "task" in config and not config.get("out"):
        folder = folder / "tasks" / config.task.class_path.split(".")[-2]
    return folder


def rebuild(path: Path, content: Mapping[str, Any]) -> Any:
    """The module of a checkpoint with this `content`, in eval mode on the CPU, from the file alone.

    UserError unless it was written by a class in `modules` whose constructor and parameters still fit, and before its
    settings take more memory than its weights could fill.
    """
    class_path = str(content.get("class_path"))
    if not class_path.startswith("modules."):
        raise UserError(f"{path} was not written by a method of this project: its class_path is {class_path}.")
    if not isinstance(content.get("hyper_parameters", {}), Mapping):
        raise UserError(f"{path}: refused, its hyper_parameters are not keys with values.")
    class_, _ = check(OmegaConf.create({**content.get("hyper_parameters", {}), "class_path": class_path}), str(path))
    try:
        return class_.from_checkpoint(content)
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not fit {class_path}: {str(error).splitlines()[-1].strip()}") from error


def _check_changeable(key: str, *groups: str) -> None:
    if key not in groups and not any(f"{key}.".startswith(f"{name}.") for name in CHANGEABLE):
        raise UserError(f"{key}: fixed by the checkpoint.{nearest_hint(key, CHANGEABLE)} Here: {', '.join(CHANGEABLE)}.")


def _is_report(config: DictConfig) -> bool:
    return str(config.get("task", {}).get("class_path")).startswith("reports.")


def _check_there(path: Path) -> None:
    if path.suffix != ".ckpt" and not path.exists():
        raise UserError(f"{path}: neither a checkpoint, nor a .yaml file, nor key=value.{nearest_hint(str(path), CHANGEABLE)}")
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob("*.ckpt"))
        close = nearest_hint(path.name, beside) or f" {path.parent} has {', '.join(beside) or 'none'}."
        raise UserError(f"{path}: no such checkpoint.{close}")


def _load(start: Mapping[str, Any], words: list[str]) -> DictConfig:
    return load_config(words, start=start, extra_keys=EXTRA_KEYS)
