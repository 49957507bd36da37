"""Monitored keys: wrong ones are found before a training, right ones are waited for."""

from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from callbacks.monitors import check_monitors, names_in_code
from callbacks.sample_metrics import SampleMetrics
from callbacks.stage_checkpoint import StageCheckpoint
from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import GenerativeModule
from modules.fewgan import FewGAN
from modules.minegan import MineGAN
from tests.callbacks.test_sample_metrics import SMALL, Toy, data, trainer


def sets(number: int = 5) -> dict:
    images = SyntheticDataModule([24, 32], num_images=number)
    images.setup()
    return images.sets()


def check(key: str, kind: type[GenerativeModule] = FewGAN, number: int = 5, callback: type = EarlyStopping, **settings) -> None:
    monitor = callback(monitor=key) if callback is EarlyStopping else callback("checkpoints", monitor=key)
    module = object.__new__(kind)  # a check of names needs no networks
    check_monitors(SimpleNamespace(callbacks=[monitor, SampleMetrics(**SMALL | settings)]), module, sets(number))


LOGGED = [
    ("val/kd_rand_cnn", {}), ("val/fd_rand_cnn", {}), ("val/kd_rand_cnn_crops", {"number": 1}), ("val/source_share_3", {}),
    ("val/sifd_rand_cnn_median", {"number": 1}), ("val/pixel_diversity", {}), ("val/copies", {}),
    ("val/pd_rand_cnn_intra", {"quick": ["perceptual"]}), ("val/reconstruction_rmse_scale2", {}), ("train/prior_bits", {}),
    ("train/path_length", {"kind": MineGAN}), ("train/stage", {"kind": MineGAN}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "settings"), LOGGED, ids=[key for key, _ in LOGGED])
def test_keys_that_are_logged_pass(key, settings):
    for callback in (EarlyStopping, StageCheckpoint):
        check(key, callback=callback, **settings)


REFUSED = [
    ("val/kd_random_cnn", {}, "val/kd_rand_cnn"), ("val/kd", {}, ""), ("val/pixel_diversty", {}, "val/pixel_diversity"),
    ("val/kd_rand_cnn", {"quick": ["fd"]}, "val/fd_rand_cnn"), ("val/kd_rand_cnn", {"number": 1}, "val/kd_rand_cnn_crops"),
    ("val/precision_rand_cnn", {}, ""), ("val/copys", {}, "val/copies"),
    ("val/reconstruction_rmse", {}, "val/reconstruction_rmse_scale*"), ("train/g_los", {}, "train/g_loss"),
    ("train/path_lenght", {"kind": MineGAN}, "train/path_length"), ("train/path_length", {}, ""), ("loss", {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("key", "settings", "nearest"), REFUSED)
def test_keys_that_nothing_logs_are_refused_with_the_nearest(key, settings, nearest):
    for callback in (EarlyStopping, StageCheckpoint):
        with pytest.raises(UserError, match=f"{callback.__name__}: monitor={key} is not logged") as caught:
            check(key, callback=callback, **settings)
        assert nearest in str(caught.value) and "\n" not in str(caught.value)


def test_names_in_code_are_those_of_the_class_and_its_bases():
    names = names_in_code(Toy)
    assert {"noise", "side_images", "reconstruction_rmse_image*"} <= {*names} and "prior_bits" not in names


def fit(epochs: int, checkpoint: Path | None = None) -> lightning.Trainer:
    """The monitored value is 0 in every measurement, that of each second epoch; the first one is the best."""
    metrics = SampleMetrics(**SMALL, quick=["pixel_diversity"], every_n_epochs=2)
    stop = EarlyStopping("val/copies", patience=2)
    run, images = trainer(metrics, stop, max_epochs=epochs), data(samples_per_epoch=2)
    images.setup()
    check_monitors(run, module := Toy(), images.sets())
    lightning.seed_everything(0, verbose=False)
    run.fit(module, images, ckpt_path=checkpoint)
    return run


def test_early_stopping_counts_measurements_also_after_a_resume(tmp_path):
    straight = fit(20)
    assert straight.current_epoch == 6
    fit(3).save_checkpoint(tmp_path / "part.ckpt")
    resumed = fit(20, tmp_path / "part.ckpt")
    assert resumed.current_epoch == 6
    states = [run.early_stopping_callback.state_dict() for run in (straight, resumed)]
    assert states[0] == states[1] and torch.is_tensor(states[0]["best_score"])


def test_only_epochs_that_were_measured_are_compared(tmp_path):
    """The value is the same whenever it is measured; compared again after an epoch without, it would take a third place."""
    metrics = SampleMetrics(**SMALL, quick=["pixel_diversity"], every_n_epochs=2)
    saver = StageCheckpoint(str(tmp_path), monitor="val/copies", save_top_k=3)
    trainer(metrics, saver, max_epochs=5, enable_checkpointing=True).fit(Toy(), data(samples_per_epoch=2))
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_0001.ckpt", "epoch_0003.ckpt", "last.ckpt"}
