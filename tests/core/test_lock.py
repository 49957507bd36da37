import os
import signal

import pytest

from core.errors import UserError
from core.lock import lock_folder, release_locks, sign_lock


@pytest.fixture(autouse=True)
def released():
    yield
    release_locks()


def in_child(function) -> int:
    """Exit code of a forked child: what the function returns."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_locked(folder) -> int:
    try:
        lock_folder(folder)
    except UserError:
        return 1
    return 0


def test_another_process_is_refused_with_the_holders_name(tmp_path):
    sign_lock(lock_folder(tmp_path))
    assert lock_folder(tmp_path) is lock_folder(tmp_path)

    def child() -> int:
        with pytest.raises(UserError, match=rf"is in use by process {os.getppid()} on \S+\. Wait"):
            lock_folder(tmp_path)
        return 0

    assert in_child(child) == 0
    assert in_child(lambda: is_locked(tmp_path)) == 1
    release_locks()
    assert in_child(lambda: is_locked(tmp_path)) == 0


def test_names_are_locks_of_their_own(tmp_path):
    lock_folder(tmp_path, "sweep.lock")
    assert in_child(lambda: is_locked(tmp_path)) == 0


def test_a_killed_holder_leaves_no_lock(tmp_path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock_folder(tmp_path)
        os.write(write, b"x")
        signal.pause()
    os.read(read, 1)
    assert is_locked(tmp_path) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert is_locked(tmp_path) == 0


def test_forked_processes_hold_the_lock_as_long_as_one_lives(tmp_path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # holds, forks a rank, and is killed
        lock_folder(tmp_path)
        rank = os.fork()
        if rank == 0:
            signal.pause()
        os.write(write, str(rank).encode())
        signal.pause()
    rank = int(os.read(read, 20))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert is_locked(tmp_path) == 1
    os.kill(rank, signal.SIGKILL)
    lock_folder(tmp_path, wait=True)


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no locks available")

    monkeypatch.setattr("core.lock.fcntl.flock", fail)
    assert in_child(lambda: is_locked(tmp_path)) == 0
