"""Which checkpoint is meant, and which changes of a configuration are another training. Whole runs: tests/test_resume.py."""

import os

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader

import experiment.resume
from callbacks.run_manifest import RunManifest
from callbacks.stage_checkpoint import StageCheckpoint
from cli.loader import load_config
from core.errors import UserError
from experiment.checkpoint import AtomicCheckpointIO, load_stored
from experiment.resume import (
    changes,
    check_resume,
    checkpoint_files,
    epochs_done,
    find_resume,
    finish_reason,
    move_results_aside,
)  # fmt: skip
from modules.base import GenerativeModule


class Constant(GenerativeModule):
    """Logs the same loss in every epoch and knows which it has trained."""

    def __init__(self):
        super().__init__()
        self.epochs, self.weight = [], nn.Parameter(torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.epochs.append(self.current_epoch)
        self.log("train/loss", 1.0, batch_size=1)


def fit(folder, module, stop, stored=None):
    config = {"run_name": "toy", "run_dir": str(folder), "resume": None}
    saver = StageCheckpoint(str(folder), save_top_k=0)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=9, callbacks=[stop, RunManifest(config), saver], logger=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        plugins=[AtomicCheckpointIO(stored)],
    )  # fmt: skip
    data = DataLoader([{"image": torch.zeros(3)}], batch_size=None)
    trainer.fit(module, data, ckpt_path=stored and stored.path)
    trainer.save_checkpoint(folder / "last.ckpt")


def write(file, epochs: int, age: float, ready: int | None = None) -> None:
    """A checkpoint of so many epochs, written `age` seconds ago."""
    progress = {"ready": epochs if ready is None else ready, "started": epochs, "processed": epochs, "completed": epochs}
    file.parent.mkdir(parents=True, exist_ok=True)
    loops = {"fit_loop": {"epoch_progress": {"current": progress}}}
    torch.save({"state_dict": {}, "loops": loops, "optimizer_states": []}, file)
    os.utime(file, (1e9 - age, 1e9 - age))


def damage(file) -> None:
    times = file.stat()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    os.utime(file, (times.st_atime, times.st_mtime))


def found(run_dir) -> tuple[str, int]:
    stored = find_resume("auto", run_dir)
    return os.path.basename(stored.path), epochs_done(stored.checkpoint)


@pytest.fixture
def run_dir(tmp_path):
    """last.ckpt of epoch 5, the same epoch's own file, and two ends of stages."""
    for name, epochs, age in (("stage_0", 2, 3), ("stage_1", 4, 1), ("epoch_0004", 5, 0.5), ("last", 5, 0)):
        write(tmp_path / f"checkpoints/{name}.ckpt", epochs, age)
    return tmp_path


def test_nothing_to_find(tmp_path):
    assert find_resume(None, tmp_path) is None
    assert find_resume("auto", tmp_path) is None and find_resume("auto", tmp_path / "nowhere") is None


def test_last_is_meant(run_dir, capsys):
    assert found(run_dir) == ("last.ckpt", 5)
    assert capsys.readouterr().err == ""


def test_a_kill_between_the_two_files_of_an_epoch(run_dir):
    write(run_dir / "checkpoints/epoch_0005.ckpt", 6, age=-1)
    assert found(run_dir) == ("epoch_0005.ckpt", 6)


def test_a_copied_folder_whose_files_got_new_times(run_dir):
    for age, name in enumerate(("last", "stage_1", "epoch_0004", "stage_0")):
        os.utime(run_dir / f"checkpoints/{name}.ckpt", (1e9 - age, 1e9 - age))
    assert found(run_dir) == ("last.ckpt", 5)
    os.utime(run_dir / "checkpoints/last.ckpt", (1, 1))
    assert found(run_dir)[1] == 5


def test_a_copy_without_last_goes_on_from_the_most_epochs(run_dir):
    """As of `rsync -r` before version 3, or of a run whose last.ckpt was deleted; the copy's times say nothing."""
    (run_dir / "checkpoints/last.ckpt").unlink()
    for age, name in enumerate(("stage_0", "epoch_0004", "stage_1")):
        os.utime(run_dir / f"checkpoints/{name}.ckpt", (1e9 - age, 1e9 - age))
    assert found(run_dir) == ("epoch_0004.ckpt", 5)


