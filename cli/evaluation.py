"""From the arguments of evaluate.py and a checkpoint to a module and a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.loader import load_config, read_config
from cli.schema import complete
from core.errors import ErrorCollector, UserError, nearest_hint
from core.nodes import find_class

CHANGEABLE = ("out", "datamodule", "callbacks.metrics", "trainer.accelerator", "trainer.devices", "task", "logger")
METRICS = {"class_path": "callbacks.sample_metrics.SampleMetrics"}
UNUSED = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
TRAINER = {"class_path": "lightning.Trainer", "accelerator": "auto", "devices": 1, **dict.fromkeys(UNUSED, False)}


def split_arguments(arguments: list[str]) -> tuple[list[Path], list[str], DictConfig | None]:
    """Checkpoints, the arguments that make the configuration, and task, loggers and `out` if the task is a report about all
    checkpoints at once; UserError for what is wrong before any checkpoint is read."""
    checkpoints = [arg for arg in arguments if not arg.startswith("-") and not arg.endswith((".yaml", ".yml"))]
    checkpoints = [arg for arg in checkpoints if "=" not in arg or (arg.endswith(".ckpt") and Path(arg).is_file())]
    settings, paths = [arg for arg in arguments if arg not in checkpoints], [Path(arg).expanduser() for arg in checkpoints]
    errors = ErrorCollector()
    config = OmegaConf.to_container(read_config(settings, {"run_name": "unknown", "out": "report"}, errors))
    groups = {"run_name", "callbacks", "trainer", *(key.split(".")[0] for key in errors.texts)}
    for key in [*errors.texts, *(key for key in config if key not in groups)]:
        if not any(f"{key}.".startswith(f"{name}.") for name in CHANGEABLE):
            hint = nearest_hint(key, CHANGEABLE)
            errors.add(key, f"{key}: fixed by the checkpoint.{hint} Here: {', '.join(CHANGEABLE)}.")
    if "logger" in config and not _is_report(config):
        errors.add("logger", "logger: only a report goes to loggers, such as configs/tasks/compare.yaml.")
    if not paths:
        errors.add("checkpoint", "no checkpoint given, such as runs/fewgan/checkpoints/last.ckpt; --help explains.")
    for path in paths if not _is_report(config) else ():  # some reports are of folders: they look for themselves
        if not path.is_file():
            errors.add(str(path), _missing(path))
    if "class_path" in config.get("task", {}):
        complete(config["task"], "task", errors)
    elif "task" in config:
        errors.add("task", "task.*: give the task's file too, such as configs/tasks/generate.yaml.")
    errors.raise_any()
    report = {key: config[key] for key in ("run_name", "out", "task", "logger") if key in config}
    return paths, settings, load_config([], report) if _is_report(config) else None


def task_config(arguments: list[str]) -> DictConfig:
    """The task that `arguments` name, else the metrics, before a checkpoint is known."""
    files = [argument for argument in arguments if not argument.endswith(".ckpt")]
    config = read_config(files, {"run_name": "unknown"}, ErrorCollector())
    return OmegaConf.create({"task": config.task} if "task" in config else {"callbacks": {"metrics": METRICS}})


def stored_config(path: Path, checkpoint: Mapping[str, Any], arguments: list[str]) -> DictConfig:
    """The configuration in a checkpoint with `arguments` on top, as far as it matters after training, with `run_dir` where the
    file is now and a trainer of this machine."""
    stored = checkpoint.get("config") or {}
    if not isinstance(stored, Mapping) or "${" in str(stored):  # it is stored resolved; a chain of these may be endless
        raise UserError(f"{path}: invalid configuration stored in the checkpoint.")
    start = {
        "run_name": stored.get("run_name") or "".join(c if c.isalnum() else "_" for c in path.stem),
        "run_dir": str(path.parent.parent if path.parent.name == "checkpoints" else path.parent),
        "trainer": TRAINER,
        "callbacks": {"metrics": (stored.get("callbacks") or {}).get("metrics") or METRICS},
    }
    if "datamodule" in stored:
        # A relative root becomes the absolute path that the training found, where it still exists.
        data, roots = stored["datamodule"], checkpoint.get("roots") or {}
        relative = [key for key in roots if isinstance(data.get(key), str) and not Path(data[key]).is_absolute()]
        found = [key for key in relative if any(p.is_file() for p in Path(roots[key]).parents) or Path(roots[key]).exists()]
        start["datamodule"] = {**data, **{key: roots[key] for key in found}}
    config = load_config(arguments, start)
    if "datamodule" not in config and ("task" not in config or _is_report(config)):
        content, keys = checkpoint.get("description", "weights"), "root=…, datamodule.image_size=[height,width]"
        class_path = "datamodule.class_path=datamodules.image_datamodule.ImageDataModule"
        raise UserError(f"{path} holds {content} and no configuration: give datamodule.{keys} and {class_path}.")
    return config


def output_folder(config: DictConfig, path: Path, checkpoints: list[Path]) -> Path:
    folder = Path(config.get("out") or config.run_dir)
    if config.get("out") and len(checkpoints) > 1:
        folder /= config.run_name
    if sum(other.parent == path.parent for other in checkpoints) > 1:
        folder /= path.stem
    if "task" in config and not config.get("out"):
        folder = folder / "tasks" / config.task.class_path.split(".")[-2]
    return folder


def rebuild(path: Path, checkpoint: Mapping[str, Any]) -> Any:
    """The module of a checkpoint, in eval mode on the CPU, from the file alone; UserError unless it was written by a class in
    `modules` whose constructor and parameters still fit."""
    class_path, errors = str(checkpoint.get("class_path")), ErrorCollector()
    if not class_path.startswith("modules."):
        raise UserError(f"{path} was not written by a method of this project: its class_path is {class_path}.")
    try:
        complete({**checkpoint.get("hyper_parameters", {}), "class_path": class_path}, str(path), errors)
        errors.raise_any()
        return find_class(class_path, ["modules."]).from_checkpoint(checkpoint)
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not fit {class_path}: {str(error).splitlines()[-1].strip()}") from error


def _is_report(config: Mapping[str, Any]) -> bool:
    return str(config.get("task", {}).get("class_path")).startswith("reports.")


def _missing(path: Path) -> str:
    if path.is_dir():
        files = [file for file in (path / "checkpoints/last.ckpt", path / "last.ckpt") if file.is_file()]
        return f"{path}: a folder; a checkpoint is a file.{f' Did you mean {files[0]}?' if files else ''}"
    if path.suffix != ".ckpt":
        return f"{path}: neither a checkpoint, nor a .yaml file, nor key=value.{nearest_hint(str(path), CHANGEABLE)}"
    others = sorted(other.name for other in path.parent.glob("*.ckpt"))
    hint = nearest_hint(path.name, others) or (f" {path.parent} has {', '.join(others)}." if others else "")
    return f"{path}: no such checkpoint.{hint}"
