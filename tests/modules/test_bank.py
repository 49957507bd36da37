"""What GPNN and GPDM share; the contract tests cover fit, checkpoint and rebuild."""

import lightning
import pytest
import torch

from datamodules.synthetic import SyntheticDataModule
from modules.gpdm import GPDM
from modules.gpnn import GPNN


def fit(module, tmp_path, checkpoint=None, **data):
    datamodule = SyntheticDataModule([16, 20], samples_per_epoch=1, **data)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True)],
    )  # fmt: skip
    trainer.fit(module, datamodule, ckpt_path=checkpoint)
    return datamodule.sets()["image"].stack()


@pytest.mark.parametrize("method", [GPNN, GPDM])
def test_fit_stores_the_images_exactly_and_counts_one_step(method, tmp_path):
    module = method([16, 20], min_size=8)
    assert not module.samples_ready
    images = fit(module, tmp_path, flip=True)
    assert torch.equal(module.images, images) and len(images) == 6 and module.samples_ready
    assert module.iteration == 1 and module.images_seen == 1
    assert not list(module.parameters())


def test_the_checkpoint_holds_the_images_and_a_finished_run_keeps_its_own(tmp_path):
    module = GPNN([16, 20], min_size=8)
    images = fit(module, tmp_path)
    file = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert file["optimizer_states"] == [] and int(file["state_dict"]["bank.count"]) == 3
    assert file["state_dict"]["bank.values"].shape == (16, 3, 16, 20) and file["state_dict"]["bank.values"].dtype == torch.uint8
    again = GPNN([16, 20], min_size=8)
    fit(again, tmp_path / "again", checkpoint=tmp_path / "last.ckpt", num_images=2)
    assert torch.equal(again.images, images) and again.iteration == 1


def test_more_images_than_there_is_room_for_are_refused():
    datamodule = SyntheticDataModule([16, 20], num_images=3)
    datamodule.setup()
    GPNN([16, 20], min_size=8, max_images=3).check_data(datamodule.sets())
    with pytest.raises(ValueError, match="module.max_images is 2 and there are 3 images; set module.max_images=3"):
        GPNN([16, 20], min_size=8, max_images=2).check_data(datamodule.sets())
