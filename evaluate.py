"""Measures trained checkpoints, does a task with them, or writes a page about them.

    python evaluate.py CHECKPOINT [CHECKPOINT …] [configs/tasks/<task>.yaml] [key=value …]
    python evaluate.py runs/fewgan/checkpoints/last.ckpt callbacks.metrics.num_images=200
    python evaluate.py runs/fewgan/checkpoints/last.ckpt configs/tasks/generate.yaml task.num_images=8 out=pictures
    python evaluate.py A.ckpt B.ckpt configs/tasks/compare.yaml out=report    # one page about several checkpoints
    python evaluate.py runs configs/tasks/gallery.yaml out=gallery            # one page about all runs in a folder

The file alone rebuilds the model. Its configuration, changed by key=value, names the images to compare with.
    out                  folder of metrics.json (default: the run's), a task's pictures (tasks/<task> in it) or a page
    datamodule.*         other images to measure against
    callbacks.metrics.*  number of samples, metrics, backbone: see callbacks/sample_metrics.py
    task.*, logger.*     see python evaluate.py configs/tasks/<task>.yaml --help; trainer.accelerator is auto, devices 1
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.build import build
from cli.command import end_process, run_command
from cli.evaluation import output_folder, rebuild, split_arguments, stored_config, task_config
from core.errors import UserError
from core.files import atomic_folder


def open_checkpoint(path: Path, arguments: list[str]) -> tuple[dict[str, Any], DictConfig, Any]:
    from experiment.checkpoint import read_checkpoint
    from modules.capabilities import adopt

    try:
        checkpoint = read_checkpoint(path)
    except UserError:
        if (checkpoint := adopt(str(path))) is None:
            raise
    if "class_path" not in checkpoint:
        checkpoint = adopt(str(path)) or checkpoint
    if "description" in checkpoint:
        print(f"{path}: {checkpoint['description']}", file=sys.stderr)
    return checkpoint, stored_config(path, checkpoint, arguments), rebuild(path, checkpoint)


def run_test(checkpoint: dict[str, Any], config: DictConfig, module: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """The checkpoint, its module, the metrics with their results, and the data."""
    from callbacks.fit_control import TerminateAllRanks

    metrics, data = build(config.callbacks.metrics), build(config.datamodule)
    data.setup("test")
    data.check_trained_on({key: facts["fingerprint"] for key, facts in checkpoint.get("data", {}).items()})
    build(config.trainer, callbacks=[metrics, TerminateAllRanks()]).test(module, datamodule=data, verbose=False)
    return checkpoint, module, metrics, data


def measure(path: Path, checkpoint: dict[str, Any], config: DictConfig, module: Any, folder: Path) -> None:
    """Writes `folder`/metrics.json, and nearest.png with the samples nearest to training images, and prints a table."""
    from metrics.results import format_measurement, write_measurement
    from tasks.output import write_images

    facts = {"run_name": config.run_name, "checkpoint": str(path), "class_path": checkpoint["class_path"]}
    facts |= {"iteration": module.iteration, "images_seen": module.images_seen}
    metrics = run_test(checkpoint, config, module)[2]
    if module.global_rank == 0:
        with atomic_folder(folder, ["nearest.png"] if (folder / "metrics.json").exists() else ()) as draft:
            write_measurement(draft / "metrics.json", {**facts, **metrics.results})
            if metrics.nearest is not None:
                write_images(draft, {"nearest": metrics.nearest})
        print(f"{format_measurement(metrics.results)}\n{folder / 'metrics.json'}")


def run_task(path: Path, config: DictConfig, module: Any, folder: Path) -> None:
    from tasks.output import write_results

    task = build(config.task)
    images = task.run(module.to(build(config.trainer).strategy.root_device))
    settings = {"checkpoint": str(path), "task": OmegaConf.to_container(config.task)}
    print(f"{folder}: {write_results(folder, task.name, settings, images, task.frames_per_second)}")


def evaluate(arguments: list[str], *_: object) -> int:
    checkpoints, settings, config = split_arguments(arguments)
    if config is not None:
        loggers = [build(node) for node in (config.get("logger") or {}).values() if node]
        report = build(config.task)
        print(report(checkpoints, Path(config.out), lambda path: run_test(*open_checkpoint(path, settings)), loggers))
        return 0
    used = set()
    for path in checkpoints:
        checkpoint, config, module = open_checkpoint(path, settings)
        folder = output_folder(config, path, checkpoints)
        if folder in used:
            advice = "evaluate them one by one, each with its own out=DIR"
            raise UserError(f"{path}: {folder} would hold the results of two of these checkpoints; {advice}.")
        used.add(folder)
        run_task(path, config, module, folder) if "task" in config else measure(path, checkpoint, config, module, folder)
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, arguments, task_config, evaluate)


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
