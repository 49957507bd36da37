"""evaluate.py as a user calls it, on a short FewGAN run with drawn images."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from modules.fewgan import FewGAN

ROOT = Path(__file__).parent.parent
QUICK = ["callbacks.metrics.num_images=6", "callbacks.metrics.crops=2", "callbacks.metrics.backbone=rand_cnn"]
CPU = "trainer.accelerator=cpu"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training; tests that write beside it use a copy."""
    folder = tmp_path_factory.mktemp("runs") / "drawn"
    arguments = ["datamodule.class_path=datamodules.synthetic.SyntheticDataModule", "datamodule.image_size=[16,20]"]
    arguments += [
        "datamodule.batch_size=2",
        "datamodule.samples_per_epoch=4",
        "module.epochs_per_stage=1",
        "module.min_size=8",
    ]
    arguments += [
        "module.scale_factor=0.45",
        "module.num_codes=16",
        "module.width=8",
        "module.depth=2",
        "module.prior_width=8",
    ]
    arguments += ["logger.wandb=null", "callbacks.images=null", "callbacks.checkpoint.save_top_k=-1", "run_name=drawn"]
    arguments += [f"run_dir={folder}", CPU]
    before = os.getcwd()
    os.chdir(ROOT)
    assert train.main(["configs/fewgan.yaml", *arguments, *QUICK]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "moved"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """The one-line message of a call that is refused; nothing was written."""

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert evaluate.main([str(word) for word in arguments]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ") and sorted(tmp_path.rglob("*")) == before
        return message

    return call


def measured(*arguments: object) -> int:
    return evaluate.main([str(word) for word in (*arguments, CPU, *QUICK)])


def changed(run: Path, path: Path, **changes: object) -> Path:
    """A checkpoint with changed entries; None takes a key out."""
    changed = torch.load(run / "checkpoints/last.ckpt", weights_only=True) | changes
    torch.save({key: value for key, value in changed.items() if value is not None}, path)
    return path


def test_measures_next_to_the_run_wherever_it_is(copied: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = copied / "checkpoints/last.ckpt"
    assert measured(checkpoint) == 0
    stored = json.loads((copied / "metrics.json").read_text())
    trained = torch.load(checkpoint, weights_only=True)
    assert (stored["iteration"], stored["images_seen"]) == (trained["iteration"], trained["images_seen"]) != (0, 0)
    assert (stored["run_name"], stored["class_path"]) == ("drawn", "modules.fewgan.FewGAN")
    assert stored["verdict"]["line"] and (copied / "nearest.png").exists()
    assert stored["checkpoint"] == str(checkpoint)
    assert {"kd_rand_cnn", "kd_rand_cnn_crops", "fd_rand_cnn", "pixel_diversity", "source_share_min"} <= stored[
        "metrics"
    ].keys()
    assert set(stored["reference_points"]) == {"split_half", "copies", "side", "random_codes"}
    assert "prior_bits_per_code" in stored["diagnostics"] and "codes_used" in stored["diagnostics"]
    assert stored["protocol"]["num_generated"] == 6 and stored["protocol"]["num_real"] == 3
    printed = capsys.readouterr().out
    assert all(key in printed for key in ("kd_rand_cnn", "random_codes", "codes_used", str(copied / "metrics.json")))


def test_a_full_disk_leaves_the_earlier_measurement(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = copied / "checkpoints/last.ckpt"
    before = sorted(copied.rglob("*"))
    monkeypatch.setattr("tasks.output.write_images", full)  # metrics.json is complete by then
    assert measured(checkpoint) == 2 and sorted(copied.rglob("*")) == before
    (copied / "metrics.json").write_text("earlier")
    assert measured(checkpoint) == 2 and (copied / "metrics.json").read_text() == "earlier"
    assert not (copied / "nearest.png").exists()


def test_names_that_are_not_utf8_are_refused_before_anything(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = tmp_path / os.fsdecode(b"a\xe9.png")
    Image.new("RGB", (20, 16), "red").save(str(image))
    task = ["configs/tasks/conditional.yaml", f"task.image={image}"]
    for arguments in (task, [f"out={image}"], [f"datamodule.root={image}"]):
        assert evaluate.main(["nowhere.ckpt", *arguments, CPU]) == 2
        assert "a\\udce9.png' is not UTF-8; a name in a configuration has to be: rename the file." in capsys.readouterr().err


def test_again_the_same_values(run: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever happened before
        assert measured(run / "checkpoints/last.ckpt", f"out={tmp_path / name}") == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second"))
    assert first == second


def test_values_logged_in_training_and_measured_afterwards_agree(run: Path, tmp_path: Path) -> None:
    """Of the prior alone the last validation knew less: it came before the end of the last epoch."""
    assert measured(run / "checkpoints/last.ckpt", f"out={tmp_path}") == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = header.index("val/reconstruction_rmse_scale0")
    logged = [float(row[column]) for row in rows if row[column]]
    assert logged[-1] == pytest.approx(stored["diagnostics"]["reconstruction_rmse_scale0"], rel=1e-4)


def test_several_checkpoints_get_folders_of_their_own(run: Path, copied: Path, tmp_path: Path) -> None:
    epochs = sorted(copied.glob("checkpoints/epoch_*.ckpt"))[-2:]
    assert measured(*epochs) == 0
    assert [(copied / path.stem / "metrics.json").exists() for path in epochs] == [True, True]
    assert not (copied / "metrics.json").exists()
    other = copied / "other.ckpt"
    config = torch.load(epochs[-1], weights_only=True)["config"] | {"run_name": "other"}
    changed(run, other, config=config)
    assert measured(epochs[-1], other, f"out={tmp_path / 'both'}") == 0
    assert (tmp_path / "both/drawn/metrics.json").exists() and (tmp_path / "both/other/metrics.json").exists()


def test_results_of_two_checkpoints_are_not_mixed_up(
    run: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "both"
    assert measured(run / "checkpoints/last.ckpt", copied / "checkpoints/last.ckpt", f"out={out}") == 2
    assert str(out / "drawn") in capsys.readouterr().err


def test_samples_are_not_measured_before_there_is_a_prior(run: Path, tmp_path: Path) -> None:
    assert measured(run / "checkpoints/epoch_0000.ckpt", f"out={tmp_path}") == 0
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["metrics"] == stored["reference_points"] == {} and "codes_used" in stored["diagnostics"]


def test_other_images_can_be_the_reference(run: Path, tmp_path: Path) -> None:
    assert measured(run / "checkpoints/last.ckpt", f"out={tmp_path}", "datamodule.num_images=2") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["num_real"] == 2


def test_a_task_writes_pictures_that_depend_on_its_seed_alone(run: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        arguments = ["configs/tasks/generate.yaml", "task.num_images=3", "task.size=[24,32]", f"task.seed={seed}"]
        assert evaluate.main([str(run / "checkpoints/last.ckpt"), *arguments, f"out={tmp_path / name}", CPU]) == 0
    manifest, *names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert manifest == "generate.json" and len(names) == 3 and all(name.endswith(".png") for name in names)
    written = json.loads((tmp_path / "a" / manifest).read_text())
    assert written["files"] == names and written["task"]["seed"] == 3
    assert written["checkpoint"] == str(run / "checkpoints/last.ckpt")
    pictures = {n: [np.asarray(Image.open(tmp_path / n / name)) for name in names] for n in "abc"}
    assert all(picture.shape == (24, 32, 3) and picture.dtype == np.uint8 for picture in pictures["a"])
    assert all(np.array_equal(x, y) for x, y in zip(pictures["a"], pictures["b"], strict=True))
    assert not np.array_equal(pictures["a"], pictures["c"])


def test_a_task_writes_next_to_the_run_and_needs_no_data(copied: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["config"].pop("datamodule")
    torch.save(checkpoint, copied / "checkpoints/bare.ckpt")
    arguments = ["configs/tasks/generate.yaml", "task.num_images=1", CPU]
    assert evaluate.main([str(copied / "checkpoints/bare.ckpt"), *arguments]) == 0
    assert len(list((copied / "tasks/generate").glob("*.png"))) == 1


def test_a_file_of_weights_needs_the_data_named(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    bare = changed(run, tmp_path / "bare.ckpt", config=None, loops=None, optimizer_states=None)
    message = refused(bare, CPU)
    assert "datamodule.class_path" in message and "datamodule.root" in message
    arguments = ["datamodule.class_path=datamodules.synthetic.SyntheticDataModule", "datamodule.image_size=[16,20]"]
    assert measured(bare, *arguments) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["run_name"] == "bare"


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("echo ran > ran.txt",)


def test_a_file_with_code_in_it_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    torch.save({"state_dict": {}, "class_path": "modules.fewgan.FewGAN", "extra": Code()}, tmp_path / "code.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Code()))
    assert "code" in refused(tmp_path / "code.ckpt")
    refused(tmp_path / "plain.ckpt")
    assert not Path("ran.txt").exists()


def test_files_of_other_origin_are_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert "text.ckpt" in refused(tmp_path / "text.ckpt")
    for class_path, part in {
        "torch.nn.Linear": "torch.nn.Linear",
        "modules.nowhere.Method": "modules.nowhere",
        "modules.fewgan.FewGun": "FewGun",
        "modules.networks.patch_gan.PatchCritic": "PatchCritic",
    }.items():
        assert part in refused(changed(run, tmp_path / "foreign.ckpt", class_path=class_path))
    assert "class_path" in refused(changed(run, tmp_path / "foreign.ckpt", class_path=None))
    smaller = FewGAN([16, 20], min_size=8, scale_factor=0.45, width=4)
    assert "does not fit" in refused(changed(run, tmp_path / "foreign.ckpt", state_dict=dict(smaller.state_dict())))
    odd = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"] | {"colour": 1}
    assert "colour" in refused(changed(run, tmp_path / "foreign.ckpt", hyper_parameters=odd))


def test_mistakes_in_words_are_explained(copied: Path, refused: Callable[..., str]) -> None:
    checkpoint = copied / "checkpoints/last.ckpt"
    assert "last.ckpt" in refused(copied / "checkpoints/lst.ckpt")
    assert "no checkpoint" in refused("out=x") and "no checkpoint" in refused()
    assert "module.width: fixed by the checkpoint" in refused(checkpoint, "module.width=3")
    assert "trainer.devices" in refused(checkpoint, "trainer.device=2")
    assert "num_images" in refused(checkpoint, CPU, "callbacks.metrics.num_image=3")
    assert "kd_crops" in refused(checkpoint, CPU, "callbacks.metrics.metrics=[kd_crop]")
    assert "nowhere" in refused(checkpoint, CPU, *QUICK[:2], "callbacks.metrics.weights=nowhere.pth")
    assert "configs/tasks/generate.yaml" in refused(checkpoint, "configs/tasks/generat.yaml")
    assert "configs/tasks/generate.yaml" in refused(checkpoint, "task.num_images=3")
    assert "num_images" in refused(checkpoint, "configs/tasks/generate.yaml", "task.nu_images=3")
    assert "[16, 20]" in refused(checkpoint, CPU, *QUICK, "datamodule.image_size=[24,32]")
    assert "trainer" in refused(checkpoint, "trainer.accelerator=abacus")
    assert "--fast" in refused(checkpoint, "--fast")


def test_help_needs_no_torch() -> None:
    code = "import sys, evaluate; assert evaluate.main(['--help']) == 0; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "CHECKPOINT" in result.stdout, result.stderr


def command(*arguments: object) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    return subprocess.run(
        [sys.executable, "evaluate.py", *map(str, (*arguments, CPU, *QUICK))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_measure_the_same(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/last.ckpt"
    assert measured(checkpoint, f"out={tmp_path / 'one'}", "callbacks.metrics.chunk=2") == 0
    result = command(checkpoint, f"out={tmp_path / 'two'}", "callbacks.metrics.chunk=2", "trainer.devices=2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("metrics.json") == 1
    cards = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert cards[0]["metrics"] == pytest.approx(cards[1]["metrics"], rel=1e-4)
    assert cards[0]["protocol"] == cards[1]["protocol"]
