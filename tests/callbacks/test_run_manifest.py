import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader

from callbacks.run_manifest import RunManifest
from datamodules.synthetic import SyntheticDataModule
from experiment.checkpoint import load_stored
from experiment.manifest import git_state, read_manifest


class Toy(lightning.LightningModule):
    """Five parameters; calls `act` in every step."""

    num_stages = 4

    def __init__(self, act=lambda module: None, **hyper_parameters):
        super().__init__()
        self.save_hyperparameters(hyper_parameters)
        self.net, self.act, self.iteration, self.stage = nn.Linear(4, 1), act, 0, -1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.act(self)
        return self.net(torch.ones(4)).sum()

    def finished(self, epochs):
        return False

    def on_train_epoch_start(self):
        self.stage = self.current_epoch // 2

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.iteration += 1

    def on_save_checkpoint(self, checkpoint):
        checkpoint["iteration"] = self.iteration


class Named(DummyLogger):
    """A logger with an id, as that of W&B."""

    def __init__(self, id=None):
        super().__init__()
        self.id, self.kept = id, {}

    @property
    def version(self):
        return self.id

    def use_id(self, id):
        self.id = id

    def log_hyperparams(self, params):
        self.kept |= params


def fit(folder, epochs=1, module=None, logger=None, resume=None, checkpoint=None, source=None):
    module, data = module or Toy(), SyntheticDataModule([4, 4], samples_per_epoch=3, num_images=2)
    data.setup()
    config = {"run_name": "toy", "run_dir": str(folder), "resume": resume}
    manifest = RunManifest(config, checkpoint and load_stored(checkpoint), source and load_stored(source))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[manifest], logger=logger or Named(), default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    manifest.begin(trainer, module, data)
    trainer.fit(module, data, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "checkpoints/last.ckpt")
    return trainer


@pytest.fixture(autouse=True)
def no_id_in_the_environment(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)


def test_the_manifest_is_there_before_the_first_step_and_complete(tmp_path):
    seen = []
    fit(tmp_path, module=Toy(lambda module: seen.append(read_manifest(tmp_path))))
    first = seen[0]
    assert first["status"] == "running" and first["iteration"] == 0 and first["stage"] == 0 and first["run_name"] == "toy"
    assert first["pid"] == os.getpid() and first["host"] == socket.gethostname() and first["world_size"] == 1
    assert first["parameters"] == 5 and first["num_stages"] == 4 and first["lineage"] == []
    data = SyntheticDataModule([4, 4], num_images=2)
    data.setup()
    assert first["data"] == data.fingerprints() and {"image", "side"} <= first["data"].keys()
    assert first["versions"]["lightning"] == lightning.__version__ and first["started"] <= first["updated"]
    assert shlex.split(first["command"])[-1] == sys.orig_argv[-1]
    assert [file.name for file in tmp_path.glob("run.json*")] == ["run.json"]


def test_the_manifest_follows_the_run(tmp_path):
    seen = []
    fit(tmp_path, epochs=3, module=Toy(lambda module: seen.append(read_manifest(tmp_path))))
    assert [(m["epoch"], m["iteration"], m["stage"]) for m in seen[::3]] == [(0, 0, 0), (1, 3, 0), (2, 6, 1)]
    end = read_manifest(tmp_path)
    assert (end["status"], end["iteration"], end["stage"]) == ("finished", 9, 1) and "error" not in end


def raising(error):
    def act(module):
        if module.iteration == 2:
            raise error

    return Toy(act)


@pytest.mark.parametrize(
    ("error", "ends_as", "status"),
    [(KeyboardInterrupt(), SystemExit, "interrupted"), (SystemExit(143), SystemExit, "interrupted"),
     (RuntimeError("no memory"), RuntimeError, "failed")],
)  # fmt: skip
def test_a_run_that_ends_early_says_how(tmp_path, error, ends_as, status):
    with pytest.raises(ends_as):
        fit(tmp_path, module=raising(error))
    manifest = read_manifest(tmp_path)
    assert manifest["status"] == status and manifest["iteration"] == 2 and manifest["error"].startswith(type(error).__name__)


