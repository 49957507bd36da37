"""A run that is killed and resumed ends as one that was never stopped, to the last bit; signals end a run.

Runs are forked: a child is really killed, at no cost for imports. It leads a process group of its own, so that a kill hits
all of its ranks at once, as a loss of power would.
"""

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies.launchers import multiprocessing
from PIL import Image

import callbacks.stage_checkpoint
import core.files
import evaluate
import experiment.checkpoint
import train
from cli.loader import load_config
from core.nodes import find_class
from modules.pyramid import PyramidModule
from tests.contract import tiers
from tests.contract.runs import unequal
from tests.contract.tiers import YAMLS, method_tests, tiny

ROOT = Path(__file__).parent.parent
CONFIGS = {path.stem: path for path in YAMLS}
CLASSES = {name: find_class(load_config([str(path)]).module.class_path, ["modules."]) for name, path in CONFIGS.items()}
# Methods with several stages, and one with a single stage; the others, whose stages are the same code, with make test-all.
FEW = [path.stem for path in tiers.HEADS if issubclass(tiers.method_class(path), PyramidModule) or path.stem == "stylegan2"]
HEADS = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in (path.stem for path in tiers.HEADS)]
DRAWN = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
PATIENCE = 240  # seconds for what takes a few on an idle machine
QUIET = ["trainer.accelerator=cpu", "logger.wandb=null", "callbacks.progress=null", "trainer.enable_progress_bar=false",
         "callbacks.images.num_images=4", "callbacks.images.every_n_epochs=1"]  # fmt: skip
MEASURED = {"fewgan": ["callbacks.metrics.num_images=4", "callbacks.metrics.metrics=[pixel_diversity]"]}
LONG = ["module.epochs_per_stage=1000", "callbacks.images=null"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp_fork", "datamodule.batch_size=1"]


def command_line(name: str, run_dir: Path, *more: str) -> list[str]:
    quiet = [*QUIET, *MEASURED.get(name, ["callbacks.metrics=null"])]
    return [str(CONFIGS[name]), DRAWN, *tiny(CONFIGS[name]), *quiet, f"run_dir={run_dir}", "resume=auto", *more]


def fork(function: Callable[[], int], log: Path) -> int:
    """Process id of a child that leads a group, ends with what the function returns and writes to `log`."""
    if pid := os.fork():
        until(lambda: os.getpgid(pid) == pid, PATIENCE, "the child does not begin")  # else its group looks ended
        return pid
    try:
        os.setsid()
        multiprocessing._check_bad_cuda_fork = lambda: None  # there is no GPU in it that a second fork could break
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        code = function()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def wait(pid: int) -> int:
    """Exit code of a child, negative for a signal. Nothing of its group may be left soon after."""
    status: list[int] = []

    def ended() -> bool:
        done, code = os.waitpid(pid, os.WNOHANG)
        status.append(code)
        return done == pid

    try:
        until(ended, PATIENCE, "the run does not end")
        until(lambda: not alive(pid), PATIENCE / 4, "processes of the run are left")
    finally:
        if alive(pid):
            os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status[-1])


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], object], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


# --- killed -------------------------------------------------------------------------------------------------------------
# Instants. Each changes trainer or module so that the whole group dies at a certain point of the fit.


def die(*_, **__) -> None:
    os.killpg(0, signal.SIGKILL)


class Killer(lightning.Callback):
    def __init__(self, **hooks: Callable) -> None:
        vars(self).update(hooks)


def within_an_epoch(trainer, module) -> None:
    seen = []

    def count(trainer, module, outputs, batch, batch_idx):
        seen.append(trainer.current_epoch)
        if trainer.is_global_zero and seen[-1] > seen[0] and batch_idx == 1:
            die()

    trainer.callbacks.append(Killer(on_train_batch_end=count))


