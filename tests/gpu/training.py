"""Trainings at published size on one device, or at tiny size on the CPU, where everything but the device can be proved."""

import functools
import os
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

import train
from cli.build import build
from cli.loader import load_config
from core.nodes import find_class
from datamodules.synthetic import SyntheticDataModule
from experiment.checkpoint import read_checkpoint
from experiment.cost import PeakMemory
from modules.bank import BankModule
from tests.contract.tiers import SYNTHETIC, YAMLS, class_path, method_tests
from tests.test_distributed import Toy

ROOT = Path(__file__).parents[2]
ENDINGS = ("_250", "_256", "_128", "_cifar")  # of published configurations


def published() -> list[Path]:
    """The published configurations of each method, or its first one where it has none."""
    methods = [list(paths) for _, paths in groupby(sorted(YAMLS, key=class_path), class_path)]
    return sorted(path for paths in methods for path in [p for p in paths if p.stem.endswith(ENDINGS)] or paths[:1])


PUBLISHED = published()
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

    @property
    def counts_iterations(self) -> bool:
        """Whether the configuration counts iterations in place of epochs."""
        module = load_config([str(self.path), SYNTHETIC, *self.sizes]).module
        return "iterations" in self.module_class.duration_settings and module.get("iterations") is not None


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


@functools.cache
def random_weights(name: str) -> str:
    """A checkpoint of a published configuration with random weights."""
    config = load_config([str(ROOT / f"configs/{name}.yaml")]).module
    module = build(config)
    if hasattr(module, "quantize"):  # else all images have the same code
        module.quantize.embedding.weight.data.normal_()
    checkpoint = {"class_path": config.class_path, "hyper_parameters": dict(module.hparams), "iteration": 0, "images_seen": 0}
    file = Path(tempfile.mkdtemp(prefix=name)) / "random.ckpt"
    torch.save({**checkpoint, "state_dict": module.state_dict()}, file)
    return str(file)


def stand_ins(case: Case) -> list[str]:
    """Overrides for files that a user brings, and those in GPU of the method's test file, which shorten what has no effect on
    speed and memory."""
    settings, files = load_config([str(case.path), SYNTHETIC, *case.sizes]).module, []
    for key, name in {"source_checkpoint": "stylegan2_256", "tokenizer_checkpoint": "vqgan_256"}.items():
        if settings.get(key) and not (ROOT / settings[key]).exists():
            files.append(f"module.{key}={random_weights(name)}")
    return [*files, *getattr(method_tests(case.path), "GPU", [])]


def arguments(case: Case, run_dir: Path, *overrides: str) -> list[str]:
    base = [str(case.path), SYNTHETIC, "datamodule.num_workers=0", *case.sizes, *stand_ins(case)]
    if case.counts_iterations:
        base += ["module.iterations=400", samples(base, 8)]  # for several epochs
    elif "epochs" in case.module_class.duration_settings:
        base += ["module.epochs=3"]
    quiet = ["callbacks.metrics=null", "callbacks.images=null", "callbacks.progress=null", "logger.wandb=null"]
    device = [f"trainer.accelerator={'gpu' if case.device == 'cuda' else 'cpu'}", "trainer.devices=1"]
    return [*base, *quiet, *device, f"run_dir={run_dir}", *overrides]


def samples(config: list[str], batches: int) -> str:
    """The override for epochs of about so many batches."""
    return f"datamodule.samples_per_epoch={batches * load_config(config).datamodule.batch_size}"


def fit(case: Case, run_dir: Path, *overrides: str, batches: int | None = None, callbacks=()):
    """(trainer, module) after a training with `batches` iterations an epoch, by default enough for ITERATIONS in all."""
    trainer, module, datamodule, checkpoint = train.prepare(load_config(arguments(case, run_dir, *overrides)), dry_run=False)
    trainer.limit_train_batches = batches or max(3, -(-ITERATIONS // getattr(module, "num_stages", 1)))
    trainer.callbacks.extend(callbacks)
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    return trainer, module


def shortest(case: Case) -> list[str]:
    """Overrides for one epoch of each stage, whether the configuration counts epochs or iterations."""
    if case.counts_iterations:
        return [f"module.iterations={ITERATIONS}"]
    return [f"module.{name}=1" for name in case.module_class.duration_settings if name != "iterations"]


def fit_all_stages(case: Case, run_dir: Path, precision: str) -> dict[str, float]:
    """Trains one short epoch of each stage, or fills a bank; figures."""
    device, speed = torch.device(case.device), Speed()
    memory = PeakMemory(device)
    one_epoch = [] if case.is_bank else shortest(case)
    many = [] if case.is_bank else [samples([str(case.path), SYNTHETIC, *case.sizes], 100)]
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
    """Euclidean, over all floating-point tensors; equal infinities are at distance 0."""
    pairs = [(first[key].double(), second[key].double()) for key in first if first[key].is_floating_point()]
    return sum(float((a - b).where(a != b, 0).square().sum()) for a, b in pairs) ** 0.5


def two_ranks_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets on the `rank`-th of two nodes with one process each: both may use the same GPU."""
    names = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "handful"}  # fmt: skip
    return {**os.environ, **{key: str(value) for key, value in names.items()}}


def published_rank(file: str, device: str, path: str, run_dir: str, *sizes: str) -> None:
    """One of two gloo processes that train a published configuration: a few iterations, then the weights into a file."""
    overrides = ["trainer.strategy=gloo", "trainer.num_nodes=2", "trainer.max_epochs=1"]
    _, module = fit(Case(Path(path), device, sizes), Path(run_dir), *overrides, batches=2)
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
