"""What methods promise that store the images in place of training."""

import pytest
import torch

from tests.contract.runs import TWO_PROCESSES, fit, read, straight
from tests.contract.tiers import BANKS, by_path


@by_path(BANKS)
def test_one_epoch_stores_the_images_and_nothing_is_trained(path):
    trainer, module, run_dir = straight(path)
    images = trainer.datamodule.sets()["image"]
    expected = module.bank_rows(torch.stack([images[i] for i in range(len(images))]))
    assert torch.equal(module.bank.rows, expected) and len(module.bank) == len(images)
    assert trainer.current_epoch == 1 and not trainer.optimizers
    assert not any(parameter.requires_grad for parameter in module.parameters())  # of a frozen autoencoder
    assert sorted(file.name for file in (run_dir / "checkpoints").iterdir()) == ["last.ckpt"]
    assert read(run_dir / "checkpoints/last.ckpt")["optimizer_states"] == []


@by_path(BANKS)
def test_several_processes_are_refused(path, tmp_path):
    with pytest.raises(Exception, match="trainer.devices=1"):
        fit(path, tmp_path / "run", *TWO_PROCESSES)
