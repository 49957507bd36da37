"""Trains a method.

    python train.py CONFIG.yaml [MORE.yaml …] [key=value …] [--dry-run]

    python train.py configs/fewgan.yaml
    python train.py configs/fewgan.yaml run_name=birds datamodule.root=photos/birds datamodule.side_root=photos/others
    python train.py configs/fewgan.yaml run_name=birds resume=auto
    python train.py configs/fewgan.yaml trainer.devices=2 trainer.accelerator=cpu

Later arguments win: configs/base.yaml, then the YAML files, then key=value. A value is YAML: datamodule.image_size=[72,96],
callbacks.metrics=null, module.lr_g=1e-4.

    --help      with a CONFIG: its keys with type, value and one line each
    --dry-run   shows the whole configuration and the plan of the training, and trains nothing
    run_dir     gets checkpoints/, images/, metrics.csv, config.yaml, run.json and wandb/; runs/<run_name> by default
    resume      null: a new run; auto: go on from run_dir, or begin there; or the path of a checkpoint. A run that was
                killed and goes on ends with the numbers and pictures of one that was not.

W&B: after `wandb login` the run is online, else it stays on this machine. W&B's environment variables and settings hold.
"""

import sys
from pathlib import Path
from shlex import quote
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.build import build
from cli.environment import configure_openmp, filter_warnings, protect_output
from cli.errors import report_user_errors
from cli.loader import load_config
from cli.reference import help_text
from cli.signals import StopSignals, is_first_process
from core.errors import UserError


def main(arguments: list[str]) -> int:
    settings = [argument for argument in arguments if argument not in ("--help", "-h", "--dry-run")]
    show_help = {"--help", "-h"} & set(arguments)
    if show_help and not settings:
        print(__doc__.strip())
        return 0
    configure_openmp()
    protect_output()
    filter_warnings()
    dry_run = "--dry-run" in arguments
    with StopSignals() as stop, report_user_errors() as errors:
        config = load_config(settings)
        if show_help:
            print(help_text(config))
            return 0
        stop.checkpoints = Path(config.run_dir) / "checkpoints"
        if dry_run:
            print(OmegaConf.to_yaml(config), end="")  # at once: what the plan needs takes seconds to import
            print("# the plan follows in 10 to 20 seconds: a few iterations of each stage are trained", flush=True)
        trainer, module, datamodule, checkpoint = prepare(config, dry_run)
        if dry_run:
            from experiment.cost import plan

            print("\n".join(f"# {line}" for line in plan(module, datamodule, trainer).splitlines()))  # as a whole YAML, too
            return 0
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            print(closing_text(Path(config.run_dir)))
        return 0
    return stop.exit_code or errors.exit_code


def closing_text(run_dir: Path) -> str:
    """What a run has left behind, and how to measure it."""
    entries = [name for name in ("checkpoints/", "images/", "metrics.csv", "config.yaml") if (run_dir / name).exists()]
    last = run_dir / "checkpoints/last.ckpt"
    measure = f"\nMeasure it: python evaluate.py {quote(str(last))}" if last.is_file() else ""
    return f"Done. {quote(str(run_dir))} holds {', '.join(entries)}.{measure}"


def prepare(config: DictConfig, dry_run: bool) -> tuple[Any, Any, Any, str | None]:
    """Trainer, module, data module and the checkpoint to go on from. Finds all mistakes before any file is written."""
    from lightning import seed_everything  # not at the top: help and mistakes are answered without torch

    from callbacks.config_snapshot import ConfigSnapshot
    from callbacks.monitors import check_monitors
    from callbacks.run_manifest import RunManifest
    from callbacks.terminate_ranks import TerminateAllRanks
    from experiment.checkpoint import AtomicCheckpointIO, remove_leftovers
    from experiment.ranks import Ranks, check_number, check_port, cluster_plugins
    from experiment.resume import resume_point

    begins = config.resume is None and not dry_run and is_first_process()
    if begins and any(Path(config.run_dir).glob("**/*.ckpt")):
        raise UserError(f"{config.run_dir} holds a run. resume=auto goes on with it, run_name=… begins another.")
    seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build(config.datamodule)
    datamodule.setup("fit")
    datamodule.check_images()
    module = build(config.module)
    module.check_data(datamodule.sets())
    checkpoint = resume_point(config, module, datamodule, dry_run)
    loggers = [build(node) for node in (config.logger or {}).values() if node and not dry_run]  # wandb takes time
    callbacks = [Ranks(config, datamodule, checkpoint), *(build(node) for node in (config.callbacks or {}).values() if node)]
    callbacks += [ConfigSnapshot(config), card := RunManifest(config, checkpoint), TerminateAllRanks()]
    plugins = [AtomicCheckpointIO(), *cluster_plugins()]
    trainer = check_number(build(config.trainer, logger=loggers, callbacks=callbacks, plugins=plugins))
    check_port(trainer)
    check_monitors(trainer, module)
    if not dry_run:
        remove_leftovers(config.run_dir)
        card.begin(trainer, module, datamodule)
    return trainer, module, datamodule, checkpoint


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
