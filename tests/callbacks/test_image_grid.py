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
from modules.base import sampling_mode
from modules.ops.noise import rand
from modules.staged import StagedModule

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
        return rand(num_images, 3, *SIZE) * 2 - 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def ends_stage(self, epoch):
        return False

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


class ImageLogger(DummyLogger):
    """Records the images that it gets."""

    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, key, images, step):
        self.images.append((key, images, step))


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
    with sampling_mode(Toy(), 11, range(5)):
        expected = Toy().eval().sample(5)
    for name in ("samples_0000.png", "samples_0001.png"):
        grid = read(tmp_path / "images" / name)
        assert grid.shape == (2 * 6 + 2, 3 * 8 + 2 * 2, 3)
        for i, image in enumerate(expected):
            assert abs(tile(grid, i // 3, i % 3) - as_bytes(image)).max() <= 1
        assert (tile(grid, 1, 2) == 255).all() and (grid[6:8] == 255).all()


def test_an_image_depends_on_seed_and_index_only(tmp_path):
    for number, columns in ((4, 2), (9, 3)):
        fit(Able(), tmp_path / str(number), [ImageGrid(num_images=number, seed=3)], epochs=1)
        grid = read(tmp_path / f"{number}/images/samples_0000.png")
        tiles = [tile(grid, i // columns, i % columns) for i in range(4)]
        if number == 4:
            expected = tiles
    assert all(np.array_equal(*pair) for pair in zip(tiles, expected, strict=True))
    assert not np.array_equal(tiles[0], tiles[1])


def test_pairs_show_the_input_above_the_output(tmp_path):
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


def test_training_is_the_same_with_and_without_grids(tmp_path):
    alone, watched = Able(), Able()
    fit(alone, tmp_path / "alone", [], epochs=3)
    fit(watched, tmp_path / "watched", [ImageGrid(num_images=4)], epochs=3)
    assert alone.weight.item() != 0 and torch.equal(alone.weight, watched.weight)
    assert watched.training and not watched.frozen.training
    assert len(list((tmp_path / "watched/images").iterdir())) == 9


def test_samples_are_drawn_once_ready_and_show_the_state_after_the_epoch(tmp_path):
    fit(Toy(epochs_until_ready=2), tmp_path, [ImageGrid()], epochs=3)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["samples_0001.png", "samples_0002.png"]


def test_the_last_epoch_is_always_drawn(tmp_path):
    fit(Toy(), tmp_path, [ImageGrid(every_n_epochs=3)], epochs=5)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["samples_0002.png", "samples_0004.png"]


def test_loggers_get_bytes_one_key_a_kind_and_the_step_of_the_losses(tmp_path):
    logger = ImageLogger()
    fit(Able(), tmp_path, [ImageGrid(num_images=4, log_every_n_epochs=1)], logger=logger)
    keys = ["grids/samples", "grids/reconstruction", "grids/conditional"]
    assert [key for key, _, _ in logger.images] == keys * 2
    assert [step for _, _, step in logger.images] == [2] * 3 + [5] * 3  # three batches an epoch, counted from zero
    for key, images, step in logger.images:
        (pixels,) = images
        assert pixels.dtype == np.uint8
        assert (pixels == read(tmp_path / f"images/{key.removeprefix('grids/')}_{step // 3:04d}.png")).all()


def test_other_ranks_draw_nothing(tmp_path):
    grid = ImageGrid()
    trainer = SimpleNamespace(is_global_zero=False, current_epoch=0, max_epochs=1, default_root_dir=str(tmp_path), loggers=[])
    grid.on_train_epoch_end(trainer, Toy())
    grid.on_train_end(trainer, Toy())
    assert not list(tmp_path.iterdir())


class Staged(Toy):
    """Stages of three epochs."""

    ends_stage = StagedModule.ends_stage

    def stage_at(self, epoch):
        return epoch // 3

    def finished(self, epochs):
        return False


def logged_epochs(logger):
    return [step // 3 for _, _, step in logger.images]  # three batches an epoch


def drawn_epochs(run_dir):
    return sorted(int(file.stem.split("_")[1]) for file in (run_dir / "images").iterdir())


def test_loggers_get_every_nth_epoch_and_the_end_and_the_folder_all(tmp_path):
    logger = ImageLogger()
    fit(Toy(), tmp_path, [ImageGrid(num_images=2, log_every_n_epochs=4)], epochs=10, logger=logger)
    assert logged_epochs(logger) == [3, 7, 9]
    assert drawn_epochs(tmp_path) == list(range(10))


def test_ends_of_stages_are_drawn_and_logged_whatever_the_intervals(tmp_path):
    logger = ImageLogger()
    grid = ImageGrid(num_images=2, every_n_epochs=5, log_every_n_epochs=100)
    fit(Staged(), tmp_path, [grid], epochs=11, logger=logger)
    assert logged_epochs(logger) == [2, 5, 8, 10]  # stages and the last epoch
    assert drawn_epochs(tmp_path) == [2, 4, 5, 8, 9, 10]


def test_an_epoch_that_is_logged_is_drawn(tmp_path):
    logger = ImageLogger()
    fit(Toy(), tmp_path, [ImageGrid(num_images=2, every_n_epochs=4, log_every_n_epochs=3)], epochs=7, logger=logger)
    assert logged_epochs(logger) == [2, 5, 6] and drawn_epochs(tmp_path) == [2, 3, 5, 6]


class Cut(lightning.Callback):
    """Ends the process' training as a kill does: nothing is written or drawn any more."""

    def __init__(self, epoch, hook):
        setattr(self, hook, lambda trainer, *rest: self.stop(trainer.current_epoch == epoch))

    def stop(self, now):
        if now:
            raise RuntimeError("killed")


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
def test_a_resumed_run_draws_what_is_missing_and_logs_nothing_twice(tmp_path, hook):
    """Cut off after the checkpoint of the second epoch, before (first case) or after its picture was made."""

    def run(folder, epochs, logger, *more, checkpoint=None):
        saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
        grid = ImageGrid(num_images=2, log_every_n_epochs=1)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[*more, grid, saver], logger=logger, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Staged(), SyntheticDataModule(image_size=list(SIZE), samples_per_epoch=3), ckpt_path=checkpoint)

    straight, first, second = ImageLogger(), ImageLogger(), ImageLogger()
    run(tmp_path / "straight", 4, straight)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "parts", 4, first, Cut(2, hook))
    run(tmp_path / "parts", 4, second, checkpoint=tmp_path / "parts/last.ckpt")
    assert logged_epochs(first) + logged_epochs(second) == logged_epochs(straight) == [0, 1, 2, 3]
    assert [step for _, _, step in first.images + second.images] == [2, 5, 8, 11]
    for file in (tmp_path / "straight/images").iterdir():
        assert file.read_bytes() == (tmp_path / "parts/images" / file.name).read_bytes()


class FailingLogger(ImageLogger):
    """Takes some images, then the training dies as the next is handed over."""

    def __init__(self, dies_after):
        super().__init__()
        self.dies_after = dies_after

    def log_image(self, key, images, step):
        if len(self.images) == self.dies_after:
            raise RuntimeError("killed")
        super().log_image(key, images, step)


def go_on(folder, epochs, logger, *before, checkpoint=None, **options):
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[*before, ImageGrid(num_images=4, **options), saver], logger=logger,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Able(), SyntheticDataModule(image_size=list(SIZE), samples_per_epoch=3), ckpt_path=checkpoint)


@pytest.mark.parametrize("dies_after", [3, 4])
def test_files_get_their_names_after_the_loggers_have_the_images(tmp_path, dies_after):
    """Killed before the first or the second of the three pictures of epoch 1 was handed over."""
    first, second = FailingLogger(dies_after), ImageLogger()
    with pytest.raises(RuntimeError, match="killed"):
        go_on(tmp_path, 3, first, log_every_n_epochs=1)
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == ["conditional_0000.png", "reconstruction_0000.png", "samples_0000.png"]
    go_on(tmp_path, 3, second, checkpoint=tmp_path / "last.ckpt", log_every_n_epochs=1)
    assert logged_epochs(first) == [0] * 3 + [1] * (dies_after - 3) and logged_epochs(second) == [1] * 3 + [2] * 3
    assert len(list((tmp_path / "images").iterdir())) == 9


class Ends(lightning.Callback):
    """Ends the training after three epochs, or does not begin a fourth; may die before the last pictures."""

    def __init__(self, dies=False):
        self.dies = dies

    def on_train_start(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 3

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 2

    def on_train_end(self, trainer, pl_module):
        if self.dies:
            raise RuntimeError("killed")


def test_a_resume_draws_the_last_grids_of_a_training_that_a_callback_ended(tmp_path):
    """They are not due otherwise."""
    options, straight, killed, resumed = {"every_n_epochs": 5}, ImageLogger(), ImageLogger(), ImageLogger()
    go_on(tmp_path / "straight", 9, straight, Ends(), **options)
    with pytest.raises(RuntimeError, match="killed"):
        go_on(tmp_path / "killed", 9, killed, Ends(dies=True), **options)
    go_on(tmp_path / "killed", 9, resumed, Ends(), checkpoint=tmp_path / "killed/last.ckpt", **options)
    names = [sorted(file.name for file in (tmp_path / run / "images").iterdir()) for run in ("straight", "killed")]
    assert names[0] == names[1] == ["conditional_0002.png", "reconstruction_0002.png", "samples_0002.png"]
    assert killed.images == [] and logged_epochs(resumed) == logged_epochs(straight) == [2, 2, 2]
