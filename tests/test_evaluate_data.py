"""Which images evaluate.py measures against: those of the training, found again, or others, and then it says so."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import train

ROOT = Path(__file__).parent.parent
NAME = "caf\udce9.png"  # bytes that are not UTF-8
TINY = ["datamodule.image_size=[16,20]", "module.min_size=8", "callbacks.images=null", "logger.wandb=null",
        "trainer.accelerator=cpu", "callbacks.metrics.num_images=8", "callbacks.metrics.metrics=[nearest_psnr]"]  # fmt: skip


def photos(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    for index, name in enumerate([NAME, "b.png", "c.png"]):
        pixels = np.random.default_rng(seed + index).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a training with a relative root."""
    home = tmp_path_factory.mktemp("home")
    photos(home / "photos/birds", 0)
    before = os.getcwd()
    os.chdir(home)
    arguments = [str(ROOT / "configs/gpnn.yaml"), "datamodule.root=photos/birds", "run_dir=run", *TINY]
    assert train.main(arguments) == 0
    os.chdir(before)
    return home


@pytest.fixture
def birds(home: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of the training's images, as it was again afterwards."""
    folder = home / "photos/birds"
    shutil.copytree(folder, tmp_path / "saved")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "saved", folder)


def measured(checkpoint: Path, out: Path, recwarn: pytest.WarningsRecorder, *more: str) -> tuple[dict, list[str]]:
    """metrics.json, and the warnings about images."""
    recwarn.clear()
    assert evaluate.main([str(checkpoint), f"out={out}", "trainer.accelerator=cpu", *more]) == 0
    lines = [str(warning.message) for warning in recwarn.list]
    return json.loads((out / "metrics.json").read_text()), [line for line in lines if "images of the training" in line]


def test_relative_roots_are_found_from_anywhere(home: Path, tmp_path: Path, monkeypatch, recwarn) -> None:
    """Also where another folder has the same relative name; names that are not UTF-8 are written readably."""
    photos(tmp_path / "photos/birds", 50)
    monkeypatch.chdir(tmp_path)
    results, lines = measured(home / "run/checkpoints/last.ckpt", tmp_path / "out", recwarn)
    assert lines == [] and "training image" in results["verdict"]["line"]
    assert results["protocol"]["reference_names"] == sorted(["caf\\xe9.png", "b.png", "c.png"])
    assert json.loads((home / "run/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("change", ["replaced", "added", "another root", "moved away"])
def test_other_images_are_named_with_both_fingerprints(
    change: str, home: Path, birds: Path, tmp_path: Path, monkeypatch, recwarn
) -> None:
    other, more = photos(tmp_path / "photos/birds", 90), []
    monkeypatch.chdir(tmp_path)
    if change in ("replaced", "added"):
        shutil.copy(other / "b.png", birds / ("b.png" if change == "replaced" else "d.png"))
    elif change == "another root":
        more = [f"datamodule.root={other}"]
    else:
        shutil.rmtree(birds)  # then the relative root is what the working directory has of that name
    results, lines = measured(home / "run/checkpoints/last.ckpt", tmp_path / "out", recwarn, *more)
    (line,) = lines
    stored = json.loads((home / "run/run.json").read_text())["data"]["image"]
    assert "set image" in line and stored[:12] in line and results["protocol"]["reference"][:12] in line
    assert stored != results["protocol"]["reference"]
    assert "training image" not in results["verdict"]["line"] and "reference image" in results["verdict"]["line"]
    assert any(stored[:12] in note for note in results["protocol"]["notes"])
