import random
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import nn

from callbacks.image_grid import ImageGrid
from datamodules.synthetic import SyntheticDataModule

SIZE = (6, 8)


class Toy(lightning.LightningModule):
    """One weight, trained towards noise that it draws itself: its course shows any change of the random state."""

    def __init__(self, epochs_until_ready=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.frozen = nn.BatchNorm2d(3)
        self.frozen.eval()
        self.epochs_ended, self.epochs_until_ready = 0, epochs_until_ready

    @property
    def samples_ready(self):
        return self.epochs_ended >= self.epochs_until_ready

    def sample(self, num_images):
        assert not self.training
        return torch.rand(num_images, 3, *SIZE) * 2 - 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return (self.weight - noise) ** 2 + 0 * self.frozen(batch["image"]).sum()

    def on_train_epoch_end(self):
        self.epochs_ended += 1


class Able(Toy):
    def reconstruct(self, images):
        return -images

    def inject(self, images, scale=0):
        return images.flip(-1)


class Pictures(DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def log_image(self, key, images, step):
        self.kept.append((key, images, step))


def fit(module, tmp_path, callbacks, epochs=2, logger=False, **data):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=callbacks, logger=logger, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    lightning.seed_everything(1, verbose=False)
    trainer.fit(module, SyntheticDataModule(image_size=list(SIZE), samples_per_epoch=3, **data))
    return trainer


def read(file):
    return np.asarray(Image.open(file)).astype(int)


def tile(picture, row, column, size=SIZE):
    """One image out of a picture whose images are two pixels apart."""
    top, left = row * (size[0] + 2), column * (size[1] + 2)
    return picture[top : top + size[0], left : left + size[1]]


def as_bytes(image):
    """Bytes [H, W, 3] of an image [3, H, W] in [-1, 1]."""
    return np.rint((image.permute(1, 2, 0).double().numpy() + 1) * 127.5).astype(int)


def test_samples_are_drawn_with_the_seed_alone_and_laid_out_in_rows(tmp_path):
    fit(Toy(), tmp_path, [ImageGrid(num_images=5, seed=11)])
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["samples_0000.png", "samples_0001.png"]
    torch.manual_seed(11)
    expected = torch.rand(5, 3, *SIZE) * 2 - 1
    for name in ("samples_0000.png", "samples_0001.png"):
        picture = read(tmp_path / "images" / name)
        assert picture.shape == (2 * 6 + 2, 3 * 8 + 2 * 2, 3)
        for i, image in enumerate(expected):
            assert abs(tile(picture, i // 3, i % 3) - as_bytes(image)).max() <= 1
        assert (tile(picture, 1, 2) == 255).all() and (picture[6:8] == 255).all()


def test_pairs_show_the_given_image_above_the_rendered_one(tmp_path):
    trainer = fit(Able(), tmp_path, [ImageGrid(num_images=4)], epochs=1, num_images=5, flip=True, side_flip=True)
    sets = trainer.datamodule.sets()
    reconstruction = read(tmp_path / "images/reconstruction_0000.png")
    conditional = read(tmp_path / "images/conditional_0000.png")
    assert reconstruction.shape == (2 * 6 + 2, 2 * 8 + 2, 3)
    for i in range(2):
        assert abs(tile(reconstruction, 0, i) - as_bytes(sets["image"][i])).max() <= 1
        assert abs(tile(reconstruction, 1, i) - as_bytes(-sets["image"][i])).max() <= 1
    assert len(sets["side_heldout"]) == 1  # the held-out images first, as many as there are
    assert conditional.shape == (2 * 6 + 2, 8, 3)
    assert abs(tile(conditional, 0, 0) - as_bytes(sets["side_heldout"][0])).max() <= 1
    assert abs(tile(conditional, 1, 0) - as_bytes(sets["side_heldout"][0].flip(-1))).max() <= 1


def test_mirrored_copies_are_not_shown(tmp_path):
    fit(Able(), tmp_path, [ImageGrid(num_images=16)], epochs=1, num_images=3, flip=True)
    assert read(tmp_path / "images/reconstruction_0000.png").shape[1] == 3 * 8 + 2 * 2


def test_training_is_the_same_with_and_without_pictures(tmp_path):
    alone, watched = Able(), Able()
    fit(alone, tmp_path / "alone", [], epochs=3)
    fit(watched, tmp_path / "watched", [ImageGrid(num_images=4)], epochs=3)
    assert alone.weight.item() != 0 and torch.equal(alone.weight, watched.weight)
    assert watched.training and not watched.frozen.training
    assert len(list((tmp_path / "watched/images").iterdir())) == 9


def test_samples_wait_until_they_mean_something_and_show_the_state_after_the_epoch(tmp_path):
    fit(Toy(epochs_until_ready=2), tmp_path, [ImageGrid()], epochs=3)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["samples_0001.png", "samples_0002.png"]


def test_the_last_epoch_is_drawn_in_any_case(tmp_path):
    fit(Toy(), tmp_path, [ImageGrid(every_n_epochs=3)], epochs=5)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["samples_0002.png", "samples_0004.png"]


def test_loggers_get_bytes_one_key_a_kind_and_the_step_of_the_losses(tmp_path):
    logger = Pictures()
    fit(Able(), tmp_path, [ImageGrid(num_images=4)], logger=logger)
    keys = ["grids/samples", "grids/reconstruction", "grids/conditional"]
    assert [key for key, _, _ in logger.kept] == keys * 2
    assert [step for _, _, step in logger.kept] == [2] * 3 + [5] * 3  # three batches an epoch, counted from zero
    for key, images, step in logger.kept:
        (pixels,) = images
        assert pixels.dtype == np.uint8
        assert (pixels == read(tmp_path / f"images/{key.removeprefix('grids/')}_{step // 3:04d}.png")).all()


def test_other_ranks_draw_nothing(tmp_path):
    grid = ImageGrid()
    trainer = SimpleNamespace(is_global_zero=False, current_epoch=0, default_root_dir=str(tmp_path), loggers=[])
    grid.on_train_epoch_end(trainer, None)
    grid.on_train_end(trainer, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"num_images": 1}, {"every_n_epochs": 0}])
def test_numbers_that_make_no_picture_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        ImageGrid(**wrong)