def test_a_link_to_a_missing_file_is_passed_over(run_dir):
    (run_dir / "checkpoints/last.ckpt").unlink()
    (run_dir / "checkpoints/last.ckpt").symlink_to("epoch_0099.ckpt")
    assert found(run_dir) == ("epoch_0004.ckpt", 5)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_with_two_names_is_read_once(run_dir, link, monkeypatch):
    (run_dir / "checkpoints/last.ckpt").unlink()
    link(run_dir / "checkpoints/epoch_0004.ckpt", run_dir / "checkpoints/last.ckpt")
    read = []
    monkeypatch.setattr(experiment.resume, "load_stored", lambda path: read.append(path) or load_stored(path))
    assert found(run_dir) == ("last.ckpt", 5) and len(read) == 1


def test_later_epochs_of_a_past_that_was_taken_back_are_not_meant(run_dir):
    write(run_dir / "checkpoints/epoch_0009.ckpt", 10, age=100)
    assert found(run_dir) == ("last.ckpt", 5)


def test_damaged_files_are_passed_over_with_a_line_each(run_dir, capsys):
    damage(run_dir / "checkpoints/last.ckpt")
    assert found(run_dir) == ("epoch_0004.ckpt", 5)
    (line,) = capsys.readouterr().err.splitlines()
    assert "last.ckpt: not a checkpoint, or a damaged one" in line and "epoch_0004.ckpt" in line
    damage(run_dir / "checkpoints/epoch_0004.ckpt")
    assert found(run_dir) == ("stage_1.ckpt", 4)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_file_from_within_an_epoch_is_passed_over_or_refused(run_dir, capsys):
    write(run_dir / "checkpoints/last.ckpt", 5, age=-1, ready=6)
    assert found(run_dir) == ("epoch_0004.ckpt", 5)
    assert "in the middle of an epoch" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"last\.ckpt: was saved in the middle of an epoch"):
        find_resume(str(run_dir / "checkpoints/last.ckpt"), run_dir)


def test_a_run_with_damaged_files_only_is_not_begun_anew(run_dir):
    for file in run_dir.glob("checkpoints/*"):
        damage(file)
    with pytest.raises(ValueError, match="no checkpoint to resume from") as error:
        find_resume("auto", run_dir)
    assert all(file.name in str(error.value) for file in run_dir.glob("checkpoints/*"))


def test_a_given_path_is_that_file_or_an_error(run_dir):
    path, checkpoint, _ = find_resume(str(run_dir / "checkpoints/stage_0.ckpt"), "elsewhere")
    assert path == str(run_dir / "checkpoints/stage_0.ckpt") and epochs_done(checkpoint) == 2
    with pytest.raises(FileNotFoundError, match=r"stage_7\.ckpt: no such checkpoint"):
        find_resume(str(run_dir / "checkpoints/stage_7.ckpt"), run_dir)
    torch.save({"state_dict": {}}, run_dir / "weights.ckpt")
    with pytest.raises(ValueError, match=r"weights\.ckpt: contains only weights"):
        find_resume(str(run_dir / "weights.ckpt"), run_dir)


class Toy(nn.Linear):
    def on_load_checkpoint(self, checkpoint):
        if checkpoint["class_path"] != "toys.Toy":
            raise UserError(f"written by {checkpoint['class_path']}")


def test_check_resume_accepts_the_same_module_only_and_loads_it():
    stored, module = Toy(1, 2), Toy(1, 2)
    checkpoint = {"class_path": "toys.Toy", "state_dict": stored.state_dict()}
    check_resume("a.ckpt", checkpoint, module)
    assert torch.equal(module.weight, stored.weight)
    with pytest.raises(ValueError, match=r"a\.ckpt.* bias has shape \(2,\) in the checkpoint and \(3,\) in the configured"):
        check_resume("a.ckpt", checkpoint, Toy(1, 3))
    with pytest.raises(ValueError, match=r"a\.ckpt: written by toys\.Other"):
        check_resume("a.ckpt", {**checkpoint, "class_path": "toys.Other"}, Toy(1, 2))