def test_a_run_that_is_killed_at_once_stays_running_with_its_process(tmp_path):
    child = os.fork()
    if child == 0:
        fit(tmp_path, module=Toy(lambda module: os._exit(9)))
    os.waitpid(child, 0)
    manifest = read_manifest(tmp_path)
    assert manifest["status"] == "running" and manifest["pid"] == child and manifest["iteration"] == 0 and manifest["wandb_id"]
    fit(tmp_path, resume="auto")  # before any checkpoint
    again = read_manifest(tmp_path)
    assert again["wandb_id"] == manifest["wandb_id"] and again["status"] == "finished" and len(again["starts"]) == 2


def test_each_folder_has_its_id_and_a_resume_keeps_it(tmp_path):
    def run(name, **options):
        logger = options.pop("logger", Named())
        trainer = fit(tmp_path / name, logger=logger, **options)
        stored = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["run"]["wandb_id"]
        assert read_manifest(tmp_path / name)["wandb_id"] == logger.id == stored and trainer.current_epoch
        return logger.id

    first = run("a")
    last = str(tmp_path / "a/checkpoints/last.ckpt")
    assert first.startswith("toy-") and set(first) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert run("a", resume="auto", checkpoint=last, epochs=2) == first
    assert run("b") != first
    assert run("c", resume=last, checkpoint=last, epochs=2) != first  # another folder is another run
    assert run("a", resume="auto", logger=Named("mine")) == "mine"
    assert run("a", resume="auto") == "mine"
    assert run("a") not in ("mine", first)  # resume=null begins a new run


def test_an_id_in_the_environment_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "swept")
    logger = Named()
    fit(tmp_path, logger=logger)
    assert logger.id == read_manifest(tmp_path)["wandb_id"] == "swept"


def test_loggers_get_what_identifies_the_run(tmp_path):
    logger = Named()
    fit(tmp_path, logger=logger)
    manifest = read_manifest(tmp_path)
    for key in ("git", "data", "parameters", "num_stages", "lineage", "versions"):
        assert logger.kept["run"][key] == manifest[key]


def test_the_lineage_names_sources_and_the_checkpoints_that_a_run_went_on_from(tmp_path):
    fit(tmp_path / "source")
    source = str(tmp_path / "source/checkpoints/last.ckpt")
    adapted = tmp_path / "adapted/checkpoints/last.ckpt"
    fit(tmp_path / "adapted", source=source)
    first = {
        "kind": "source",
        "path": source,
        "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        "run_name": "toy",
        "wandb_id": read_manifest(tmp_path / "source")["wandb_id"],
        "iteration": 3,
    }
    assert read_manifest(tmp_path / "adapted")["lineage"] == [first]
    assert torch.load(adapted, weights_only=True)["run"]["lineage"] == [first]
    Path(source).unlink()  # the adapted run holds what it needs of it
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(adapted.read_bytes())
    for folder in ("adapted", "fork"):
        fit(tmp_path / folder, 2, resume=str(copy), checkpoint=str(copy))
        *before, newest = read_manifest(tmp_path / folder)["lineage"]
        assert before == [first] and newest["kind"] == "resume" and newest["path"] == str(copy)
        assert newest["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest() and newest["run_name"] == "toy"


def test_a_manifest_is_replaced_as_a_whole(tmp_path, monkeypatch):
    fit(tmp_path)
    before = (tmp_path / "run.json").read_text()

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(tmp_path)
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_manifest_that_is_none_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json: not a run manifest"):
        fit(tmp_path, resume="auto")


def test_the_commit_and_whether_code_differs_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True).stdout

    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    state = {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "notes.txt").write_text("no code")
    assert git_state(tmp_path) == state
    (tmp_path / "b.yaml").write_text("new: 1")
    assert git_state(tmp_path) == {**state, "dirty": True}
    (tmp_path / "b.yaml").unlink()
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == {**state, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_ranks_have_the_same_id(tmp_path):
    """The second of two processes learns it from the first, whose manifest alone is written."""

    class Tell(lightning.Callback):
        def on_train_end(self, trainer, module):
            (tmp_path / f"{trainer.global_rank}.json").write_text(json.dumps(trainer.logger.id))

    module = Toy()
    manifest = RunManifest({"run_name": "toy", "run_dir": str(tmp_path / "run"), "resume": None})
    strategy = lightning.pytorch.strategies.DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, callbacks=[manifest, Tell()], logger=Named(),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(4, 1)))
    ids = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    stored = read_manifest(tmp_path / "run")
    assert ids == [stored["wandb_id"]] * 2 and stored["world_size"] == 2 and stored["status"] == "finished"
