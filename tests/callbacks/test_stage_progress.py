import sys

import lightning
import pytest
import torch
from torch import nn

from callbacks.stage_progress import StageProgress


class Toy(lightning.LightningModule):
    """Two stages that log different losses; the stage begins in the module's own epoch start."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.stage_name = "none"

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_epoch_start(self):
        self.stage_name = f"scale {self.current_epoch}"

    def training_step(self, batch, batch_idx):
        self.log("train/g_loss" if self.current_epoch == 0 else "train/prior_bits", 0.123456 + batch_idx, prog_bar=True)
        self.log("train/unshown", 5.0)
        return self.weight * batch.mean()


def fit(tmp_path):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[StageProgress()], logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Toy(), torch.ones(3, 1))


@pytest.mark.filterwarnings("ignore")
def test_without_a_terminal_there_is_one_line_an_epoch(tmp_path, capsys):
    fit(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" · ", 1)[0] for line in lines] == [
        "epoch 0 scale 0 · g_loss 2.123",
        "epoch 1 scale 1 · prior_bits 2.123",
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_terminal_gets_a_bar_with_stage_and_losses(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(tmp_path)
    last = [update for update in capsys.readouterr().out.split("\r") if update.strip()][-1]
    assert last.startswith("epoch 1 scale 1: 100%") and "3/3" in last
    assert "prior_bits=2.12" in last and "g_loss" not in last and "unshown" not in last and "v_num" not in last
