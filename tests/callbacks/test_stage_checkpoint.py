import base64
import hashlib
import itertools
import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader

import callbacks.stage_checkpoint
import core.files
from callbacks.stage_checkpoint import StageCheckpoint
from experiment.checkpoint import AtomicCheckpointIO
from modules.staged import StagedModule


class Plain(lightning.LightningModule):
    """`val/score` is logged from the third epoch on."""

    scores = (None, None, 5.0, 2.0, 7.0, 3.0, 9.0, 9.0)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def ends_stage(self, epoch):
        return False

    def training_step(self, batch, batch_idx):
        return (self.weight - 1).square()

    def validation_step(self, batch, batch_idx):
        score = self.scores[self.current_epoch]
        if score is not None:
            self.log("val/score", score, batch_size=1)


class Toy(Plain):
    """Two stages of three epochs, which end the training."""

    ends_stage = StagedModule.ends_stage

    def stage_at(self, epoch):
        return epoch // 3

    def finished(self, epochs):
        return epochs >= 6

    def on_train_start(self):
        self.trainer.should_stop = self.finished(self.current_epoch)

    def on_train_epoch_start(self):
        self.stage = self.stage_at(self.current_epoch)

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.finished(self.current_epoch + 1)


def fit(folder, epochs=6, module=None, logger=False, checkpoint=None, plugins=None, **options):
    saver = StageCheckpoint(str(folder / "checkpoints"), **options)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[saver], logger=logger, default_root_dir=folder, plugins=plugins,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module or Toy(), DataLoader(range(2)), DataLoader(range(1)), ckpt_path=checkpoint)
    return saver


def epochs_of(folder):
    """Epoch in each file."""
    files = (folder / "checkpoints").glob("*.ckpt")
    return {file.stem: torch.load(file, weights_only=True)["epoch"] for file in files}


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 6, {"epoch_0005": 5, "stage_0": 2, "stage_1": 5}),
        ({}, 5, {"epoch_0004": 4, "stage_0": 2}),
        ({"save_top_k": -1}, 4, {f"epoch_{epoch:04d}": epoch for epoch in range(4)}),
        ({"save_top_k": 0}, 4, {"stage_0": 2}),
        ({"every_n_epochs": 2}, 5, {"epoch_0004": 4, "stage_0": 2}),
        ({"every_n_epochs": 4, "save_top_k": -1}, 6, {"epoch_0002": 2, "epoch_0003": 3, "epoch_0005": 5}),
        ({"monitor": "val/score"}, 6, {"epoch_0003": 3, "stage_0": 2, "stage_1": 5}),
        ({"monitor": "val/score", "save_top_k": 2}, 6, {"epoch_0003": 3, "epoch_0005": 5, "stage_0": 2, "stage_1": 5}),
        ({"monitor": "val/score", "mode": "max"}, 6, {"epoch_0004": 4, "stage_0": 2, "stage_1": 5}),
    ],
    ids=["newest", "cut", "all", "none", "every-second", "every-fourth", "best", "two-best", "highest"],
)
def test_what_stays_on_disk(tmp_path, options, epochs, expected):
    """In every case with the newest state as last.ckpt."""
    fit(tmp_path, epochs, **options)
    assert epochs_of(tmp_path) == {**expected, "last": epochs - 1}


def test_a_resumed_run_keeps_and_replaces_as_one_that_was_not(tmp_path):
    fit(tmp_path, 4, monitor="val/score")
    fit(tmp_path, 6, monitor="val/score", checkpoint=tmp_path / "checkpoints/last.ckpt")
    assert epochs_of(tmp_path) == {"epoch_0003": 3, "stage_0": 2, "stage_1": 5, "last": 5}


def test_ends_of_stages_stay_where_all_epochs_do_and_none_is_compared_yet(tmp_path):
    fit(tmp_path, 4, monitor="val/late", save_top_k=-1)
    assert epochs_of(tmp_path) == {"stage_0": 2, "last": 3}


