"""Trains a method.

    python train.py CONFIG.yaml [MORE.yaml …] [key=value …] [--dry-run]

    python train.py configs/fewgan.yaml
    python train.py configs/fewgan.yaml run_name=birds datamodule.root=photos/birds datamodule.side_root=photos/others
    python train.py configs/fewgan.yaml run_name=birds resume=auto
    python train.py configs/fewgan.yaml trainer.devices=2 trainer.accelerator=cpu

Later words change what earlier ones say: configs/base.yaml, then the YAML files, then key=value. A value is YAML:
datamodule.image_size=[72,96], callbacks.metrics=null, module.lr_g=1e-4. Which keys there are, and what they mean, is in
the YAML files and in the docstrings of the classes that they name.

    --dry-run   shows the whole configuration and the plan of the training, and trains nothing
    resume      null: a new run; auto: go on from run_dir, or begin there; or the path of a checkpoint
    run_dir     where checkpoints/, images/, metrics.csv, config.yaml and wandb/ go; runs/<run_name> by default

W&B: without a key the run stays on this machine; WANDB_MODE (online, offline, disabled) and WANDB_BASE_URL are respected.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.build import build, check, nodes
from configs.environment import choose_wandb_mode, use_sleeping_threads
from configs.loader import ConfigError, load_config


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())
        return 0
    use_sleeping_threads()
    try:
        config = load_config(word for word in arguments if word != "--dry-run")
    except ConfigError as error:
        return refuse(error)
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    dry_run = "--dry-run" in arguments
    try:
        trainer, module, datamodule, checkpoint = prepare(config, dry_run)
    except (ValueError, OSError, MisconfigurationException) as error:
        return refuse(error)
    if dry_run:
        print(OmegaConf.to_yaml(config) + show_plan(trainer, module, datamodule))
        return 0
    notice = choose_wandb_mode() if "WandbLogger" in str(config.logger) else None
    if notice and trainer.is_global_zero:
        print(notice)
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    if trainer.is_global_zero:
        print(f"Done. {config.run_dir} holds checkpoints/, images/, metrics.csv and config.yaml.")
        print(f"Measure it: python evaluate.py {config.run_dir}/checkpoints/last.ckpt")
    return 0


def prepare(config: DictConfig, dry_run: bool) -> tuple[Any, Any, Any, str | None]:
    """Trainer, module, data module and the checkpoint to go on from. Finds all mistakes before any file is written."""
    from lightning import seed_everything
    from lightning.pytorch.utilities import rank_zero_only

    from callbacks.config_snapshot import ConfigSnapshot, check_resume

    for key, node in nodes(config):
        check(node, key)
    run_dir = Path(config.run_dir)
    if config.resume is None and not dry_run and rank_zero_only.rank == 0 and any(run_dir.glob("**/*.ckpt")):
        raise ConfigError(f"{run_dir} holds checkpoints of a run. Go on with it: resume=auto. Begin another: run_name=…")
    checkpoint = config.resume
    if checkpoint == "auto":  # SLURM's requeue signal leaves its file outside checkpoints/
        found = [*run_dir.glob("checkpoints/last.ckpt"), *run_dir.glob("hpc_ckpt_*.ckpt")]
        checkpoint = max(map(str, found), key=lambda path: Path(path).stat().st_mtime, default=None)
    seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build(config.datamodule)
    datamodule.setup("fit")
    module = build(config.module)
    if checkpoint is not None:
        check_resume(module, checkpoint)
    loggers, callbacks = ([build(node) for key, node in nodes(config) if key.startswith(group)] for group in GROUPS)
    trainer = build(config.trainer, logger=loggers, callbacks=[*callbacks, ConfigSnapshot(config)])
    return trainer, module, datamodule, checkpoint


GROUPS = ("logger.", "callbacks.")


def show_plan(trainer: Any, module: Any, datamodule: Any) -> str:
    """The module's plan as YAML comments, so that the output of a dry run is a YAML file."""
    plan = module.plan(datamodule.samples_per_epoch, datamodule.batch_size, trainer.world_size)
    return "\n".join(f"# {line}".rstrip() for line in plan.splitlines())


def refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
