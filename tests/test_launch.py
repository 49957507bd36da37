"""The ways to start a training on several processes, ended in the middle and begun again: all end with the same bits."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lightning
import pytest
import torch

import train
from callbacks.fit_control import CheckRanksAgree
from cli.loader import load_config
from experiment import ranks
from tests import test_resume as resume

ROOT = Path(__file__).parent.parent
JOB = "4711"
PATIENCE = 300  # seconds for what takes some on an idle machine
TINY = [
    "configs/singan.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule", "datamodule.num_images=5",
    "datamodule.image_size=[16,20]", "datamodule.batch_size=1", "datamodule.samples_per_epoch=8", "module.min_size=8",
    "module.scale_factor=0.45", "module.epochs_per_stage=2", "module.width=8", "module.depth=2", "callbacks.metrics=null",
    "callbacks.images=null", "callbacks.progress=null", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
]  # fmt: skip
QUIET = ["logger.wandb=null"]

# Stands for train.py at a first start: waits before a batch in the middle of epoch 3, on the ranks named first.
PAUSED = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import train
from callbacks.fit_control import TerminateAllRanks

def wait(self, trainer, module, batch, batch_idx):
    if (trainer.current_epoch, batch_idx) == (3, 2) and str(trainer.global_rank) in sys.argv[1]:
        (Path(trainer.default_root_dir).parent / f"waits_{{trainer.global_rank}}").write_text(str(os.getpid()))
        time.sleep(1000)

TerminateAllRanks.on_train_batch_start = wait
sys.exit(train.main(sys.argv[2:]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """Started commands; whatever is left of them at the end of a test is ended, with all that they started."""

    def __init__(self):
        self.all = []

    def start(self, command, **environment):
        taken = ("WANDB", "PL_", "SLURM", "MASTER", "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(taken)}
        process = subprocess.Popen(
            command, cwd=ROOT, env={**inherited, "NETRC": os.devnull, **environment}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.all.append(process)
        return process

    def end(self):
        for process in self.all:
            process.terminate()  # torchrun ends its workers, which are not in its group
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes():
    group = Processes()
    yield group
    group.end()


@pytest.fixture
def paused(tmp_path):
    """Words that start the waiting stand-in of train.py."""
    script = tmp_path / "paused.py"
    script.write_text(PAUSED)
    return lambda which: [str(script), which]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folder of the same training on two processes, never ended; forked, so that nothing is imported again."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert train.main([*TINY, *QUIET, f"run_dir={run_dir}", "trainer.devices=2", "trainer.strategy=ddp_fork"]) == 0
    return run_dir


def waiting(folder: Path, which: str) -> list[int]:
    """Process ids of the ranks that have come to the middle of epoch 3."""
    files = [folder / f"waits_{rank}" for rank in which]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the ranks have not come to epoch 3"
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def outcome(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def assert_same_end(run_dir: Path, straight: Path) -> None:
    """Weights, buffers, what the optimizers remember and the table of the losses; no file from within an epoch."""
    ends = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (run_dir, straight)]
    for key in ("iteration", "images_seen", "state_dict", "optimizer_states"):
        assert plain(ends[0][key]) == plain(ends[1][key]), key
    assert (run_dir / "metrics.csv").read_text() == (straight / "metrics.csv").read_text()
    assert not [path for path in run_dir.rglob("*") if "-v1" in path.name or "hpc" in path.name]


def plain(content) -> object:
    """Nested containers with tensors as their bytes, to be compared by ==."""
    if isinstance(content, torch.Tensor):
        return content.dtype, content.shape, content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(value) for value in content] if isinstance(content, list | tuple) else content


# --- Lightning's launcher ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lightnings_launcher(tmp_path, processes, paused, straight):
    """A rank that is killed takes the others with it; the same command again ends as the run that was never ended."""
    arguments = [*TINY, *QUIET, f"run_dir={tmp_path / 'run'}", "trainer.devices=2", "resume=auto"]
    first = processes.start([sys.executable, *paused("1"), *arguments])
    (rank_1,) = waiting(tmp_path, "1")
    os.kill(rank_1, signal.SIGKILL)
    code, output = outcome(first)
    assert code != 0, output
    code, output = outcome(processes.start([sys.executable, "train.py", *arguments]))
    assert code == 0, output
    assert_same_end(tmp_path / "run", straight)


def test_a_run_goes_on_with_more_processes_and_other_callbacks(tmp_path):
    """What may change between two starts is listed, line by line."""
    run, log = tmp_path / "run", tmp_path / "log"
    first = resume.command_line("singan", run, "trainer.max_epochs=2", "trainer.devices=1")
    assert resume.wait(resume.command(first, log)) == 0, log.read_text()
    log.unlink()
    more = ["trainer.devices=2", "trainer.strategy=ddp_fork", "callbacks.images.num_images=6"]
    assert resume.wait(resume.command(resume.command_line("singan", run, *more), log)) == 0, log.read_text()
    lines = log.read_text().splitlines()
    for change in ("trainer.devices: 1 → 2", "callbacks.images.num_images: 4 → 6"):
        assert sum(line.endswith(f"last.ckpt: {change}") for line in lines) == 1, lines
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "finished" and len(manifest["starts"]) == 2


# --- torchrun ------------------------------------------------------------------------------------------------------------


def torchrun(node: int, port: int, script: list[str], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one node; by the shipped script where train.py is to be started."""
    if script == ["train.py"]:
        options = {"NODES": "2", "NODE": str(node), "PORT": str(port), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        return ["bash", "configs/launch/torchrun.sh", *arguments], options
    options = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    more = ["resume=auto", "trainer.num_nodes=2", "trainer.devices=1"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *script, *arguments, *more], {}


@pytest.mark.slow
def test_torchrun_on_two_nodes(tmp_path, processes, paused, straight):
    arguments = [*TINY, *QUIET, f"run_dir={tmp_path / 'run'}"]
    starts = []
    for script in (paused("1"), ["train.py"]):
        port = free_port()
        commands = [torchrun(node, port, script, arguments) for node in range(2)]
        starts.append([processes.start(command, **environment) for command, environment in commands])
        if len(starts) == 1:
            (rank_1,) = waiting(tmp_path, "1")
            os.kill(rank_1, signal.SIGKILL)
        for node in starts[-1]:
            code, output = outcome(node)
            assert (code != 0) == (len(starts) == 1), output
    assert_same_end(tmp_path / "run", straight)


# --- SLURM ---------------------------------------------------------------------------------------------------------------


def slurm(rank: int, port: int, **more: str) -> dict[str, str]:
    """What srun sets on two nodes with one task each. The port is SLURM's job number in practice."""
    names = {"JOB_ID": JOB, "JOB_NAME": "handful", "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "PROCID": rank,
             "NODEID": rank, "LOCALID": 0, "NODELIST": "127.0.0.1", "JOB_NODELIST": "127.0.0.1"}  # fmt: skip
    return {f"SLURM_{key}": str(value) for key, value in names.items()} | {"MASTER_PORT": str(port)} | more


def entries() -> set[Path]:
    """Of the places where a run folder would lie that went astray."""
    return {path for place in (ROOT, ROOT / "runs") if place.is_dir() for path in place.iterdir()}


@pytest.mark.slow
def test_a_requeued_slurm_job_is_resumed(tmp_path, processes, paused, straight):
    """As SLURM does it: TERM to all tasks, then a second start of the same script; one W&B run."""
    run_dir, before_all = tmp_path / "run", entries()
    arguments = [*TINY, f"run_dir={run_dir}", "trainer.num_nodes=2", "trainer.devices=1", "resume=auto"]
    port, environment = free_port(), {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    tasks = [
        processes.start([sys.executable, *paused("01"), *arguments], **slurm(rank, port, **environment)) for rank in range(2)
    ]
    waiting(tmp_path, "01")
    for task in tasks:
        task.terminate()
    outputs = []
    for task in tasks:
        code, output = outcome(task)
        assert code == 128 + signal.SIGTERM, output
        outputs.append(output)
    assert "Last checkpoint" in outputs[0]
    assert "Traceback" not in "".join(outputs)
    before = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    assert before["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 3  # lost: nothing but the running epoch
    wandb_id = json.loads((run_dir / "run.json").read_text())["wandb_id"]

    port = free_port()
    restart = {**environment, "SLURM_RESTART_COUNT": "1"}
    tasks = [
        processes.start([sys.executable, "train.py", *arguments], **slurm(rank, port, **restart)) for rank in range(2)
    ]
    for task in tasks:
        code, output = outcome(task)
        assert code == 0, output
    assert_same_end(run_dir, straight)
    assert json.loads((run_dir / "run.json").read_text())["wandb_id"] == wandb_id
    folders = [path.name for path in run_dir.glob("wandb/offline-run-*")]
    assert len(folders) == 2 and all(name.endswith(f"-{wandb_id}") for name in folders)
    runs = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert runs == {"run"} and entries() <= before_all


# --- what is shipped -----------------------------------------------------------------------------------------------------


def record_words(folder: Path, name: str) -> None:
    """A command in `folder` that writes its words to `folder`/words, one in a line."""
    (folder / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/words\n')
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_shipped_scripts_start_train_py_with_words_that_it_takes(tmp_path, script):
    file = ROOT / "configs/launch" / script
    assert not subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=True).stderr
    record_words(tmp_path, "srun" if "sbatch" in script else "python")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "NODES": "3",
                   "GPUS": "8", "SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "4"}  # fmt: skip
    given = ["configs/fewgan_256.yaml", "run_name=birds", "datamodule.image_size=[192,256]"]
    subprocess.run(["bash", file, *given], cwd=ROOT, env=environment, check=True)
    words = (tmp_path / "words").read_text().splitlines()
    config = load_config(words[words.index("train.py") + 1 :])
    assert (config.trainer.num_nodes, config.trainer.devices, config.resume) == (3, 8, "auto")
    assert config.run_name == "birds" and list(config.datamodule.image_size) == [192, 256]


class Batch:
    """configs/launch/slurm.sbatch in a process of its own, with stand-ins for scontrol, which fails `failures` times, and for
    srun, which ends with the code that the file `end` holds once it is there."""

    def __init__(self, folder: Path, processes: Processes, failures: int = 0, **environment: str) -> None:
        self.folder = folder
        commands = {
            "scontrol": f'echo "$@" >> {folder}/calls\n[ "$(wc -l < {folder}/calls)" -gt {failures} ]',
            "srun": f"touch {folder}/begun\nwhile [ ! -f {folder}/end ]; do sleep 0.02; done\nexit $(cat {folder}/end)",
        }
        for name, body in commands.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        job = {"SLURM_JOB_ID": JOB, "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "1"}
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.process = processes.start(["bash", "configs/launch/slurm.sbatch"], **job | {"PATH": path} | environment)
        self.until(lambda: (folder / "begun").exists())

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def warn(self, expected: int) -> None:
        """Signals the script as SLURM does until it has made so many calls of scontrol; once, if it has made them."""
        if len(self.calls()) == expected:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
        while len(self.calls()) < expected:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
            assert self.process.poll() is None

    def end(self, code: int) -> tuple[int, str]:
        (self.folder / "code").write_text(str(code))
        (self.folder / "code").rename(self.folder / "end")
        return outcome(self.process)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_batch_script_ends_with_the_code_of_the_training(tmp_path, processes, code):
    batch = Batch(tmp_path, processes)
    assert batch.end(code) == (code, "") and batch.calls() == []


@pytest.mark.parametrize(
    ("more", "job"),
    [({}, JOB), ({"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3")],
    ids=["job", "array"],
)
def test_the_batch_script_requeues_its_job_once_and_the_training_goes_on(tmp_path, processes, more, job):
    batch = Batch(tmp_path, processes, **more)
    batch.warn(1)
    batch.warn(1)
    assert batch.end(143) == (143, "") and batch.calls() == [f"requeue {job}"]


def test_a_failed_requeue_is_reported_and_tried_again(tmp_path, processes):
    batch = Batch(tmp_path, processes, failures=1)
    batch.warn(1)
    batch.warn(2)
    code, output = batch.end(0)
    assert code == 0 and output.count("requeueing failed; the training goes on") == 1
    assert batch.calls() == [f"requeue {JOB}"] * 2


def test_the_sbatch_file_asks_for_what_train_py_needs():
    lines = (ROOT / "configs/launch/slurm.sbatch").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH --").split("#")[0].strip() for line in lines if line.startswith("#SBATCH")]
    options = dict(option.partition("=")[::2] for option in asked)
    assert options["signal"].startswith("B:USR1@") and "requeue" in options  # to the batch shell, whose trap requeues
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["job-name"] not in ("bash", "interactive")


# --- wrong starts and lost ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "torchrun"),
        (slurm(0, 0), "SLURM"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["trainer.devices=3", "trainer.num_nodes=1"]])
def test_a_wrong_number_of_processes_is_refused(tmp_path, monkeypatch, capsys, environment, name, arguments):
    monkeypatch.chdir(ROOT)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert train.main([*TINY, *QUIET, f"run_dir={tmp_path / 'run'}", "trainer.devices=1", *arguments]) == 2
    message = capsys.readouterr().err
    assert f"{name} started 2 process(es)" in message and "trainer.num_nodes" in message
    assert not (tmp_path / "run").exists()


def fit_forked(run_dir: Path, *callbacks) -> None:
    arguments = [*TINY, *QUIET, f"run_dir={run_dir}", "trainer.devices=2", "trainer.strategy=ddp_fork"]
    trainer, module, datamodule, _ = train.prepare(load_config(arguments), dry_run=False)
    trainer.callbacks[:0] = callbacks
    trainer.fit(module, datamodule)


class OtherFacts(lightning.Callback):
    """Makes rank 1 believe that it has another checkpoint."""

    def setup(self, trainer, module, stage):
        own = next(callback for callback in trainer.callbacks if isinstance(callback, CheckRanksAgree))
        if trainer.global_rank == 1:
            own.facts["checkpoint"] = "elsewhere/last.ckpt"


def test_ranks_that_begin_with_another_checkpoint_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception, match="exit"):
        fit_forked(tmp_path / "run", OtherFacts())
    message = capfd.readouterr().err
    assert "checkpoint: none on rank 0, elsewhere/last.ckpt on rank 1" in message and "settings" not in message
    assert not list(tmp_path.glob("run/checkpoints/*"))


class Hang(lightning.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            time.sleep(10 * PATIENCE)


def test_no_rank_waits_for_ever_for_one_that_hangs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=2))
    begin = time.monotonic()
    with pytest.raises(Exception, match="[Tt]imed out|exit"):
        fit_forked(tmp_path / "run", Hang())
    assert time.monotonic() - begin < PATIENCE
