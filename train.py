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
    resume      null: a new run; auto: resume from run_dir, or begin there; or the path of a checkpoint. A run that was
                killed and resumed ends with the numbers and pictures of one that was not.

W&B: after `wandb login` the run is online, else it stays on this machine. W&B's environment variables and settings hold.
"""

import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cli.build import build
from cli.command import StopSignals, end_process, is_first_process, resume_hint, run_command
from cli.loader import load_config
from core.errors import UserError
from core.lock import lock_folder, release_locks, sign_lock

LIMIT_REACHED = 124  # as `timeout` ends a command


def main(arguments: list[str]) -> int:
    dry_run, arguments = "--dry-run" in arguments, [argument for argument in arguments if argument != "--dry-run"]
    return run_command(__doc__, arguments, load_config, lambda args, stop: train(load_config(args), stop, dry_run))


def train(config: DictConfig, stop: StopSignals, dry_run: bool) -> int:
    """Trains to the end, or for a dry run shows configuration and plan; the exit code."""
    run_dir = Path(config.run_dir)
    stop.checkpoints, is_new = run_dir / "checkpoints", not run_dir.exists() and is_first_process()
    if dry_run:
        print(OmegaConf.to_yaml(config), end="")  # at once: what the plan needs takes seconds to import
        print("# the plan follows in 10 to 20 seconds: a few iterations of each stage are trained", flush=True)
    trainer, module, datamodule, checkpoint = prepare(config, dry_run)
    if dry_run:
        from experiment.cost import plan

        print("\n".join(f"# {line}" for line in plan(module, datamodule, trainer).splitlines()))  # as a whole YAML, too
        return 0
    try:
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    except UserError:
        if is_new and not (run_dir / "config.yaml").exists():  # nothing has begun: a logger could not start
            shutil.rmtree(run_dir)
        raise
    release_locks()
    return report_end(run_dir) if trainer.is_global_zero else 0


def report_end(run_dir: Path) -> int:
    """Prints what a run has left behind and how to measure it; the exit code, 124 if a limit of the trainer has ended it."""
    from experiment.manifest import read_manifest

    if read_manifest(run_dir).get("status") == "interrupted":
        hint = resume_hint(run_dir / "checkpoints")
        print(f"Ended by a limit of the trainer (exit code {LIMIT_REACHED}). {hint}", file=sys.stderr)
        return LIMIT_REACHED
    entries = [name for name in ("checkpoints/", "images/", "metrics.csv", "config.yaml") if (run_dir / name).exists()]
    last = run_dir / "checkpoints/last.ckpt"
    measure = f"\nMeasure it: python evaluate.py {quote(str(last))}" if last.is_file() else ""
    print(f"Done. {quote(str(run_dir))} holds {', '.join(entries)}.{measure}")
    return 0


def prepare(config: DictConfig, dry_run: bool) -> tuple[Any, Any, Any, str | None]:
    """Trainer, module, data module and the checkpoint to resume from. Every UserError is raised before any file is written."""
    from lightning import seed_everything  # not at the top: help and user errors need no torch
    from lightning.pytorch.callbacks import Checkpoint

    from callbacks.fit_control import CheckRanksAgree, TerminateAllRanks, WholeEpochs
    from callbacks.monitors import check_monitors
    from callbacks.run_manifest import RunManifest
    from experiment.checkpoint import AtomicCheckpointIO, remove_leftovers
    from experiment.ranks import check_port, check_world_size, cluster_plugins, start_facts
    from experiment.resume import checkpoint_files, move_results_aside, resume_point

    writes = not dry_run and is_first_process()
    if writes and Path(config.run_dir, ".lock").exists():
        lock_folder(config.run_dir)  # before the checkpoint is read: nobody else may be writing it
    if writes and config.resume is None and any(checkpoint_files(config)):
        raise UserError(f"{config.run_dir} holds a run. resume=auto resumes it, run_name=… starts another.")
    seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build(config.datamodule)
    datamodule.setup("fit")
    datamodule.check_images()
    module = build(config.module)
    module.check_data(datamodule.sets())
    stored = resume_point(config, module, datamodule, dry_run)
    checkpoint = stored and stored.path
    source = None if stored else module.start_from_source()
    loggers = [build(node) for node in (config.logger or {}).values() if node and not dry_run]  # wandb takes time
    callbacks = [WholeEpochs(), CheckRanksAgree(start_facts(config, datamodule, checkpoint))]
    callbacks += [build(node) for node in (config.callbacks or {}).values() if node]
    callbacks += [manifest := RunManifest(config, stored, source), TerminateAllRanks()]
    objects = {"logger": loggers, "callbacks": callbacks, "plugins": [AtomicCheckpointIO(stored), *cluster_plugins()]}
    if "enable_checkpointing" not in config.trainer:  # without a checkpoint callback Lightning would add its own
        objects["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = check_world_size(build(config.trainer, **objects))
    check_port(trainer)
    if hasattr(module, "set_epoch_length"):
        module.set_epoch_length(datamodule, trainer.world_size)
    check_monitors(trainer, module, datamodule.sets())
    if not dry_run:
        if writes:
            Path(config.run_dir).mkdir(parents=True, exist_ok=True)
            sign_lock(lock_folder(config.run_dir))
            remove_leftovers(config.run_dir)
            if not any(checkpoint_files(config)):
                move_results_aside(config.run_dir)
        manifest.begin(trainer, module, datamodule)
    return trainer, module, datamodule, checkpoint


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
