import csv

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from experiment.csv_logger import MetricsCSV


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_call_is_a_row_on_disk_at_once(tmp_path):
    logger = MetricsCSV(str(tmp_path / "run"))
    logger.log_metrics({"loss": 0.25, "epoch": 0}, step=0)
    assert rows(tmp_path / "run") == [{"step": "0", "epoch": "0", "loss": "0.25"}]
    logger.log_metrics({"loss": 1 / 3, "epoch": 0}, step=3)
    assert rows(tmp_path / "run")[1]["step"] == "3"
    assert float(rows(tmp_path / "run")[1]["loss"]) == pytest.approx(1 / 3, rel=1e-7)


def test_new_metrics_get_a_column_and_no_row_is_lost(tmp_path):
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"a": 1.0, "epoch": 0}, step=0)
    logger.log_metrics({"b": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"a": 3.0, "c, d": 4.0, "epoch": 1}, step=1)
    assert rows(tmp_path) == [
        {"step": "0", "epoch": "0", "a": "1", "b": "", "c, d": ""},
        {"step": "0", "epoch": "0", "a": "", "b": "2", "c, d": ""},
        {"step": "1", "epoch": "1", "a": "3", "b": "", "c, d": "4"},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    logger = MetricsCSV(str(tmp_path))
    for step in range(6):
        logger.log_metrics({"a": float(step), "epoch": step // 2}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,3,0.")  # as a killed process leaves it
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"b": 40.0, "epoch": 2}, step=4)
    logger.log_metrics({"a": 50.0, "epoch": 2}, step=5)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "0", ""), ("1", "1", ""), ("2", "2", ""), ("3", "3", ""), ("4", "", "40"), ("5", "50", ""),
    ]  # fmt: skip


def test_a_run_that_logs_nothing_leaves_the_file_alone(tmp_path):
    MetricsCSV(str(tmp_path)).log_metrics({"a": 1.0}, step=0)
    MetricsCSV(str(tmp_path)).save()
    assert len(rows(tmp_path)) == 1


class Toy(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.log("train/batch", batch.float().mean())
        return (self.weight - batch.float()).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/weight", self.weight, batch_size=1)


def fit(folder, epochs, checkpoint=None):
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
    )
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, log_every_n_steps=2, logger=MetricsCSV(str(folder)), callbacks=[saver],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Toy(), DataLoader(range(3), shuffle=False), DataLoader(range(1)), ckpt_path=checkpoint)


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_is_resumed_has_the_table_of_one_that_was_not(tmp_path):
    """From each epoch's checkpoint, also after later epochs were already in the table."""
    fit(tmp_path / "straight", 4)
    expected = rows(tmp_path / "straight")
    assert [row["step"] for row in expected if row["train/batch"]] == ["1", "3", "5", "7", "9", "11"]
    assert [row["step"] for row in expected if row["val/weight"]] == ["2", "5", "8", "11"]
    fit(tmp_path / "parts", 3)
    for epoch in (2, 0, 1):
        fit(tmp_path / "parts", 4, tmp_path / f"parts/epoch={epoch}.ckpt")
        assert rows(tmp_path / "parts") == expected
