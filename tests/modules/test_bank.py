"""What GPNN and GPDM share; the contract tests cover fit, checkpoint and rebuild."""

import lightning
import pytest
import torch

from datamodules.synthetic import SyntheticDataModule
from modules.bank import Bank, BankModule
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


def test_storing_shows_its_progress_over_all_images_once(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("modules.bank.Tqdm", lambda starts, desc, **_: [seen.append((desc, s)) or s for s in starts])
    monkeypatch.setattr("modules.bank.CHUNK", 2)
    fit(GPNN([16, 20], min_size=8), tmp_path, num_images=5)
    assert seen == [("storing images", 0), ("storing images", 2), ("storing images", 4)]


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


# --- Bank -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
def test_a_bank_holds_the_rows_that_were_appended_in_its_type(dtype):
    bank, rows = Bank(5, (2, 3), dtype), torch.arange(24).view(4, 2, 3)
    assert (len(bank), bank.capacity, bank.rows.shape) == (0, 5, (0, 2, 3)) and not list(bank.parameters())
    bank.append(rows[:3].float())
    bank.append(rows[3:].double())
    assert len(bank) == 4 and bank.rows.dtype == dtype and torch.equal(bank.rows, rows.to(dtype))
    bank.append(rows[:0])
    with pytest.raises(ValueError, match="6 rows exceed the bank's capacity of 5"):
        bank.append(rows[:2])
    assert len(bank) == 4 and torch.equal(bank.rows, rows.to(dtype)), "unchanged"
    bank.clear()
    bank.append(rows[2:])
    assert torch.equal(bank.rows, rows[2:].to(dtype))


def test_a_bank_s_state_has_the_same_shapes_however_full_it_is():
    full, empty = Bank(4, (2,)), Bank(4, (2,))
    full.append(torch.randn(3, 2))
    states = [bank.state_dict() for bank in (full, empty)]
    assert states[0].keys() == {"values", "count"}
    assert all(states[0][key].shape == states[1][key].shape for key in states[0])
    empty.load_state_dict(states[0])
    assert len(empty) == 3 and torch.equal(empty.rows, full.rows)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Bank(3, (2,)).load_state_dict(states[0])


class MeanColors(BankModule):
    """Stores the mean color of each image and samples pictures of one color."""

    def __init__(self, max_images=4):
        super().__init__()
        self.save_hyperparameters()
        self.image_size, self.bank = (16, 20), Bank(max_images, (3,), torch.float64)

    def bank_rows(self, images):
        return images.mean((2, 3))

    def sample(self, num_images, size=None):
        rows = self.bank.rows[torch.arange(num_images) % len(self.bank)]
        return rows[:, :, None, None].float().expand(-1, -1, *self.image_size)


def test_a_method_is_a_bank_and_what_it_stores(tmp_path):
    """Filled once by the fit, part of the checkpoint, kept by a resume."""
    module = MeanColors()
    images = fit(module, tmp_path)
    expected = images.mean((2, 3)).double()
    assert torch.equal(module.bank.rows, expected)
    module.store(images[1:])
    assert torch.equal(module.bank.rows, expected[1:])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    rebuilt = MeanColors.from_checkpoint(checkpoint)
    assert torch.equal(rebuilt.bank.rows, expected) and torch.equal(rebuilt.sample(4)[3, :, 0, 0], expected[0].float())
    resumed = MeanColors()
    fit(resumed, tmp_path / "again", checkpoint=tmp_path / "last.ckpt", num_images=2)
    assert torch.equal(resumed.bank.rows, expected) and resumed.iteration == 1