class Dies(TorchCheckpointIO):
    """Ends the training, as a kill does, instead of writing a file whose name begins so."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if Path(path).name.startswith(self.name):
            raise ConnectionAbortedError
        super().save_checkpoint(checkpoint, path, storage_options)


def killed(folder, name, **options):
    """A fit that ends before a file of that name is written, or another file gets that name."""

    def link(source, target):
        if Path(target).name.startswith(name):
            raise ConnectionAbortedError
        core.files.atomic_link(source, target)

    with pytest.raises(ConnectionAbortedError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.stage_checkpoint, "atomic_link", link)
        fit(folder, plugins=[Dies(name)], **options)


@pytest.mark.parametrize(
    ("stage", "options", "checkpoint"),
    [
        (0, {}, "epoch_0002"),
        (1, {}, "epoch_0005"),
        (0, {"every_n_epochs": 2}, "epoch_0002"),
        (0, {"monitor": "val/score", "save_top_k": 2}, "epoch_0002"),
        (1, {"monitor": "val/score"}, "last"),  # epoch 5 is not the best: no file of it but its stage's
        (1, {"save_top_k": 0}, "last"),
    ],
)
def test_a_kill_before_the_file_of_a_stage_leaves_no_trace(tmp_path, stage, options, checkpoint):
    """Neither on the disk, where it lasts for no more than the rest of the run, nor among the uploads."""
    options = {"upload": ["stages"], "epochs": 9} | options
    straight = uploads(tmp_path / "straight", **options)
    cut, rest = Experiment(), Experiment()
    killed(tmp_path / "killed", f"stage_{stage}", logger=WandbLogger(experiment=cut), **options)
    file = tmp_path / f"killed/checkpoints/{checkpoint}.ckpt"
    uploads(tmp_path / "killed", experiment=rest, checkpoint=file, **options)
    assert epochs_of(tmp_path / "killed") == epochs_of(tmp_path / "straight")
    assert [entry[2] for entry in cut.logged + rest.logged] == [entry[2] for entry in straight.logged] == ["stage-0", "stage-1"]
    kept = hashlib.sha256((tmp_path / f"killed/checkpoints/stage_{stage}.ckpt").read_bytes()).hexdigest()
    assert (cut.logged + rest.logged)[stage][4] == kept
    assert not list((tmp_path / "killed").glob("**/*.draft"))


def test_the_end_of_an_extended_stage_replaces_that_of_the_shorter_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "stage_at", lambda self, epoch: min(epoch // 3, 1))
    fit(tmp_path, 6)
    monkeypatch.setattr(Toy, "finished", lambda self, epochs: epochs >= 8)
    killed(tmp_path, "stage_1", epochs=9, checkpoint=tmp_path / "checkpoints/last.ckpt")
    assert epochs_of(tmp_path)["stage_1"] == 5
    fit(tmp_path, 9, checkpoint=tmp_path / "checkpoints/epoch_0007.ckpt")
    assert epochs_of(tmp_path)["stage_1"] == 7


@pytest.mark.parametrize("name", ["last", "epoch_0002", "stage_0"])
def test_ends_of_stages_that_are_there_stay_and_are_not_uploaded_again(tmp_path, name):
    fit(tmp_path, 3)
    before = (tmp_path / "checkpoints/stage_0.ckpt").stat().st_mtime_ns
    assert uploads(tmp_path, epochs=4, upload=["stages"], checkpoint=tmp_path / f"checkpoints/{name}.ckpt").logged == []
    assert (tmp_path / "checkpoints/stage_0.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize("options", [{}, {"save_top_k": 0}, {"save_top_k": -1}, {"monitor": "val/score"}], ids=str)
def test_each_epoch_is_written_once(tmp_path, monkeypatch, options):
    """All names of an epoch are one file."""
    saved, save = [], AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", lambda *a, **_: saved.append(a[1]["epoch"]) or save(*a))
    fit(tmp_path, 6, plugins=[AtomicCheckpointIO()], **options)
    assert saved == list(range(6))
    files = list((tmp_path / "checkpoints").iterdir())
    assert len({file.stat().st_ino for file in files}) == len(set(epochs_of(tmp_path).values()))


def test_last_is_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError("no links")

    monkeypatch.setattr(core.files.os, "link", fail)
    fit(tmp_path, 4)
    assert epochs_of(tmp_path) == {"epoch_0003": 3, "stage_0": 2, "last": 3}
    assert len({file.stat().st_ino for file in (tmp_path / "checkpoints").iterdir()}) == 3


def test_last_is_usable_at_every_instant(tmp_path, monkeypatch):
    """The process ends before the n-th call that changes the folder; last.ckpt is then the newest state or the one before."""
    options = {"monitor": "val/score", "plugins": [AtomicCheckpointIO()]}
    fit(tmp_path / "start", 4, **options)  # its last epoch is the best; the next is not, and ends no stage; then a stage ends
    for instant in itertools.count():
        run, calls = tmp_path / str(instant), []
        shutil.copytree(tmp_path / "start", run)

        def ending(function, calls=calls, instant=instant):
            def call(*arguments, **options):
                calls.append(function)
                if len(calls) > instant:
                    raise ConnectionAbortedError
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch, suppress(ConnectionAbortedError):
            for name in ("replace", "link", "unlink", "remove"):
                patch.setattr(os, name, ending(getattr(os, name)))
            fit(run, 6, checkpoint=run / "checkpoints/last.ckpt", **options)
        epochs = epochs_of(run)
        assert epochs["last"] in (max(epochs.values()), max(epochs.values()) - 1), epochs
        if len(calls) <= instant:
            assert instant >= 5
            break


@pytest.mark.parametrize("way", ["move", "copy"])
@pytest.mark.parametrize("save_top_k", [1, 2])
def test_a_moved_run_knows_its_best_files(tmp_path, way, save_top_k):
    """Epoch 5 is second best, and the file that it replaces goes; a straight run keeps the same."""
    options = {"monitor": "val/score", "save_top_k": save_top_k}
    fit(tmp_path / "straight", 6, **options)
    fit(tmp_path / "first", 5, **options)
    (shutil.move if way == "move" else shutil.copytree)(tmp_path / "first", tmp_path / "second")
    saver = fit(tmp_path / "second", 6, checkpoint=tmp_path / "second/checkpoints/last.ckpt", **options)
    assert epochs_of(tmp_path / "second") == epochs_of(tmp_path / "straight")
    assert saver.best_model_path == str(tmp_path / "second/checkpoints/epoch_0003.ckpt")


def test_files_of_another_folder_are_neither_copied_nor_removed(tmp_path):
    fit(tmp_path / "first", 3)
    fit(tmp_path / "second", 5, checkpoint=tmp_path / "first/checkpoints/epoch_0002.ckpt")
    assert epochs_of(tmp_path / "second") == {"epoch_0004": 4, "last": 4}
    assert epochs_of(tmp_path / "first") == {"epoch_0002": 2, "stage_0": 2, "last": 2}


def test_a_module_without_stages_and_one_without_optimizers(tmp_path):
    class Still(Plain):
        automatic_optimization = False

        def configure_optimizers(self):
            return None

        def training_step(self, batch, batch_idx):
            return None

    fit(tmp_path / "plain", 2, Plain())
    assert epochs_of(tmp_path / "plain") == {"epoch_0001": 1, "last": 1}
    fit(tmp_path / "still", 1, Still())
    assert set(epochs_of(tmp_path / "still")) == {"last"}


def test_a_key_that_is_never_logged_is_named_beside_those_that_are(tmp_path):
    saver = StageCheckpoint(str(tmp_path / "checkpoints"), monitor="val/scroe")
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[saver], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"val/scroe was never logged.*val/score"):
        trainer.fit(Toy(), DataLoader(range(2)), DataLoader(range(1)))
    assert epochs_of(tmp_path) == {"stage_0": 2, "last": 2}


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"save_top_k": 3}, "save_top_k=3 with monitor=None"),
        ({"upload": ["best"]}, "monitor"),
        ({"upload": ["best"], "monitor": "val/score", "save_top_k": 0}, "save_top_k other than 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, wrong, part):
    """Ranges of single options: tests/cli/test_ranges.py."""
    with pytest.raises(ValueError, match=part):
        StageCheckpoint(str(tmp_path), **wrong)


# --- artifacts ----------------------------------------------------------------------------------------------------------


class Experiment:
    """What a run of W&B is asked to do; it knows the artifacts in `known`."""

    def __init__(self, known=(), offline=False):
        self.id, self.offline, self.disabled, self.known = "own-1", offline, False, known
        self.logged, self.used = [], []

    def log(self, values):
        pass

    def log_artifact(self, path, name, type, aliases):
        with open(path, "rb") as file:
            self.logged.append((name, type, *aliases, base64.b16encode(hashlib.sha256(file.read()).digest()).decode().lower()))

    def use_artifact(self, name, type):
        if name not in self.known:
            raise ValueError(f"no artifact {name}")
        self.used.append((name, type))


def uploads(folder, **options):
    experiment = options.pop("experiment", None) or Experiment()
    fit(folder, logger=WandbLogger(experiment=experiment), **options)
    return experiment


def test_nothing_is_uploaded_unless_asked_for(tmp_path):
    assert uploads(tmp_path).logged == []


def test_uploads_are_versions_of_one_artifact_that_are_found_by_content(tmp_path):
    experiment = uploads(tmp_path, monitor="val/score", upload=["stages", "best", "last"])
    assert [entry[2] for entry in experiment.logged] == ["stage-0", "stage-1", "last", "best"]
    for name, type, _, content, sha256 in experiment.logged:
        assert (name, type, content) == ("model-own-1", "model", f"sha256-{sha256[:16]}")
    files = ["stage_0", "stage_1", "last", "epoch_0003"]
    kept = [hashlib.sha256((tmp_path / f"checkpoints/{name}.ckpt").read_bytes()).hexdigest() for name in files]
    assert [entry[4] for entry in experiment.logged] == kept


def lineage(folder, *parents):
    rows = [{"path": f"{who}.ckpt", "wandb_id": who, "sha256": digest * 64} for who, digest in parents]
    (folder / "run.json").write_text(json.dumps({"lineage": rows}))


def test_parents_are_used_by_the_content_of_their_file(tmp_path):
    lineage(tmp_path, ("source-1", "a"), ("own-1", "b"), (None, "c"))
    known = [f"model-source-1:sha256-{'a' * 16}"]
    assert uploads(tmp_path, epochs=1, upload=["last"], experiment=Experiment(known)).used == [(known[0], "model")]
    assert uploads(tmp_path, epochs=1, experiment=Experiment(known)).used == []
    offline = Experiment(known, offline=True)
    assert uploads(tmp_path, epochs=1, upload=["last"], experiment=offline).used == [] and len(offline.logged) == 1


def test_a_parent_that_the_server_does_not_know_does_not_end_the_training(tmp_path):
    lineage(tmp_path, ("source-2", "d"))
    experiment = uploads(tmp_path, epochs=1, upload=["last"])
    assert experiment.used == [] and len(experiment.logged) == 1


def test_a_failed_upload_does_not_end_the_training(tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("the server is away")

    experiment = Experiment()
    monkeypatch.setattr(experiment, "log_artifact", fail)
    warnings = []
    monkeypatch.setattr("callbacks.stage_checkpoint.rank_zero_warn", warnings.append)
    uploads(tmp_path, upload=["stages", "last"], experiment=experiment)
    assert warnings[-1].endswith("last.ckpt was not uploaded to W&B: the server is away") and len(warnings) == 3
    assert (tmp_path / "checkpoints/last.ckpt").exists()
