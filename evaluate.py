"""Measures trained checkpoints, or does a task with them.

    python evaluate.py CHECKPOINT [CHECKPOINT …] [configs/tasks/<task>.yaml] [key=value …]

    python evaluate.py runs/fewgan/checkpoints/last.ckpt
    python evaluate.py runs/fewgan/checkpoints/last.ckpt callbacks.metrics.num_images=200 trainer.accelerator=cpu
    python evaluate.py runs/fewgan/checkpoints/last.ckpt configs/tasks/generate.yaml task.num_images=8 out=pictures

The file alone rebuilds the model. The configuration in it, changed by key=value, names the images to compare with.

    out                  folder for metrics.json, by default the run's; or for a task's pictures, by default
    tasks/<task> there datamodule.*         other images to measure against callbacks.metrics.*  number of samples,
    metrics, backbone: see callbacks/sample_metrics.py task.*               see the task's file trainer.accelerator,
    trainer.devices   auto and 1 by default
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.build import build
from configs.checkpoint import rebuild, split_words, stored_config
from configs.environment import use_sleeping_threads
from configs.loader import ConfigError


def measure(module: Any, config: DictConfig, folder: Path, facts: dict[str, Any]) -> None:
    """Writes `folder`/metrics.json and prints it as a table."""
    from callbacks.metrics.card import format_card, write_card

    metrics = build(config.callbacks.metrics)
    trainer = new_trainer(config, callbacks=[metrics])
    trainer.test(module, datamodule=build(config.datamodule), verbose=False)
    if trainer.is_global_zero:
        write_card(folder / "metrics.json", {**facts, **metrics.results})
        print(f"{format_card(metrics.results)}\n{folder / 'metrics.json'}")


def do_task(module: Any, config: DictConfig, folder: Path) -> None:
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
    print(f"{folder}: {', '.join(f'{stem}.png' for stem in pictures)}")


def new_trainer(config: DictConfig, **objects: Any) -> Any:
    from lightning import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        return Trainer(accelerator=config.trainer.accelerator, devices=config.trainer.devices, **off, **objects)
    except MisconfigurationException as error:  # such as a GPU that is not there
        raise ConfigError(f"trainer: {error}") from error


def evaluate(path: Path, words: list[str], beside: list[Path]) -> None:
    """One checkpoint; `beside` are the others of the same call, which must not get the same folder."""
    from callbacks.config_snapshot import read_checkpoint

    content = read_checkpoint(path)
    config = stored_config(path, content, words)
    module = rebuild(path, content)
    folder = Path(config.get("out") or config.run_dir)
    if "out" in config and beside:
        folder /= config.run_name
    if path.parent in [other.parent for other in beside]:
        folder /= path.stem
    if "task" in config:
        do_task(module, config, folder if "out" in config else folder / "tasks" / config.task.class_path.split(".")[-2])
        return
    facts = {"run_name": config.run_name, "checkpoint": str(path), "class_path": content["class_path"]}
    measure(module, config, folder, {**facts, "iteration": module.iteration, "images_seen": module.images_seen})


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    use_sleeping_threads()
    try:
        checkpoints, words = split_words(arguments)
        for path in checkpoints:
            evaluate(path, words, beside=[other for other in checkpoints if other != path])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
