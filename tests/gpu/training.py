"""Trainings at published size on one device, or at tiny size on the CPU, where everything but the device can be proved."""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

import train
from cli.loader import load_config
from core.nodes import find_class
from datamodules.synthetic import SyntheticDataModule
from experiment.checkpoint import read_checkpoint
from experiment.cost import PeakMemory
from modules.bank import BankModule
from tests.test_distributed import Toy

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path for size in (250, 256) for path in ROOT.glob(f"configs/*_{size}.yaml"))
ITERATIONS = 20  # at least, over all stages
SAMPLES = 2


class Case(NamedTuple):
    path: Path
    device: str  # cuda or cpu
    sizes: tuple[str, ...] = ()  # settings of a tiny version

    @property
    def module_class(self) -> type:
        return find_class(load_config([str(self.path)]).module.class_path, ["modules."])

    @property
    def is_bank(self) -> bool:
        return issubclass(self.module_class, BankModule)


class Speed(lightning.Callback):
    """Images per second in each stage, without the first iteration of an epoch."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.images: dict[int, int] = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        synchronize(module.device)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        synchronize(module.device)
        if batch_idx > 0:
            stage = getattr(module, "stage", 0)
            self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - self.start
            self.images[stage] = self.images.get(stage, 0) + len(batch["image"])

    def slowest(self) -> float:
        return min(self.images[stage] / self.seconds[stage] for stage in self.images)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def arguments(case: Case, run_dir: Path, *words: str) -> list[str]:
    quiet = ["metrics=null", "images=null", "progress=null"]
    counts_iterations = load_config([str(case.path)]).module.get("iterations") is not None
    enough = ["module.iterations=400", "datamodule.samples_per_epoch=8"] if counts_iterations else []  # for several epochs
    return [
        str(case.path), "datamodule.class_path=datamodules.synthetic.SyntheticDataModule", "datamodule.num_workers=0",
        *case.sizes, *enough, *(f"callbacks.{word}" for word in quiet), "logger.wandb=null", f"run_dir={run_dir}",
        f"trainer.accelerator={'gpu' if case.device == 'cuda' else 'cpu'}", "trainer.devices=1", *words,
    ]  # fmt: skip


def fit(case: Case, run_dir: Path, *words: str, batches: int | None = None, callbacks=()):
    """(trainer, module) after a training with `batches` iterations an epoch, by default enough for ITERATIONS in all."""
    trainer, module, datamodule, checkpoint = train.prepare(load_config(arguments(case, run_dir, *words)), dry_run=False)
    trainer.limit_train_batches = batches or max(3, -(-ITERATIONS // getattr(module, "num_stages", 1)))
    trainer.callbacks.extend(callbacks)
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    return trainer, module


def shortest(case: Case) -> list[str]:
    """Overrides for one epoch of each stage, whether the configuration counts epochs or iterations."""
    if load_config([str(case.path)]).module.get("iterations") is not None:
        return [f"module.iterations={ITERATIONS}"]
    return [f"module.{name}=1" for name in case.module_class.duration_settings if name != "iterations"]


def fit_all_stages(case: Case, run_dir: Path, precision: str) -> dict[str, float]:
    """Trains one short epoch of each stage, or fills a bank; figures."""
    device, speed = torch.device(case.device), Speed()
    memory = PeakMemory(device)
    one_epoch = [] if case.is_bank else shortest(case)
    many = [] if case.is_bank else ["datamodule.samples_per_epoch=400"]
    _, module = fit(case, run_dir, *one_epoch, *many, f"trainer.precision={precision}", callbacks=[speed])
    if not case.is_bank:
        return {"images_per_second": speed.slowest(), "peak_memory": memory.growth()}
    module = module.to(device).eval()
    synchronize(device)
    start = time.perf_counter()
    module.sample(SAMPLES)
    synchronize(device)
    return {"samples_per_second": SAMPLES / (time.perf_counter() - start), "peak_memory": memory.growth()}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_dir / "checkpoints/last.ckpt")["state_dict"]


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all floating-point tensors."""
    pairs = [(first[key].double(), second[key].double()) for key in first if first[key].is_floating_point()]
    return sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5


def two_ranks_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets on the `rank`-th of two nodes with one process each: both may use the same GPU."""
    names = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "handful"}  # fmt: skip
    return {**os.environ, **{key: str(value) for key, value in names.items()}}


def published_rank(file: str, device: str, path: str, run_dir: str, *sizes: str) -> None:
    """One of two gloo processes that train a published configuration: a few iterations, then the weights into a file."""
    words = ["trainer.strategy=gloo", "trainer.num_nodes=2", "trainer.max_epochs=1"]
    _, module = fit(Case(Path(path), device, sizes), Path(run_dir), *words, batches=2)
    save_weights(module, file)


def toy_rank(file: str, device: str, ranks: str) -> None:
    """One of `ranks` processes that train a toy method in 64 bits with batches of four images in all."""
    trainer = lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, num_nodes=int(ranks), max_epochs=2, logger=False,
        strategy="gloo" if int(ranks) > 1 else "auto", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    lightning.seed_everything(0, verbose=False)
    module = Toy()
    data = SyntheticDataModule([16, 20], batch_size=4 // int(ranks), samples_per_epoch=8, num_images=5)
    trainer.fit(module, data)
    save_weights(module, file)


def save_weights(module: lightning.LightningModule, file: str) -> None:
    torch.save({key: value.cpu() for key, value in module.state_dict().items()}, file)


if __name__ == "__main__":
    StrategyRegistry.register("gloo", DDPStrategy, process_group_backend="gloo")
    {"published": published_rank, "toy": toy_rank}[sys.argv[1]](*sys.argv[2:])