# --- changes of the configuration -----------------------------------------------------------------------------------------

ARGUMENTS = ["configs/fewgan.yaml", "run_name=run", "datamodule.root=a", "datamodule.side_root=b", "module.epochs_per_stage=2",
             "datamodule.image_size=[16,20]", "module.prior_patience=5", "trainer.devices=1", "callbacks.images=null",
             "callbacks.metrics=null"]  # fmt: skip
CONFIG = OmegaConf.to_container(load_config(ARGUMENTS))


def changed(*overrides: str, free=()):
    return changes(CONFIG, load_config([*ARGUMENTS, *overrides]), free)


def test_the_same_configuration_has_no_changes():
    assert changed() == ([], []) and changed("resume=auto") == ([], [])


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("module.epochs_per_stage=3", "module.epochs_per_stage: 2 → 3"),
        ("module.image_size=[16,24]", "module.image_size: [16, 20] → [16, 24]"),
        ("module.prior_patience=77", "module.prior_patience: 5 → 77"),
        ("datamodule.root=c", "datamodule.root: a → c"),
        ("datamodule.flip=true", "datamodule.flip: False → True"),
        ("seed=1", "seed: 0 → 1"),
        ("trainer.limit_train_batches=3", "trainer.limit_train_batches: null → 3"),
        ("trainer.overfit_batches=2", "trainer.overfit_batches: null → 2"),
    ],
)
def test_another_training(word, line):
    refused, allowed = changed(word)
    assert line in refused and not allowed


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trainer.devices=2", "trainer.devices: 1 → 2"),
        ("trainer.max_epochs=9", "trainer.max_epochs: -1 → 9"),
        ("trainer.max_steps=9", "trainer.max_steps: null → 9"),
        ("logger.wandb=null", "logger.wandb: on → off"),
        ("callbacks.images.class_path=callbacks.image_grid.ImageGrid", "callbacks.images: off → on"),
        ("logger.wandb.project=birds", "logger.wandb.project: handful → birds"),
        ("datamodule.num_workers=2", "datamodule.num_workers: 0 → 2"),
    ],
)
def test_the_same_training(word, line):
    assert changed(word) == ([], [line])


def test_a_default_that_is_written_out_is_no_change():
    assert changed("module.prior_patience=5", "datamodule.flip=false", "datamodule.num_workers=0") == ([], [])


def test_free_keys_are_allowed():
    assert changed("datamodule.root=c", free=["datamodule.root"]) == ([], ["datamodule.root: a → c"])


def test_a_moved_run_is_one_line():
    override = ("run_dir=other/place",)
    assert changed(*override) == ([], ["run_dir: runs/run → other/place"])
    assert changed(*override, "trainer.devices=2")[1] == ["run_dir: runs/run → other/place", "trainer.devices: 1 → 2"]


def test_another_class_is_one_line():
    old = {**CONFIG, "module": {"class_path": "modules.gone.Gone", "width": 3}}
    assert changes(old, OmegaConf.create(CONFIG)) == (["module.class_path: modules.gone.Gone → modules.fewgan.FewGAN"], [])


def test_a_key_that_the_class_no_longer_has_is_a_change():
    old = {**CONFIG, "module": {**CONFIG["module"], "lr": 3}}
    refused, _ = changes(old, OmegaConf.create(CONFIG))
    assert "module.lr: 3 → null" in refused


# --- finished -----------------------------------------------------------------------------------------------------------

STOPS = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/fd", "patience": 3}


