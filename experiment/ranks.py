"""Several processes as one training: as many as were meant, all beginning alike, none waiting for a lost one for ever."""

import hashlib
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from core.errors import UserError

# A rank that has waited so long for the others gives up; Lightning's default is 30 minutes. Nothing in a training keeps one
# rank that much longer than the others.
TIMEOUT = timedelta(minutes=10)


class Ranks(Callback):
    """Ends a fit whose ranks begin with different things, on all of them, before the first step.

    A rank that does not see the checkpoint that the others go on from, or reads other images, would train apart from them
    without a sign, or let them wait.

    Args:
        config: the resolved configuration; `datamodule`: set up; `checkpoint`: the one to go on from.
    """

    def __init__(self, config: Mapping[str, Any], datamodule: LightningDataModule, checkpoint: str | None) -> None:
        settings = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
        images = {f"images of the set {key}": digest[:12] for key, digest in datamodule.fingerprints().items()}
        self.facts = {"checkpoint": checkpoint or "none", "settings": settings, **images}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        everywhere: list[dict[str, str]] = [self.facts] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everywhere, self.facts)
        unlike = [
            f"  {name}: {everywhere[0].get(name)} on rank 0, {facts[name]} on rank {rank}"
            for rank, facts in enumerate(everywhere)
            for name in facts
            if facts[name] != everywhere[0].get(name)
        ]
        if unlike:
            head = "error: the processes of this training do not begin alike:"
            tail = "run_dir, images and code have to be the same on all nodes, as on a disk that they share."
            raise SystemExit("\n".join([head, *unlike, tail]) if trainer.is_global_zero else 2)


def cluster_plugins() -> list[SLURMEnvironment]:
    """Plugins for the trainer, to be asked for before it is built; sets the time limit of plain DDP strategies.

    On SLURM its environment without Lightning's own requeueing, which saves in the middle of a step, where ranks wait for
    each other in different calls, and what a training cannot go on from exactly (P 6.6); see `cli.signals`.
    """
    for name, start_method in (("ddp", "popen"), ("ddp_fork", "fork"), ("ddp_spawn", "spawn")):
        StrategyRegistry.register(name, DDPStrategy, override=True, start_method=start_method, timeout=TIMEOUT)
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:  # about the way the job was started
        raise UserError(str(error)) from None


def check_number(trainer: Trainer) -> Trainer:
    """The trainer; ValueError if torchrun or SLURM started more or fewer processes than it counts on.

    Too many would each train by itself into the same run folder, too few would wait for the others.
    """
    for name, environment in (("torchrun", TorchElasticEnvironment), ("SLURM", SLURMEnvironment)):
        if not environment.detect():
            continue
        started = environment().world_size()
        if started != trainer.num_nodes * trainer.num_devices:
            raise UserError(
                f"{name} started {started} process(es), but trainer.num_nodes={trainer.num_nodes} times "
                f"trainer.devices={trainer.num_devices} is {trainer.num_nodes * trainer.num_devices}. Set both: devices is the "
                f"number of processes on one node."
            )
        break
    return trainer


def check_port(trainer: Trainer) -> None:
    """UserError if MASTER_PORT is taken, where this process is the one that would listen on it."""
    port = os.environ.get("MASTER_PORT")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not port or trainer.world_size == 1 or not isinstance(environment, LightningEnvironment) or not trainer.is_global_zero:
        return
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"MASTER_PORT={port}: cannot listen on this port ({error}); unset it or choose another one.") from None
