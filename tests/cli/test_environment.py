import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cli.command import StopSignals
from cli.environment import configure_openmp, cpu_quota, use_short_temporary_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("3:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("3:cpu:/a", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ("5:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, None),
        ("nonsense", {}, None),
    ],
)
def test_quotas_of_control_groups(tmp_path, groups, files, expected):
    (tmp_path / "groups").write_text(groups + "\n")
    for name, text in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert cpu_quota(str(tmp_path / "groups"), str(tmp_path / "root")) == expected


def test_no_control_groups():
    assert cpu_quota("/nowhere", "/nowhere") is None


@pytest.mark.parametrize(
    ("quota", "cores", "environment", "threads"),
    [(None, 4, {}, None), (2.5, 4, {}, "2"), (0.5, 4, {}, "1"), (8.0, 4, {}, None), (2.0, 4, {"OMP_NUM_THREADS": "3"}, "3")],
)
def test_threads_respect_the_quota_and_the_user(monkeypatch, quota, cores, environment, threads):
    monkeypatch.setattr("cli.environment.cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    configure_openmp(environment)
    assert environment.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0"}),
    ],
)
def test_threads_sleep_unless_the_user_decided(monkeypatch, chosen, expected):
    monkeypatch.setattr("cli.environment.cpu_quota", lambda: None)
    configure_openmp(environment := dict(chosen))
    assert environment == expected


@pytest.mark.parametrize("length", [20, 110])
def test_sockets_fit_into_the_temporary_folder(tmp_path, monkeypatch, length):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * length)
    use_short_temporary_folder()
    assert len(tempfile.gettempdir()) == min(length + 1, len("/tmp") if length > 70 else length + 1)


LOADER = """
import sys; sys.path.insert(0, {root!r})
from cli.environment import use_short_temporary_folder
use_short_temporary_folder()
import torch
from torch.utils.data import DataLoader
print(sum(len(batch) for batch in DataLoader(torch.zeros(8, 3), 2, num_workers=2)))
"""


def test_workers_hand_over_in_a_temporary_folder_with_a_long_path(tmp_path):
    folder = tmp_path / ("t" * 110)
    folder.mkdir()
    result = subprocess.run([sys.executable, "-c", LOADER.format(root=str(ROOT))], capture_output=True, text=True, timeout=100,
                            env={**os.environ, "TMPDIR": str(folder)})  # fmt: skip
    assert result.stdout == "8\n", result.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_block_with_one_line(signum, capsys):
    with StopSignals() as stop:
        os.kill(os.getpid(), signum)
        time.sleep(10)
    assert stop.exit_code == 128 + signum
    assert capsys.readouterr().err == f"Ended by {signum.name} (exit code {128 + signum}).\n"


def test_a_hang_up_is_ignored_under_nohup(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.exit_code == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