@pytest.mark.parametrize(
    ("trainer", "callbacks", "state", "expected"),
    [
        ({}, {}, {}, None),
        ({"max_epochs": 6}, {}, {}, None),
        ({"max_epochs": 5}, {}, {}, ["trainer.max_epochs"]),
        ({"max_epochs": -1, "max_steps": -1}, {}, {}, None),
        ({"max_steps": 20}, {}, {}, ["trainer.max_steps"]),
        ({"max_steps": 21}, {}, {}, None),
        ({}, {"stop": STOPS}, {"wait_count": 3, "stopping_reason": 3}, ["callbacks.stop.patience"]),
        ({}, {"stop": STOPS | {"patience": 4}}, {"wait_count": 3, "stopping_reason": 3}, None),
        ({}, {"stop": STOPS}, {"wait_count": 2, "stopping_reason": 0}, None),
        ({}, {"stop": STOPS | {"mode": "max"}}, {"wait_count": 3, "stopping_reason": 3}, None),  # of another callback
        ({}, {"stop": STOPS}, {"wait_count": 0, "stopping_reason": 1}, []),
        ({}, {"stop": None}, {"wait_count": 3, "stopping_reason": 3}, None),
    ],
)
def test_what_ends_a_training(trainer, callbacks, state, expected):
    key = EarlyStopping("val/fd").state_key
    checkpoint = {
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 5}}}}, "global_step": 20, "callbacks": {key: state},
    }  # fmt: skip
    config = OmegaConf.create({"trainer": trainer, "callbacks": callbacks})
    assert finish_reason(checkpoint, config, GenerativeModule()) == expected


@pytest.mark.parametrize("patience", [2, 3])
def test_a_fit_ended_by_patience_is_resumed_with_the_patience_that_is_configured(tmp_path, patience):
    """With the same patience nothing is trained, with a larger one another epoch; Lightning alone uses the stored one."""
    module = Constant()
    fit(tmp_path, module, EarlyStopping("train/loss", patience=2))
    assert module.epochs == [0, 1, 2]
    stored = load_stored(tmp_path / "last.ckpt")
    assert stored.checkpoint["callbacks"][EarlyStopping("train/loss").state_key]["stopping_reason"] == 3
    node = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "train/loss", "patience": patience}
    config = OmegaConf.create({"trainer": {}, "callbacks": {"stop": node}, "run_dir": str(tmp_path), "datamodule": {}})
    (tmp_path / "run.json").write_text('{"status": "running"}')  # cut off before its last picture
    module, config.resume = Constant(), str(tmp_path / "last.ckpt")
    stored = experiment.resume.resume_point(config, module, None)
    fit(tmp_path, module, EarlyStopping("train/loss", patience=patience), stored)
    assert module.epochs == [3] * (patience - 2)


# --- run folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "linked folder", "linked run folder", "other folder", "root"])
def test_checkpoints_are_seen_wherever_they_are(tmp_path, way):
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir(), disk.mkdir()
    config = OmegaConf.create({"run_dir": str(run), "callbacks": {"checkpoint": {"dirpath": str(run / "checkpoints")}}})
    assert not list(checkpoint_files(config))
    if way == "file":
        (run / "checkpoints").mkdir()
    elif way == "linked folder":
        (run / "checkpoints").symlink_to(disk)
    elif way == "linked run folder":
        run.rmdir()
        run.symlink_to(disk)
        (disk / "checkpoints").mkdir()
    elif way == "other folder":
        config.callbacks.checkpoint.dirpath = str(disk)
    folder = {"other folder": disk, "root": run}.get(way, run / "checkpoints")
    (folder / "stage_0.ckpt").touch()
    assert len(list(checkpoint_files(config))) == 1


def test_results_without_a_checkpoint_are_moved_aside(tmp_path, capsys):
    move_results_aside(tmp_path)
    for number in (1, 2):
        (tmp_path / "images").mkdir()
        (tmp_path / "images/samples_0000.png").write_text(str(number))
        (tmp_path / "metrics.csv").write_text("step,epoch")
        (tmp_path / "run.json").write_text("{}")
        move_results_aside(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {"run.json", *(f"previous_{n + 1}" for n in range(number))}
        assert (tmp_path / f"previous_{number}/images/samples_0000.png").read_text() == str(number)
    assert "metrics.csv, images" in capsys.readouterr().err
