"""Measures trained checkpoints, or does a task with one.

    python evaluate.py CHECKPOINT [CHECKPOINT …] [key=value …]
    python evaluate.py CHECKPOINT configs/tasks/<task>.yaml [key=value …]

    python evaluate.py runs/fewgan/checkpoints/last.ckpt
    python evaluate.py runs/fewgan/checkpoints/last.ckpt callbacks.metrics.num_images=200 trainer.accelerator=cpu
    python evaluate.py runs/fewgan/checkpoints/last.ckpt configs/tasks/generate.yaml task.num_images=8 out=pictures

The file rebuilds the model; its configuration, changed by key=value, gives the images to compare with.

    out                  folder of metrics.json (by default that of the run) or of a task's pictures (tasks/<task> in it)
    datamodule.*         other images to measure against
    callbacks.metrics.*  number of samples, metrics, backbone: see callbacks/sample_metrics.py
    trainer.accelerator, trainer.devices   auto and 1 by default
    task.*               see the task's file
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.build import build, check
from configs.environment import use_sleeping_threads
from configs.loader import MAPPING, ConfigError, load_config, nearest

EXTRA_KEYS = {"out": (str, type(None)), "task": MAPPING}
CHANGEABLE = ("out", "datamodule", "callbacks.metrics", "trainer.accelerator", "trainer.devices", "task")


def split(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Checkpoints, and the words of the configuration; a file name may contain "="."""
    settings = [w for w in arguments if w.startswith("-") or w.endswith((".yaml", ".yml")) or "=" in w]
    settings = [word for word in settings if not (word.endswith(".ckpt") and Path(word).is_file())]
    for key in (word.split("=")[0] for word in settings if "=" in word):
        if not any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE):
            raise ConfigError(f"{key}: fixed by the checkpoint.{nearest(key, CHANGEABLE)} Here: {', '.join(CHANGEABLE)}.")
    checkpoints = [Path(word) for word in arguments if word not in settings]
    if not checkpoints:
        raise ConfigError("no checkpoint given, such as runs/fewgan/checkpoints/last.ckpt; --help explains.")
    return checkpoints, settings


def configure(path: Path, content: Mapping[str, Any], settings: list[str]) -> DictConfig:
    """The configuration stored in a checkpoint with `settings` on top; `run_dir` is where the file's run is."""
    stored = content.get("config") or {}
    metrics = (stored.get("callbacks") or {}).get("metrics") or {"class_path": "callbacks.sample_metrics.SampleMetrics"}
    start = {
        "run_name": stored.get("run_name", path.stem.replace(".", "_")),
        "run_dir": str(path.parent.parent if path.parent.name == "checkpoints" else path.parent),
        "trainer": {"accelerator": "auto", "devices": 1},
        "callbacks": {"metrics": metrics},
    } | {key: stored[key] for key in ("datamodule",) if key in stored}
    config = load_config(settings, start=start, extra_keys=EXTRA_KEYS)
    if "datamodule" not in config and "task" not in config:
        raise ConfigError(f"{path} holds no configuration: give datamodule.class_path, datamodule.root and the like.")
    return config


def rebuild(path: Path, content: Mapping[str, Any]) -> Any:
    """The module of a checkpoint, in eval mode on the CPU, from the file alone."""
    class_path = str(content.get("class_path"))
    if not class_path.startswith("modules."):
        raise ConfigError(f"{path} was not written by a method of this project (class_path {class_path}).")
    class_, _ = check(OmegaConf.create({"class_path": class_path, **content.get("hyper_parameters", {})}), str(path))
    try:
        return class_.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    except (RuntimeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path} does not fit {class_path}: {str(error).splitlines()[-1].strip()}") from error


def measure(module: Any, config: DictConfig, facts: Mapping[str, Any], folder: Path) -> None:
    """Writes `folder`/metrics.json and prints it as a table."""
    from callbacks.metrics.card import format_card, write_card

    metrics = build(config.callbacks.metrics)
    trainer = new_trainer(config, callbacks=[metrics])
    trainer.test(module, datamodule=build(config.datamodule), verbose=False)
    if trainer.is_global_zero:
        write_card(folder / "metrics.json", {**facts, **metrics.results})
        print(f"{format_card(metrics.results)}\n{folder / 'metrics.json'}")


def run_task(module: Any, config: DictConfig, folder: Path) -> None:
    """Writes the task's pictures into `folder`, all or none."""
    import torch
    from torchvision.io import write_png

    from modules.ops.images import to_uint8

    task = build(config.task)
    with torch.no_grad():
        module = module.to(new_trainer(config).strategy.root_device)
        pictures = {stem: to_uint8(image).cpu() for stem, image in task(module)}
    folder.mkdir(parents=True, exist_ok=True)
    for stem, picture in pictures.items():
        write_png(picture, str(folder / f"{stem}.png"))
    print(f"{len(pictures)} pictures in {folder}: {', '.join(sorted(pictures))}")


def new_trainer(config: DictConfig, **objects: Any) -> Any:
    from lightning import Trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator=config.trainer.accelerator, devices=config.trainer.devices, **quiet, **objects)


def evaluate(path: Path, settings: list[str], several: bool) -> None:
    from callbacks.config_snapshot import read_checkpoint

    content = read_checkpoint(path)
    config = configure(path, content, settings)
    module = rebuild(path, content)
    out = config.get("out")
    if "task" in config:
        default = Path(config.run_dir) / "tasks" / config.task.class_path.split(".")[-2]
        run_task(module, config, Path(out) if out else default)
        return
    folder = Path(out or config.run_dir) / (config.run_name if several and out else "")
    facts = {"run_name": config.run_name, "checkpoint": str(path), "class_path": content["class_path"]}
    counters = {"iteration": module.iteration, "images_seen": module.images_seen}
    measure(module, config, facts | counters, folder)


def main(arguments: list[str]) -> int:
    if not arguments or {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    use_sleeping_threads()
    try:
        checkpoints, settings = split(arguments)
        load_config(settings, start={"run_name": "check"}, extra_keys=EXTRA_KEYS)  # mistakes in words, before torch is loaded
        for path in checkpoints:
            evaluate(path, settings, several=len(checkpoints) > 1)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
