"""Distributed start-up checks and time-outs."""

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from core.errors import UserError

TIMEOUT = timedelta(minutes=10)  # for a rank that waits for the others; Lightning's default is 30 minutes


def start_facts(config: Mapping[str, Any], datamodule: LightningDataModule, checkpoint: str | None) -> dict[str, str]:
    """Values that have to be equal on all ranks at the start: checkpoint, settings and images."""
    settings = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    images = {f"images of the set {key}": digest[:12] for key, digest in datamodule.fingerprints().items()}
    return {"checkpoint": checkpoint or "none", "settings": settings, **images}


def differing_facts(facts: Sequence[Mapping[str, str]]) -> list[str]:
    return [
        f"  {name}: {facts[0].get(name)} on rank 0, {own[name]} on rank {rank}"
        for rank, own in enumerate(facts)
        for name in own
        if own[name] != facts[0].get(name)
    ]


def cluster_plugins() -> list[SLURMEnvironment]:
    """Sets the time-out of plain DDP strategies. Plugins for the trainer: on SLURM its environment without Lightning's own
    requeueing, which saves within a step (P 6.6); the batch script requeues."""
    for name, start_method in (("ddp", "popen"), ("ddp_fork", "fork"), ("ddp_spawn", "spawn")):
        StrategyRegistry.register(name, DDPStrategy, override=True, start_method=start_method, timeout=TIMEOUT)
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:  # about the way the job was started
        raise UserError(str(error)) from None


def check_world_size(trainer: Trainer) -> Trainer:
    """The trainer; UserError if torchrun or SLURM started more or fewer processes than it is configured for."""
    for name, environment in (("torchrun", TorchElasticEnvironment), ("SLURM", SLURMEnvironment)):
        if environment.detect():
            started, configured = environment().world_size(), trainer.num_nodes * trainer.num_devices
            if started != configured:
                product = f"trainer.num_nodes={trainer.num_nodes} times trainer.devices={trainer.num_devices} is {configured}"
                advice = "Set both: devices is the number of processes on one node."
                raise UserError(f"{name} started {started} process(es), but {product}. {advice}")
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