def while_a_checkpoint_is_written(trainer, module) -> None:
    def half(checkpoint, file):
        torch.save(checkpoint, file)
        if "epoch_" in file.name:
            file.flush()
            file.truncate(file.tell() // 2)
            die()

    experiment.checkpoint.torch = type("Torch", (), {"save": staticmethod(half)})


def die_before_the_name(name: str) -> None:
    """Before a file gets another name that begins so."""

    def link(source, target):
        die() if Path(target).name.startswith(name) else core.files.atomic_link(source, target)

    callbacks.stage_checkpoint.atomic_link = link


def between_the_names_of_an_epoch(trainer, module) -> None:
    die_before_the_name("last")


def between_the_names_of_a_stage(trainer, module) -> None:
    die_before_the_name("stage_")


def when_a_stage_has_begun(trainer, module) -> None:
    """A later epoch, where a method has one stage."""
    seen = []

    def count(trainer, module):
        seen.append(trainer.current_epoch)
        if seen[-1] > seen[0]:
            die()

    def killing(stage):
        cache(stage)
        if stage > 0:
            die()

    if module.num_stages > 1:
        cache, module.cache_stage = module.cache_stage, killing
    else:
        trainer.callbacks.append(Killer(on_train_epoch_start=count))


def after_the_last_checkpoint(trainer, module) -> None:
    trainer.callbacks.insert(0, Killer(on_train_end=die))


INSTANTS = [within_an_epoch, while_a_checkpoint_is_written, between_the_names_of_an_epoch, when_a_stage_has_begun,
            between_the_names_of_a_stage]  # fmt: skip


def start(arguments: list[str], log: Path, instant: Callable | None = None) -> int:
    def fit() -> int:
        trainer, module, datamodule, checkpoint = train.prepare(load_config(arguments), dry_run=False)
        if instant:
            instant(trainer, module)
        trainer.fit(module, datamodule, ckpt_path=checkpoint)
        return 0

    return fork(fit, log)


def killed_at_random(arguments: list[str], log: Path, seconds: float) -> bool:
    """Kills within `seconds`; False if the run was over before."""
    pid = start(arguments, log)
    time.sleep(random.uniform(0, seconds))
    os.killpg(pid, signal.SIGKILL)
    assert (code := wait(pid)) in (-signal.SIGKILL, 0), log.read_text()
    return code != 0


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(lines)]


def different_rows(first: list[dict[str, str]], second: list[dict[str, str]]) -> list[str]:
    if first == second:
        return []
    return [f"metrics.csv: {row}" for row in first + second if row not in first or row not in second] or ["metrics.csv"]


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two runs: weights, buffers, optimizers and clocks in the last checkpoint, the pictures, the names
    of the checkpoints, and the table of metrics."""
    ends = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (first, second)]
    keys = ("state_dict", "optimizer_states", "iteration", "images_seen", "stage")
    found = [name for key in keys for name in unequal(ends[0][key], ends[1][key], key)]
    pictures = [{file.name: file.read_bytes() for file in run.glob("images/*.png")} for run in (first, second)]
    found += sorted(pictures[0].keys() ^ pictures[1].keys())
    names = [{file.name for file in run.glob("checkpoints/*")} for run in (first, second)]
    found += sorted(names[0] ^ names[1])
    found += different_rows(*(table(run / "metrics.csv") for run in (first, second)))
    return found + [name for name in pictures[0].keys() & pictures[1].keys() if pictures[0][name] != pictures[1][name]]


def kill_chain(name: str, folder: Path, instants: list[Callable], processes: int = 1) -> None:
    """Asserts that a training of the YAML `name` that is killed at these instants, one after the other, then at random and
    after its last checkpoint, ends as one that was never killed."""
    epochs = load_config(command_line(name, folder)).module.get("epochs")
    more = ["module.epochs=6"] if epochs else getattr(method_tests(CONFIGS[name]), "KILL_CHAIN", [])
    more = [*more, *(TWO if processes == 2 else [])]
    straight, killed, log = folder / "straight", folder / "killed", folder / "log"
    begin = time.monotonic()
    assert wait(start(command_line(name, straight, *more), log)) == 0, log.read_text()
    seconds = time.monotonic() - begin
    assert len({file.stem[-4:] for file in straight.glob("images/*.png")}) > 1, "pictures of fewer than two epochs"
    for instant in instants:
        assert wait(start(command_line(name, killed, *more), log, instant)) == -signal.SIGKILL, (instant, log.read_text())
        assert_usable(killed)
    if killed_at_random(command_line(name, killed, *more), log, seconds):
        code = wait(start(command_line(name, killed, *more), log, after_the_last_checkpoint))
        assert code in (-signal.SIGKILL, 0), log.read_text()  # 0: killed as it ended by itself
    assert wait(start(command_line(name, killed, *more), log)) == 0, log.read_text()
    assert not differences(straight, killed)
    assert not list(killed.glob("**/*.draft"))
    assert_usable(killed)


def assert_usable(run: Path) -> None:
    """Every checkpoint is whole, last.ckpt too, if there is any."""
    files = list(run.glob("checkpoints/*.ckpt"))
    for file in files:
        torch.load(file, weights_only=True)
    assert len(files) < 2 or run / "checkpoints/last.ckpt" in files


@pytest.mark.parametrize("name", HEADS)
def test_a_run_killed_again_and_again_ends_like_the_straight_one(name, tmp_path):
    """At every kind of instant. One method is measured as it trains."""
    kill_chain(name, tmp_path, INSTANTS)


@pytest.mark.parametrize("name", HEADS)
def test_two_processes_killed_end_like_the_straight_two(name, tmp_path):
    kill_chain(name, tmp_path, INSTANTS[1::2], processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_two_processes_killed_at_the_other_instants_end_like_the_straight_two(name, tmp_path):
    kill_chain(name, tmp_path, INSTANTS[::2], processes=2)


# --- finished, extended, changed ----------------------------------------------------------------------------------------


def command(arguments: list[str], log: Path) -> int:
    """Forks `python train.py …`."""
    return fork(lambda: train.main(arguments), log)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of a method, not to be changed."""
    folders = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "run"
            assert wait(command(command_line(name, folders[name]), folders[name].parent / "log")) == 0
        return folders[name]

    return get


