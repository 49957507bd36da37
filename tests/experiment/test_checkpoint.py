import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch

import core.files
import experiment.checkpoint
from experiment.checkpoint import AtomicCheckpointIO, load_stored, remove_leftovers

OLD, NEW = {"state_dict": {"w": torch.zeros(3)}}, {"state_dict": {"w": torch.ones(3)}}


def weight(path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["w"][0])


def test_the_file_arrives_with_its_folder(tmp_path):
    AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "new/folder/last.ckpt")
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == ["last.ckpt"]
    assert weight(tmp_path / "new/folder/last.ckpt") == 1
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new/folder/last.ckpt").stat().st_mode) == 0o666 & ~umask


def test_the_file_is_on_disk_before_it_gets_its_name_in_its_own_folder(tmp_path, monkeypatch):
    calls, replace, fsync = [], os.replace, os.fsync

    def synced(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def replaced(draft, path):
        calls.append(os.stat(draft).st_size)
        assert os.path.dirname(draft) == str(tmp_path)
        replace(draft, path)

    monkeypatch.setattr(core.files.os, "fsync", synced)
    monkeypatch.setattr(core.files.os, "replace", replaced)
    AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")
    size = (tmp_path / "last.ckpt").stat().st_size
    assert calls == [size, size, "folder"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "last.ckpt")

    def fail(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(experiment.checkpoint.torch, "save", fail)
    with pytest.raises(type(error)):
        AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert weight(tmp_path / "last.ckpt") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_second_name_is_given_at_once(tmp_path, monkeypatch):
    first, second = tmp_path / "epoch.ckpt", tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, second)
    AtomicCheckpointIO().save_checkpoint(NEW, first)
    for _ in range(2):  # also where it is there already
        core.files.atomic_link(first, second)
        assert second.samefile(first) and weight(second) == 1 and len(list(tmp_path.iterdir())) == 2
    first.unlink()
    assert weight(second) == 1


@pytest.mark.parametrize("error", [OSError("no links here"), PermissionError()])
def test_a_copy_where_there_are_no_links_is_whole_or_not_there(tmp_path, monkeypatch, error):
    first, second = tmp_path / "epoch.ckpt", tmp_path / "stage.ckpt"

    def fail(*arguments):
        raise error

    AtomicCheckpointIO().save_checkpoint(NEW, first)
    monkeypatch.setattr(core.files.os, "link", fail)
    with monkeypatch.context() as full_disk, pytest.raises(ZeroDivisionError):
        full_disk.setattr(core.files.os, "fsync", lambda descriptor: 1 / 0)
        core.files.atomic_link(first, second)
    assert [file.name for file in tmp_path.iterdir()] == ["epoch.ckpt"]
    core.files.atomic_link(first, second)
    assert second.read_bytes() == first.read_bytes() and not second.samefile(first)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("through", [str, Path])
def test_a_checkpoint_that_was_read_is_handed_over_once(tmp_path, through):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(NEW, file)
    stored = load_stored(file)
    assert stored.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    plugin = AtomicCheckpointIO(stored)
    assert plugin.load_checkpoint(through(file)) is stored.checkpoint
    again = plugin.load_checkpoint(through(file))
    assert again is not stored.checkpoint and torch.equal(again["state_dict"]["w"], torch.ones(3))
    AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "other.ckpt")
    assert AtomicCheckpointIO(stored).load_checkpoint(tmp_path / "other.ckpt")["state_dict"]["w"][0] == 0


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    AtomicCheckpointIO().save_checkpoint(OLD, tmp_path / "epoch.ckpt")
    (tmp_path / "last.ckpt").symlink_to("epoch.ckpt")
    AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert weight(tmp_path / "epoch.ckpt") == 0 and weight(tmp_path / "last.ckpt") == 1
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_leftovers_go_and_checkpoints_stay(tmp_path):
    for folder in ("checkpoints", "images"):
        (tmp_path / folder).mkdir()
    kept = ["checkpoints/last.ckpt", "checkpoints/epoch_0003.ckpt", "images/samples_0003.png", "metrics.csv"]
    drafts = ["checkpoints/last.ckpt.draft", "checkpoints/epoch_0004.ckpt.draft", "images/samples_0004.draft"]
    for name in [*kept, *drafts, "hpc_ckpt_2.ckpt"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(kept)
    remove_leftovers(tmp_path / "nowhere")
