import json
import math
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader

from callbacks.best_checkpoint import BestCheckpoint
from callbacks.sample_metrics import SampleMetrics
from tests.callbacks.test_sample_metrics import SMALL, Copier, Toy, data
from tests.callbacks.test_sample_metrics import trainer as trainer_of

# A training with its knee at epoch 4: quality falls up to there, diversity after it; epoch 5 would be better and copies.
QUALITY = [None, 1.0, 0.7, 0.4, 0.1, 0.05, 0.09, 0.085, 0.08, 0.075, 0.07, 0.065]
DIVERSITY = [None, 0.62, 0.615, 0.61, 0.6, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
NEAREST = [None, 10, 10, 10, 12, 40, 12, 12, 12, 12, 12, 12]


class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        return (self.weight - 1).square()

    def validation_step(self, batch, batch_idx):
        values = {"kd_x": QUALITY, "pixel_diversity": DIVERSITY, "nearest_psnr_max": NEAREST}
        now = {f"val/{key}": row[self.current_epoch] for key, row in values.items()}
        self.log_dict({key: float(value) for key, value in now.items() if value is not None}, batch_size=1)


class Staged(Plain):
    """The last of two stages begins with epoch 8."""

    num_stages, stage = 2, 0

    def on_train_epoch_start(self):
        self.stage = int(self.current_epoch >= 8)


def fit(folder, epochs=12, checkpoint=None, noisy=False, module=Plain, before=(), **options):
    best = BestCheckpoint(str(folder / "checkpoints"), **options)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[*before, best], logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1, log_every_n_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("default" if noisy else "ignore")
        trainer.fit(module(), DataLoader(range(2)), DataLoader(range(1)), ckpt_path=checkpoint)
    return best, trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)[0]


def test_the_knee_is_chosen_and_explained(whole):
    folder, _ = whole
    content = json.loads((folder / "best.json").read_text())
    assert (content["best_epoch"], content["checkpoint"]) == (4, "front_0004.ckpt")
    assert content["why"].startswith("epoch 4 (kd_x 0.1, pixel_diversity 0.6)") and "1 of 11 repeat" in content["why"]
    assert (content["quality"], content["diversity"]) == ("val/kd_x", "val/pixel_diversity") and len(content["measured"]) == 11


