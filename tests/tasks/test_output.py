import errno
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import evaluate
from tasks.output import write_film, write_results
from tests.tasks.toys import TASKS, ExactMethod

KEYS = {"num_frames": 4, "options": {"alpha": 1.0}, "frames_per_second": 5}


@pytest.fixture
def animation():
    return OmegaConf.create(
        {
            "task": OmegaConf.load(TASKS / "animate.yaml").task | KEYS,
            "trainer": {"class_path": "lightning.Trainer", "accelerator": "cpu", "logger": False, "barebones": False},
        }
    )


def test_evaluate_writes_frames_also_as_an_animation(tmp_path, capsys, animation):
    evaluate.run_task(Path("x.ckpt"), animation, ExactMethod(), tmp_path)
    frames = [f"frame_000{i}.png" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["animate.json", "animation.gif", "film.mp4", *frames]
    with Image.open(tmp_path / "animation.gif") as animation:
        assert (animation.n_frames, animation.info["loop"], animation.size) == (4, 0, (32, 24))
        for index in range(4):
            animation.seek(index)
            assert animation.info["duration"] == 200
            with Image.open(tmp_path / f"frame_000{index}.png") as frame:
                difference = np.asarray(animation.convert("RGB"), int) - np.asarray(frame, int)
            assert abs(difference).max() <= 1
    assert "animation.gif, film.mp4, 4 frames" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "rate"), [((24, 32), 12.5), ((25, 33), 10), ((7, 12), 50)])
def test_films_play(tmp_path, size, rate):
    """A ramp of brightness in changing tints, which halved color resolution and the codec keep nearly as they are."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size).reshape(2, 1, 1)
    ramp = 0.1 + 0.4 * (x + y)
    frames = [(255 * np.stack([ramp, ramp * i / 8, ramp * (1 - i / 8)], 2)).astype(np.uint8) for i in range(9)]
    write_film(tmp_path / "film.mp4", frames, rate)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(rate) and stream.duration * stream.time_base == Fraction(9) / Fraction(rate)
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert len(shown) == 9 and shown[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for frame, original in zip(shown, frames, strict=True):
        assert abs(frame[: size[0], : size[1]].astype(int) - original).mean() < 6
        assert abs(frame[-1].astype(int) - frame[size[0] - 1]).mean() < 4  # repeated, not black


def test_without_the_film_library_there_is_the_gif_and_a_line(tmp_path, capsys, animation, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    evaluate.run_task(Path("x.ckpt"), animation, ExactMethod(), tmp_path)
    assert (tmp_path / "animation.gif").exists() and not (tmp_path / "film.mp4").exists()
    assert "animation.gif, 4 frames; no film.mp4: ModuleNotFoundError: import of av" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(av, "open", lambda file, *_, **__: Path(file).write_bytes(b"half") and 1 / 0)
    evaluate.run_task(Path("x.ckpt"), animation, ExactMethod(), tmp_path)
    assert not (tmp_path / "film.mp4").exists() and "no film.mp4: ZeroDivisionError" in capsys.readouterr().out


def pictures(number: int) -> dict[str, torch.Tensor]:
    return {f"sample_{i:03d}": torch.full((3, 4, 5), i / number) for i in range(number)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_own_earlier_files_are_replaced_and_no_others(tmp_path):
    folder = tmp_path / "new" / "out"
    described = write_results(folder, "generate", {"task": {"seed": 1}}, pictures(8) | {"sources": torch.arange(3)})
    assert described.endswith("sample_007.png, sources.npz") and len(contents(folder)) == 10
    write_results(folder, "edit", {}, {"00_input": torch.zeros(3, 4, 5)})
    (folder / "sample_900.png").write_bytes(b"by hand")
    write_results(folder, "generate", {"task": {"seed": 2}}, pictures(2))
    names = ["00_input.png", "edit.json", "generate.json", "sample_000.png", "sample_001.png", "sample_900.png"]
    assert sorted(contents(folder)) == names
    manifest = json.loads((folder / "generate.json").read_text())
    assert manifest == {"task": {"seed": 2}, "files": ["sample_000.png", "sample_001.png"]}


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    (tmp_path / "out").mkdir()
    names = ["../outside.png", str(outside), "notes.txt", 3, "a/../../outside.png"]
    for text in (json.dumps({"files": names}), "[", "[]", "{}"):
        (tmp_path / "out/generate.json").write_text(text)
        (tmp_path / "out/notes.txt").write_text("mine")
        write_results(tmp_path / "out", "generate", {}, pictures(1))
        assert outside.exists() and (tmp_path / "out/notes.txt").exists()


class FullDisk:
    """Writes half of the files, then half of one."""

    def __init__(self, save, files):
        self.save, self.files = save, files

    def __call__(self, image, path, **options):
        self.files -= 1
        if self.files < 0:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.save(image, path, **options)


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, files):
    write_results(tmp_path / "old", "generate", {}, pictures(3))
    before = contents(tmp_path / "old")
    failing = FullDisk(Image.Image.save, files)
    monkeypatch.setattr(Image.Image, "save", lambda *arguments, **options: failing(*arguments, **options))
    for folder in ("old", "new"):
        failing.files = files
        with pytest.raises(OSError, match="No space left"):
            write_results(tmp_path / folder, "generate", {}, pictures(5))
    assert contents(tmp_path / "old") == before and not (tmp_path / "new").exists()


def test_a_full_disk_is_no_missing_codec(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.output.write_film", full)
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path / "out", "animate", {}, pictures(3), frames_per_second=5.0)
    assert not (tmp_path / "out").exists()
