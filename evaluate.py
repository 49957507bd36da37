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
from cli.environment import configure_openmp, filter_warnings, protect_output, use_short_temporary_folder
from cli.evaluation import output_folder, rebuild, report_config, split_arguments, stored_config, task_config
from cli.reference import help_text
from cli.signals import StopSignals
from cli.user_errors import report_user_errors
from core.errors import UserError
from core.files import atomic_folder


def open_checkpoint(path: Path, arguments: list[str]) -> tuple[dict[str, Any], DictConfig, Any]:
    """A checkpoint, its configuration with `arguments` on top, and its module."""
    from experiment.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    return checkpoint, stored_config(path, checkpoint, arguments), rebuild(path, checkpoint)


def run_test(checkpoint: dict[str, Any], config: DictConfig, module: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """The checkpoint, its module, the metrics with their results, and the data."""
    from callbacks.terminate_ranks import TerminateAllRanks

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


def do_task(path: Path, config: DictConfig, module: Any, folder: Path) -> None:
    """Writes the task's images into `folder`, all or none; frames also as an animation and a video."""
    from tasks.output import write_results

    task = build(config.task)
    images = task.run(module.to(build(config.trainer).strategy.root_device))
    settings = {"checkpoint": str(path), "task": OmegaConf.to_container(config.task)}
    print(f"{folder}: {write_results(folder, task.name, settings, images, task.frames_per_second)}")


def report(paths: list[Path], arguments: list[str]) -> None:
    """Writes a page about all `paths` into the folder `out`."""
    config = report_config(arguments)
    loggers = [build(node) for node in (config.get("logger") or {}).values() if node]
    print(build(config.task)(paths, Path(config.out), lambda path: run_test(*open_checkpoint(path, arguments)), loggers))


def evaluate(checkpoints: list[Path], arguments: list[str]) -> None:
    taken = set()
    for path in checkpoints:
        checkpoint, config, module = open_checkpoint(path, arguments)
        folder = output_folder(config, path, checkpoints)
        if folder in taken:
            raise UserError(f"{path}: {folder} holds the results of another one of these checkpoints; give it alone.")
        taken.add(folder)
        do_task(path, config, module, folder) if "task" in config else measure(path, checkpoint, config, module, folder)


def main(arguments: list[str]) -> int:
    show_help = {"--help", "-h"} & set(arguments)
    arguments = [argument for argument in arguments if argument not in show_help]
    if show_help and not arguments:
        print(__doc__.strip())
        return 0
    configure_openmp()
    use_short_temporary_folder()
    protect_output()
    filter_warnings()
    with StopSignals() as stop, report_user_errors() as errors:
        if show_help:
            print(help_text(task_config(arguments)))
            return 0
        checkpoints, settings = split_arguments(arguments)
        (report if report_config(settings) else evaluate)(checkpoints, settings)
    return stop.exit_code or errors.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