@pytest.mark.parametrize("name", ["fewgan", "gpnn"])
def test_a_finished_run_says_so_and_stays_as_it_is(name, finished, monkeypatch, capsys):
    """With W&B switched on, which is no hindrance, no W&B run is begun."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = finished(name)
    before, arguments = times(run), [word for word in command_line(name, run) if word != "logger.wandb=null"]
    assert train.main(arguments) == 0
    output = capsys.readouterr()
    assert "training already finished" in output.out and "logger.wandb: off → on" in output.err
    assert ("module.epochs_per_stage" in output.out) == (name == "fewgan")
    assert train.main([*arguments, "--dry-run"]) == 0
    assert times(run) == before


@pytest.mark.parametrize("name", ["fewgan", "hpvaegan"])
def test_a_finished_run_can_be_extended(name, tmp_path):
    """Two more epochs of the last stage give what a run gives that had them from the beginning."""
    longer = {"fewgan": "module.epochs_per_stage=[2,2,4]", "hpvaegan": "module.epochs_per_stage=[1,2,1,4]"}[name]
    for run, more in (("extended", []), ("extended", [longer]), ("straight", [longer])):
        assert wait(command(command_line(name, tmp_path / run, *more), tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert torch.load(tmp_path / "extended/checkpoints/last.ckpt", weights_only=True)["epoch"] > 7 - 2 * (name == "hpvaegan")
    assert not differences(tmp_path / "extended", tmp_path / "straight")
    assert json.loads((tmp_path / "extended/run.json").read_text())["status"] == "finished"


def test_a_run_that_patience_has_ended_is_finished_and_a_larger_patience_extends_it(tmp_path, capsys):
    """The monitored value is the same in all epochs, so that the best stays the first one measured."""
    log, stop = tmp_path / "log", "callbacks.stop.class_path=lightning.pytorch.callbacks.EarlyStopping"
    options = [stop, "callbacks.stop.monitor=val/copies", "callbacks.stop.strict=false", "module.epochs_per_stage=[2,2,6]"]
    arguments = command_line("fewgan", tmp_path / "run", *options, "module.prior_patience=9")
    assert wait(command([*arguments, "callbacks.stop.patience=1"], log)) == 0, log.read_text()
    before, done = times(tmp_path / "run"), json.loads((tmp_path / "run/run.json").read_text())["epoch"]
    assert train.main([*arguments, "callbacks.stop.patience=1"]) == 0
    assert "training already finished" in (output := capsys.readouterr().out)
    assert "To extend it: a larger callbacks.stop.patience." in output
    assert times(tmp_path / "run") == before
    assert wait(command([*arguments, "callbacks.stop.patience=2"], log)) == 0, log.read_text()
    assert json.loads((tmp_path / "run/run.json").read_text())["epoch"] == done + 1


# --- cut, locked, left over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["trainer.max_steps=35", "trainer.max_steps=50", "max_time"])
def test_an_epoch_that_is_cut_short_leaves_nothing(limit, tmp_path, capsys, monkeypatch):
    """The time is up in the middle of the sixth batch of 4 in each epoch; SinGAN's batch is six optimizer steps."""
    arguments = command_line("singan", tmp_path / "run", "trainer.devices=1")
    if limit == "max_time":
        limit = "trainer.max_time=00:01:00:00"
        monkeypatch.setattr(Timer, "time_elapsed", lambda self, *stage: 3700.0 * (self.batches > 5))
        monkeypatch.setattr(Timer, "batches", 0, raising=False)
        count = lambda self, *_: (setattr(self, "batches", self.batches + 1), self._check_time_remaining(_[0]))  # noqa: E731
        monkeypatch.setattr(Timer, "on_train_batch_end", count)
    assert train.main([*arguments, limit]) == 124
    assert "Ended by a limit of the trainer (exit code 124)" in (message := capsys.readouterr().err)
    done = max((1 + int(file.stem[-4:]) for file in tmp_path.glob("run/checkpoints/epoch_*.ckpt")), default=0)
    assert ("resume=auto" in message) == bool(done)
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert manifest["status"] == "interrupted" and manifest["epoch"] == done
    assert len(list(tmp_path.glob("run/images/samples_*.png"))) == done
    monkeypatch.undo()
    assert train.main(arguments) == 0
    assert train.main(command_line("singan", tmp_path / "straight", "trainer.devices=1")) == 0
    assert not differences(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("resumes", ["auto", "null"])
def test_a_second_process_in_a_run_folder_is_refused(resumes, tmp_path, capsys):
    """Until the first one ends, however it does."""
    run, log = tmp_path / "run", tmp_path / "log"
    pid = command(command_line("singan", run, *LONG), log)
    until(lambda: list(run.glob("checkpoints/*.ckpt")), PATIENCE, "no checkpoint came")
    os.killpg(pid, signal.SIGSTOP)  # so that every change from here on is the second process's
    before = times(run / "checkpoints")
    assert train.main(command_line("singan", run, f"resume={resumes}")) == 2
    message = capsys.readouterr().err
    assert f"{run} is in use by process {pid} on " in message and message.count("\n") == 1
    assert before and times(run / "checkpoints") == before
    os.killpg(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
    assert train.main(command_line("singan", run, "resume=auto", "trainer.max_epochs=1")) == 0


def test_results_of_a_run_that_left_no_checkpoint_are_no_results_of_the_next(tmp_path, capsys):
    run, log = tmp_path / "run", tmp_path / "log"
    none, often = "callbacks.checkpoint=null", "trainer.log_every_n_steps=1"
    assert wait(command(command_line("singan", run, none, often, "trainer.max_epochs=3"), log)) == 0, log.read_text()
    assert not list(run.glob("**/*.ckpt")), "Lightning has written its own"
    assert "evaluate.py" not in log.read_text() and "metrics.csv" in log.read_text()
    first = table(run / "metrics.csv")
    other = ["resume=null", "seed=5", often, "trainer.max_epochs=1", "trainer.devices=1"]
    assert train.main(command_line("singan", run, *other)) == 0
    assert "moved to" in capsys.readouterr().err and table(run / "previous_1/metrics.csv") == first
    assert {row["epoch"] for row in table(run / "metrics.csv")} == {"0"}
    assert {file.stem[-4:] for file in run.glob("images/*.png")} == {"0000"}


def test_a_run_whose_checkpoints_lie_on_another_disk_is_not_overwritten(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir(), (tmp_path / "disk").mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    arguments = command_line("singan", run, "trainer.max_epochs=1", "trainer.devices=1", "resume=null")
    assert train.main(arguments) == 0
    before = times(tmp_path)
    assert train.main(arguments) == 2
    assert f"{run} holds a run" in capsys.readouterr().err and times(tmp_path) == before


def test_a_checkpoint_is_opened_once_for_a_resume(finished, tmp_path, monkeypatch, capsys):
    run, opened = tmp_path / "run", []
    shutil.copytree(finished("singan"), run)
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    true_open = io.open

    def counting(file, *arguments, **options):
        if str(file).endswith(".ckpt"):
            opened.append(Path(file).name)
        return true_open(file, *arguments, **options)

    monkeypatch.setattr(io, "open", counting)  # pathlib's
    monkeypatch.setattr("builtins.open", counting)
    assert train.main(command_line("singan", run, "trainer.devices=1")) == 0
    assert opened.count("last.ckpt") == 1 and "epoch_0005.ckpt" not in opened


def test_a_stage_that_is_done_cannot_be_longer(finished, capsys):
    run = finished("fewgan")
    before = times(run)
    assert train.main(command_line("fewgan", run, "module.epochs_per_stage=[3,2,2]")) == 2
    assert "module.epochs_per_stage changes stages that are already trained" in capsys.readouterr().err
    assert times(run) == before


def test_other_settings_are_refused_and_shown(finished, capsys):
    run = finished("fewgan")
    before = times(run)
    assert train.main(command_line("fewgan", run, "module.lr_g=0.125", "datamodule.batch_size=1", "trainer.devices=1")) == 2
    message = capsys.readouterr().err
    assert "module.lr_g: " in message and " → 0.125" in message and "datamodule.batch_size: 2 → 1" in message
    assert "trainer.devices" not in message and "Traceback" not in message
    assert times(run) == before


def test_other_images_are_refused_and_moved_ones_are_not(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.effect_noise((40, 32), 60).convert("RGB").save(folder / "a.png")
    small = [word for word in tiny(CONFIGS["singan"]) if "num_images" not in word]
    small += ["datamodule.image=a.png", "callbacks.metrics=null"]
    arguments = [str(CONFIGS["singan"]), *small, *QUIET, f"run_dir={tmp_path / 'run'}", "resume=auto", "trainer.max_epochs=1"]
    assert train.main([*arguments, f"datamodule.root={folder}"]) == 0
    capsys.readouterr()
    folder.rename(tmp_path / "moved")
    assert train.main([*arguments, f"datamodule.root={tmp_path / 'moved'}"]) == 0
    output = capsys.readouterr()
    assert f"datamodule.root: {folder} → {tmp_path / 'moved'}" in output.err
    assert "a larger trainer.max_epochs" in output.out
    Image.effect_noise((40, 32), 60).convert("RGB").save(tmp_path / "moved/a.png")
    assert train.main([*arguments, f"datamodule.root={tmp_path / 'moved'}", "trainer.max_epochs=2"]) == 2
    assert "files of the image set image: " in capsys.readouterr().err


def test_a_run_with_a_damaged_last_file_goes_on_from_the_one_before(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished("fewgan"), run)
    for name in ("last.ckpt", "epoch_0007.ckpt", "stage_3.ckpt"):
        file = run / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:-100])
    assert train.main(command_line("fewgan", run)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "a damaged one" in line]
    assert len(lines) == 3 and all(line.endswith("stage_2.ckpt.") for line in lines)
    assert not differences(finished("fewgan"), run)


# --- signals ------------------------------------------------------------------------------------------------------------


def group_size(group: int) -> int:
    output = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
    return sum(int(line.split()[0]) == group and line.split()[1][0] != "Z" for line in output.splitlines()[1:])


def check_ending(pid: int, run: Path, log: Path, signum: int, processes: int, whole_group: bool = False) -> None:
    try:
        until(lambda: (run / "checkpoints/last.ckpt").exists() or not group_size(pid), PATIENCE, "no checkpoint came")
        until(lambda: group_size(pid) >= processes or not group_size(pid), PATIENCE, f"fewer than {processes} processes")
        os.killpg(pid, signum) if whole_group else os.kill(pid, signum)
    except AssertionError:
        os.killpg(pid, signal.SIGKILL)
        raise
    assert wait(pid) == 128 + signum, log.read_text()
    lines = [line for line in log.read_text().splitlines() if signal.Signals(signum).name in line]
    assert len(lines) == 1 and f"exit code {128 + signum}" in lines[0], log.read_text()
    assert str(run / "checkpoints") in lines[0] and "resume=auto" in lines[0]
    assert "Traceback" not in log.read_text()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(("signum", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_ends_the_run_and_its_workers(signum, whole_group, tmp_path):
    """A terminal sends to the group, `kill` to the process. The run then goes on from its last whole epoch."""
    run, log = tmp_path / "run", tmp_path / "log"
    pid = command(command_line("singan", run, *LONG, "datamodule.num_workers=2"), log)
    check_ending(pid, run, log, signum, processes=3, whole_group=whole_group)
    done = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["iteration"]
    assert done % 4 == 0
    assert wait(command(command_line("singan", run, *LONG, f"trainer.max_epochs={done // 4 + 1}"), log)) == 0
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["iteration"] == done + 4


def test_a_signal_ends_forked_ranks(tmp_path):
    pid = command(command_line("singan", tmp_path / "run", *LONG, *TWO), tmp_path / "log")
    check_ending(pid, tmp_path / "run", tmp_path / "log", signal.SIGTERM, processes=3)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_two_ranks(signum, tmp_path):
    """As a user starts it: Lightning runs the command a second time for the other rank, which has a worker of its own."""
    run, log = tmp_path / "run", tmp_path / "log"
    more = ["trainer.devices=2", "datamodule.batch_size=1", "datamodule.num_workers=1"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "train.py", *command_line("singan", run, *LONG, *more)], cwd=ROOT, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    check_ending(process.pid, run, log, signum, processes=4, whole_group=signum == signal.SIGINT)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_measurement(signum, finished, tmp_path):
    """At once, with one line, and nothing is written."""
    log, begun, sample = tmp_path / "log", tmp_path / "begun", CLASSES["singan"].sample
    file = str(finished("singan") / "checkpoints/last.ckpt")

    def measure() -> int:
        CLASSES["singan"].sample = lambda *arguments, **options: begun.touch() or sample(*arguments, **options)
        return evaluate.main([file, "callbacks.metrics.num_images=1000000", f"out={tmp_path / 'out'}"])

    pid = fork(measure, log)
    until(lambda: begun.exists() or not alive(pid), PATIENCE, "no sample was drawn")
    begin = time.monotonic()
    os.kill(pid, signum)
    assert wait(pid) == 128 + signum and time.monotonic() - begin < PATIENCE / 8, log.read_text()
    assert log.read_text().splitlines()[-1] == f"Ended by {signum.name} (exit code {128 + signum})."
    assert "Traceback" not in log.read_text() and not (tmp_path / "out").exists()


def test_a_second_signal_ends_at_once(tmp_path):
    from cli.command import StopSignals

    def never_ends() -> int:
        with StopSignals():
            try:
                (tmp_path / "begun").touch()
                time.sleep(1000)
            finally:
                (tmp_path / "ending").touch()
                time.sleep(1000)
        return 0

    pid = fork(never_ends, tmp_path / "log")
    for name in ("begun", "ending"):
        until((tmp_path / name).exists, PATIENCE, f"not {name}")
        os.kill(pid, signal.SIGINT)
    begin = time.monotonic()
    assert wait(pid) == 130 and time.monotonic() - begin < PATIENCE


def test_signals_before_the_training_and_handlers_after_it(tmp_path):
    from cli.command import StopSignals

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert stop.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with StopSignals() as stop:
        sys.exit(5)
    assert stop.exit_code == 5
    with pytest.raises(ZeroDivisionError), StopSignals():
        1 / 0  # noqa: B018
