"""The loaders inside the installed Lightning: epochs, resume and ranks. Each run writes down the indices it saw."""

import json
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from datamodules.sampler import epoch_order
from datamodules.synthetic import SyntheticDataModule


class Recorder(lightning.LightningModule):
    """Trains one number and writes `<stage>_<epoch>_<rank>.json` with the (index, side_index) rows of every batch."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows: list = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.rows.append(list(zip(batch["index"].tolist(), batch["side_index"].tolist(), strict=True)))
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert batch["image"].shape == (len(batch["index"]), 3, 8, 12)
        self.rows.append(batch["index"].tolist())

    test_step = validation_step

    def on_train_epoch_start(self) -> None:
        self.rows = []

    def on_train_epoch_end(self) -> None:
        self._write(f"train_{self.current_epoch}")

    def on_test_epoch_start(self) -> None:
        self.rows = []

    def on_test_epoch_end(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # a metric's collective: hangs if a rank without images skips this hook
        self._write("test_0")

    def _write(self, name: str) -> None:
        (self.folder / f"{name}_{self.global_rank}.json").write_text(json.dumps(self.rows))


def run(
    folder: Path, function: str = "fit", devices: int = 1, checkpoint: Path | None = None, epochs: int = 2, **keys: int
) -> Path:
    """Fit or test on drawn images; returns the folder with the records and `last.ckpt`."""
    folder.mkdir(exist_ok=True)
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo") if devices > 1 else "auto"
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=epochs, logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = SyntheticDataModule([8, 12], num_images=keys.pop("num_images", 3), **keys)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        getattr(trainer, function)(Recorder(str(folder)), data, ckpt_path=checkpoint)
    if devices == 1 and function == "fit":
        trainer.save_checkpoint(folder / "last.ckpt")
    return folder


def record(folder: Path, name: str) -> list:
    return json.loads((folder / f"{name}.json").read_text())


def expected(epoch: int, samples: int, batch_size: int, sizes: tuple[int, int]) -> list:
    """The rows of an epoch straight from the two orders, cut into batches."""
    orders = [epoch_order(size, samples, 0, epoch, key) for size, key in zip(sizes, ("image", "side"), strict=True)]
    rows = [list(row) for row in zip(*orders, strict=True)]
    return [rows[start : start + batch_size] for start in range(0, samples - batch_size + 1, batch_size)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_has_its_own_order_also_after_resume(tmp_path: Path, num_workers: int) -> None:
    keys = {"batch_size": 2, "samples_per_epoch": 10, "num_workers": num_workers}
    straight = run(tmp_path / "straight", epochs=3, **keys)
    for epoch in range(3):
        assert record(straight, f"train_{epoch}_0") == expected(epoch, 10, 2, (3, 7))
    first = run(tmp_path / "first", epochs=1, **keys)
    with pytest.warns() as caught:
        second = run(tmp_path / "second", epochs=3, checkpoint=first / "last.ckpt", **keys)
    assert not [w for w in caught if "not the files" in str(w.message)]
    assert not (second / "train_0_0.json").exists()
    for epoch in (1, 2):
        assert record(second, f"train_{epoch}_0") == record(straight, f"train_{epoch}_0")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    two = run(tmp_path / "two", devices=2, batch_size=2, samples_per_epoch=12)
    one = run(tmp_path / "one", batch_size=4, samples_per_epoch=12)
    for epoch in range(2):
        ranks = [record(two, f"train_{epoch}_{rank}") for rank in range(2)]
        assert len(ranks[0]) == len(ranks[1]) == 3
        for step, whole in enumerate(record(one, f"train_{epoch}_0")):
            pairs = zip(ranks[0][step], ranks[1][step], strict=True)
            assert [row for pair in pairs for row in pair] == whole


@pytest.mark.parametrize(("num_images", "parts"), [(3, [[[0, 2]], [[1]]]), (1, [[[0]], [[]]])])
def test_two_processes_test_each_image_once(tmp_path: Path, num_images: int, parts: list) -> None:
    folder = run(tmp_path / "test", "test", devices=2, batch_size=2, num_images=num_images)
    assert [record(folder, f"test_0_{rank}") for rank in range(2)] == parts