def test_the_front_is_kept_with_the_weights_of_its_epochs(whole):
    folder, best = whole
    files = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert files == [f"front_{epoch:04d}.ckpt" for epoch in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
    content = torch.load(folder / "checkpoints/front_0004.ckpt", weights_only=True)
    assert content["state_dict"]["weight"].item() == pytest.approx(1 - 0.8 ** (2 * 5))  # ten steps of gradient descent


def test_a_training_ends_when_the_best_stays_the_same(tmp_path):
    best, trainer = fit(tmp_path, patience=3)
    # Epoch 4 is the best from epoch 4 on; 5, 6 and 7 do not change that.
    assert best.best_epoch == 4 and trainer.current_epoch == 8
    assert fit(tmp_path / "longer", patience=20)[1].current_epoch == 12


def test_a_training_that_has_ended_ends_again_and_a_larger_patience_extends_it(tmp_path):
    fit(tmp_path, patience=3)
    file = str(tmp_path / "checkpoints/front_0007.ckpt")
    same, trainer = fit(tmp_path, patience=3, checkpoint=file)
    assert trainer.current_epoch == 8 and same.epochs[-1] == 7 and same.unchanged == 3
    longer, trainer = fit(tmp_path, patience=5, checkpoint=file)
    assert trainer.current_epoch == 10 and longer.unchanged == 5


def test_it_does_not_end_before_the_last_stage(tmp_path):
    best, trainer = fit(tmp_path, patience=3, module=Staged)
    assert best.best_epoch == 4 and trainer.current_epoch == 11  # epochs 8, 9 and 10 changed nothing


def test_a_resumed_run_chooses_as_a_whole_one(whole, tmp_path):
    fit(tmp_path, epochs=7)
    resumed, _ = fit(tmp_path, checkpoint=str(tmp_path / "checkpoints/front_0006.ckpt"))
    assert resumed.state_dict() == whole[1].state_dict()
    assert (tmp_path / "best.json").read_text() == (whole[0] / "best.json").read_text()


class Last(Checkpoint):
    """Writes last.ckpt before anything else is; after that a kill may come."""

    def __init__(self, dies_in=None):
        self.dies_in = dies_in

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/checkpoints/last.ckpt")
        if trainer.current_epoch == self.dies_in:
            raise ConnectionAbortedError


def contents(folder):
    files = {file.name: torch.load(file, weights_only=True) for file in (folder / "checkpoints").glob("front*")}
    weights = {name: (content["epoch"], content["state_dict"]["weight"].item()) for name, content in files.items()}
    return weights, (folder / "best.json").read_text(), sorted(file.name for file in folder.iterdir())


def missing_files(folder):
    """Those that best.json names."""
    content = json.loads((folder / "best.json").read_text())
    named = {content["checkpoint"], *(f"front_{epoch:04d}.ckpt" for epoch in content["front"])}
    return sorted(name for name in named if not (folder / "checkpoints" / name).exists())


@pytest.mark.parametrize("epoch", [4, 5, 7], ids=["best", "copies", "end"])
@pytest.mark.parametrize("front_is_written", [False, True])
def test_a_kill_between_the_files_of_an_epoch_leaves_no_trace(tmp_path, monkeypatch, epoch, front_is_written):
    """After last.ckpt, before best.json; the patience is over with epoch 7."""
    straight, killed, dumps = tmp_path / "straight", tmp_path / "killed", json.dumps
    fit(straight, patience=3, before=[Last()])

    def dying(content, **options):
        if content["measured"][-1]["name"] == f"epoch {epoch}":
            raise ConnectionAbortedError
        return dumps(content, **options)

    with monkeypatch.context() as patches, pytest.raises(ConnectionAbortedError):
        patches.setattr("callbacks.best_checkpoint.json.dumps", dying)
        fit(killed, patience=3, before=[Last(None if front_is_written else epoch)])
    fit(killed, patience=3, before=[Last()], checkpoint=killed / "checkpoints/last.ckpt")
    assert contents(killed) == contents(straight) and missing_files(killed) == []


def test_keys_can_be_given_and_a_missing_one_is_told(tmp_path):
    best, _ = fit(tmp_path, epochs=3, quality="val/nearest_psnr_max", copies_above=math.inf)
    assert best.choice().reason.startswith("epoch 1 (nearest_psnr_max 10")
    with pytest.warns(UserWarning, match="val/kd_x"):
        fit(tmp_path, epochs=2, noisy=True, quality="val/kd_y")


def test_a_patience_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patience=0"):
        BestCheckpoint(str(tmp_path), patience=0)


class Sparse(Plain):
    """Diversity is known of epochs 2, 5, 8 and 11 only, quality of every one."""

    def validation_step(self, batch, batch_idx):
        self.log("val/kd_x", QUALITY[self.current_epoch] or 2.0, batch_size=1)
        if self.current_epoch % 3 == 2:
            self.log_dict({"val/pixel_diversity": DIVERSITY[self.current_epoch], "val/copies": 0.0}, batch_size=1)


class Constant(Plain):
    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/kd_x": 0.5, "val/pixel_diversity": 0.5}, batch_size=1)


def test_only_epochs_that_were_measured_count(tmp_path):
    best, trainer = fit(tmp_path, patience=2, module=Sparse)
    assert best.epochs == [2, 5, 8, 11] and trainer.current_epoch == 12
    expected = [(QUALITY[epoch], DIVERSITY[epoch]) for epoch in best.epochs]
    assert [row[1:3] for row in best.measured] == [pytest.approx(pair) for pair in expected]
    # The last two change nothing after epoch 5, which beats all of them; so the patience of 1 is over with epoch 8.
    assert best.best_epoch == 5 and best.unchanged == 2
    assert fit(tmp_path / "shorter", patience=1, module=Sparse)[1].current_epoch == 9


def test_a_resumed_run_counts_the_same_epochs(tmp_path):
    whole, _ = fit(tmp_path / "whole", module=Sparse)
    fit(tmp_path, epochs=7, module=Sparse)
    resumed, _ = fit(tmp_path, checkpoint=str(tmp_path / "checkpoints/front_0005.ckpt"), module=Sparse)
    assert resumed.state_dict() == whole.state_dict() and resumed.epochs == [2, 5, 8, 11]


def test_equal_values_that_were_measured_again_count(tmp_path):
    assert fit(tmp_path, epochs=4, module=Constant)[0].epochs == [0, 1, 2, 3]


@pytest.mark.parametrize(("module", "copies"), [(Toy, False), (Copier, True)])
def test_measurements_every_third_epoch_and_their_verdict(tmp_path, module, copies):
    metrics = SampleMetrics(**SMALL | {"num_images": 20}, metrics=["kd", "pixel_diversity"], every_n_epochs=3)
    best = BestCheckpoint(str(tmp_path / "checkpoints"))
    trainer_of(metrics, best, max_epochs=8, enable_checkpointing=True).fit(module(), data())
    assert best.epochs == [2, 5] and best.quality == "val/kd_rand_cnn"
    assert [row.copies for row in best.measured] == [copies, copies]
    assert best.best_epoch == (None if copies else best.epochs[best.choice().best])


class Judged(Plain):
    """Values of `logged` beside a quality and a diversity."""

    logged = {}

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/kd_x": 0.5, "val/pixel_diversity": 0.5} | self.logged, batch_size=1)


@pytest.mark.parametrize(
    ("logged", "options", "copies"),
    [
        ({"val/copies": 1.0, "val/nearest_psnr_max": 20.0}, {}, True),
        ({"val/copies": 0.0, "val/nearest_psnr_max": 40.0}, {}, False),  # the verdict knows better
        ({"val/nearest_psnr_max": 31.0}, {}, True),
        ({"val/nearest_psnr_max": 29.0}, {}, False),
        ({"val/copies": 0.0, "val/duplicate_share": 0.2}, {"copies": "val/duplicate_share", "copies_above": 0.1}, True),
        ({"val/copies": 1.0, "val/duplicate_share": 0.2}, {"copies": "val/duplicate_share", "copies_above": 0.3}, False),
    ],
)
def test_the_verdict_is_the_constraint(tmp_path, monkeypatch, logged, options, copies):
    monkeypatch.setattr(Judged, "logged", logged)
    told = []
    monkeypatch.setattr("callbacks.best_checkpoint.rank_zero_warn", told.append)
    best, _ = fit(tmp_path, epochs=1, module=Judged, **options)
    assert best.measured[0].copies is copies and best.best_epoch == (None if copies else 0) and told == []


@pytest.mark.parametrize(
    ("logged", "undecided"),
    [
        ({"val/copies": 0.0, "val/undecided": 1.0}, True),
        ({"val/copies": 0.0, "val/undecided": 0.0}, False),
        ({"val/copies": 0.0}, False),
    ],
)
def test_an_open_verdict_does_not_keep_an_epoch_out_and_is_told(tmp_path, monkeypatch, logged, undecided):
    monkeypatch.setattr(Judged, "logged", logged)
    best, _ = fit(tmp_path, epochs=1, module=Judged)
    content = json.loads((tmp_path / "best.json").read_text())
    assert content["best_epoch"] == 0 and content["measured"][0]["undecided"] is undecided
    assert ("For 1 of 1 (including this one) the memorization verdict is UNDECIDED" in content["why"]) == undecided
    again = BestCheckpoint(str(tmp_path))
    again.load_state_dict(best.state_dict())
    assert again.measured == best.measured and again.choice() == best.choice()


def test_checkpoints_from_before_open_verdicts_were_known_are_read(tmp_path):
    best = BestCheckpoint(str(tmp_path))
    rows = [["epoch 0", 0.5, 0.5, False]]
    best.load_state_dict({"epochs": [0], "measured": rows, "keys": ["q", "d"], "best_epoch": 0, "unchanged": 0})
    assert best.measured[0].undecided is False and best.choice().best == 0


def test_nothing_that_looks_for_copies_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("callbacks.best_checkpoint.rank_zero_warn", told.append)
    best, _ = fit(tmp_path, epochs=3, module=Judged)
    (line,) = told
    assert "val/copies" in line and "val/nearest_psnr_max" in line and best.best_epoch == 0
