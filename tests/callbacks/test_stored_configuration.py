import os
import pickle
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import OmegaConf
from torch import nn

from callbacks.run_manifest import RunManifest
from experiment.checkpoint import read_checkpoint

CONFIG = {"seed": 3, "module": {"size": [4, 5], "of": {"a": None, "b": True}}, "double": "${seed}"}


class Toy(lightning.LightningModule):
    num_stages, stage, iteration = 1, 0, 0

    def __init__(self, width=2):
        super().__init__()
        self.net = nn.Linear(1, width)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def training_step(self, batch, batch_idx):
        return self.net(batch).mean()

    def finished(self, epochs):
        return False

    def on_save_checkpoint(self, checkpoint):
        checkpoint["class_path"] = "toys.Toy"

    def on_load_checkpoint(self, checkpoint):
        if checkpoint.get("class_path") != "toys.Toy":
            raise ValueError(f"written by {checkpoint.get('class_path')}")


class Values(DummyLogger):
    def __init__(self):
        super().__init__()
        self.kept = []

    def log_hyperparams(self, params):
        self.kept.append(params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, logger and configuration of a small training, whose checkpoint is `last.ckpt`."""
    folder, logger = tmp_path_factory.mktemp("run") / "folder", Values()
    config = {**CONFIG, "run_name": "toy", "run_dir": str(folder), "resume": None}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[RunManifest(OmegaConf.create(config))], logger=logger,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Toy(), torch.ones(2, 1))
    trainer.save_checkpoint(folder / "last.ckpt")
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return folder, logger, {**config, "double": 3}


def test_the_configuration_is_in_folder_checkpoint_and_logger(run):
    folder, logger, resolved = run
    assert yaml.safe_load((folder / "config.yaml").read_text()) == resolved
    (kept,) = logger.kept
    assert {key: value for key, value in kept.items() if key != "run"} == resolved
    stored = torch.load(folder / "last.ckpt", weights_only=True)["config"]
    assert stored == resolved and type(stored) is dict and type(stored["module"]["size"]) is list


def test_read_checkpoint_gives_the_content(run):
    checkpoint = read_checkpoint(run[0] / "last.ckpt")
    assert checkpoint["class_path"] == "toys.Toy" and checkpoint["state_dict"]["net.weight"].shape == (2, 1)


class Code:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


def test_a_file_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "more": Code()}, "code.ckpt")
    with pytest.raises(ValueError, match=r"code\.ckpt: refused.*mkdir"):
        read_checkpoint("code.ckpt")
    assert not Path("made_by_a_checkpoint").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"PK\x03\x04 not really", pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2)],
    ids=["empty", "text", "zip", "list", "dict"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "wrong.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.ckpt: "):
        read_checkpoint(tmp_path / "wrong.ckpt")


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    content = (run[0] / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.ckpt: not a checkpoint"):
        read_checkpoint(tmp_path / "half.ckpt")


def test_a_changed_bit_is_noticed(tmp_path):
    """torch reads such a file without a word."""
    torch.save({"state_dict": {"weight": torch.arange(1000.0)}}, tmp_path / "flipped.ckpt")
    content = bytearray((tmp_path / "flipped.ckpt").read_bytes())
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    (tmp_path / "flipped.ckpt").write_bytes(content)
    assert torch.load(tmp_path / "flipped.ckpt", weights_only=True)["state_dict"]["weight"][500] != 500
    with pytest.raises(ValueError, match=r"flipped\.ckpt: not a checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "flipped.ckpt")


def test_a_missing_file_is_answered_with_the_nearest(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lost\.ckpt: no such checkpoint.*last\.ckpt"):
        read_checkpoint(run[0] / "lost.ckpt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere" / "last.ckpt")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(run[0])
