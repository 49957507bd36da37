import os
import stat

import pytest
import torch

import core.files
import experiment.checkpoint
from experiment.checkpoint import AtomicCheckpointIO, copy_checkpoint, remove_leftovers

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

    def fail(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(experiment.checkpoint.torch, "save", fail)
    with pytest.raises(type(error)):
        AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert weight(tmp_path / "last.ckpt") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_copy_is_whole_or_not_there(tmp_path, monkeypatch):
    AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "epoch.ckpt")
    monkeypatch.setattr(core.files.os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy_checkpoint(tmp_path / "epoch.ckpt", tmp_path / "stage.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["epoch.ckpt"]
    monkeypatch.undo()
    copy_checkpoint(tmp_path / "epoch.ckpt", tmp_path / "stage.ckpt")
    assert (tmp_path / "stage.ckpt").read_bytes() == (tmp_path / "epoch.ckpt").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


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
