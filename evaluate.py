"""Measures trained checkpoints, or does a task with them.

    python evaluate.py CHECKPOINT [CHECKPOINT …] [configs/tasks/<task>.yaml] [key=value …]

    python evaluate.py runs/fewgan/checkpoints/last.ckpt callbacks.metrics.num_images=200
    python evaluate.py runs/fewgan/checkpoints/last.ckpt configs/tasks/generate.yaml task.num_images=8 out=pictures

The file alone rebuilds the model. The configuration in it, changed by key=value, names the images to compare with.

    out                  folder of metrics.json (default: the run's) or a task's pictures (default: tasks/<task> in it)
    datamodule.*         other images to measure against
    callbacks.metrics.*  number of samples, metrics, backbone: see callbacks/sample_metrics.py
    task.*               see the task's file
    trainer.accelerator, trainer.devices   auto and 1 by default
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.build import build
from configs.checkpoint import output_folder, rebuild, split_words, stored_config
from configs.environment import hide_known_noise, use_sleeping_threads
from configs.loader import ConfigError
from configs.mistakes import MistakesTold


def measure(module: Any, config: DictConfig, folder: Path, facts: dict[str, Any]) -> None:
    """Writes `folder`/metrics.json and prints it as a table."""
    from callbacks.metrics.card import format_card, write_card

    metrics = build(config.callbacks.metrics)
    trainer = build(config.trainer, callbacks=[metrics])
    trainer.test(module, datamodule=build(config.datamodule), verbose=False)
    if trainer.is_global_zero:
        write_card(folder / "metrics.json", {**facts, **metrics.results})
        print(f"{format_card(metrics.results)}\n{folder / 'metrics.json'}")


def do_task(module: Any, config: DictConfig, folder: Path) -> None:
    """Writes the task's pictures into `folder`, all or none; if they are frames, also as an animation and a film."""
    from modules.tasks.pictures import write_pictures

    task = build(config.task)
    images = dict(task(module.to(build(config.trainer).strategy.root_device)))
    print(f"{folder}: {write_pictures(folder, images, getattr(task, 'frames_per_second', None))}")


def evaluate(path: Path, words: list[str], checkpoints: list[Path], taken: set[Path]) -> None:
    from callbacks.config_snapshot import read_checkpoint

    content = read_checkpoint(path)
    config = stored_config(path, content, words)
    module = rebuild(path, content)
    folder = output_folder(config, path, checkpoints)
    if folder in taken:
        raise ConfigError(f"{path}: {folder} holds the results of another one of these checkpoints; give it alone.")
    taken.add(folder)
    if "task" in config:
        return do_task(module, config, folder)
    facts = {"run_name": config.run_name, "checkpoint": str(path), "class_path": content["class_path"]}
    measure(module, config, folder, {**facts, "iteration": module.iteration, "images_seen": module.images_seen})


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    use_sleeping_threads()
    hide_known_noise()
    with MistakesTold() as told:
        checkpoints, words = split_words(arguments)
        taken: set[Path] = set()
        for path in checkpoints:
            evaluate(path, words, checkpoints, taken)
    return told.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
