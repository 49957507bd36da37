"""train.py as a user calls it."""

import io
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from PIL import Image

import train
from cli.environment import protect_output
from cli.loader import load_config
from core.errors import UserError
from experiment.ranks import check_port
from tests.modules.style_source import TINY, source_file

ROOT = Path(__file__).parent.parent
STARTER = ["datamodule.image_size=[48,64]", "datamodule.samples_per_epoch=4", "datamodule.batch_size=2",
           "module.epochs_per_stage=1", "module.width=8", "module.num_codes=16", "trainer.accelerator=cpu",
           "callbacks.images.num_images=4", "callbacks.metrics.num_images=4",
           "callbacks.metrics.metrics=[pixel_diversity]"]  # fmt: skip
DRAWN = "datamodule.class_path=datamodules.synthetic.SyntheticDataModule"
QUIET = ["logger.wandb=null", "callbacks.metrics=null", "callbacks.images=null"]


def command_line(run_dir: Path, *more: str) -> list[str]:
    return ["configs/fewgan.yaml", *STARTER, f"run_dir={run_dir}", *more]


def command(run_dir: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    """`python train.py …` in a process of its own, with no W&B setting or key but those given."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PL_"))}
    environment = {**inherited, "NETRC": os.devnull, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "train.py", *command_line(run_dir, *more)], cwd=ROOT, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


def fails(capsys, arguments: list[str]) -> str:
    """The message of a call that is refused."""
    assert train.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "Traceback" not in output.err
    return output.err


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and output of one whole training on the starter images, offline because nothing says otherwise."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = command(folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_leaves_what_it_promises(run):
    folder, result = run
    epochs = 5  # scales of 48 × 64 and the prior, one epoch each
    promised = {"config.yaml", "run.json", "metrics.csv", "checkpoints", "images", "wandb"}
    assert promised <= {path.name for path in folder.iterdir()}
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["epoch_0004.ckpt", "last.ckpt", *(f"stage_{stage}.ckpt" for stage in range(epochs))]
    assert len((folder / "metrics.csv").read_text().splitlines()) > 2 * epochs
    pictures = {path.name for path in (folder / "images").iterdir()}
    assert {"samples_0004.png", "reconstruction_0004.png", "conditional_0000.png"} <= pictures
    assert f"{folder}/checkpoints/last.ckpt" in result.stdout
    assert all(f"epoch {epoch} " in result.stdout for epoch in range(epochs)) and "prior" in result.stdout


def test_without_a_key_the_run_is_offline_and_says_so_once(run):
    folder, result = run
    assert result.stdout.count("WANDB_MODE=offline") == 1
    manifest = json.loads((folder / "run.json").read_text())
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert len(list(folder.glob(f"wandb/offline-run-*/run-{manifest['wandb_id']}.wandb"))) == 1


def test_wandb_gets_the_pixels_of_the_pictures(run):
    folder, _ = run
    for kind in ("samples", "reconstruction", "conditional"):
        logged = [np.asarray(Image.open(file)) for file in folder.glob(f"wandb/*/files/media/images/grids/{kind}_*.png")]
        kept = np.asarray(Image.open(folder / f"images/{kind}_0004.png"))
        assert any(np.array_equal(kept, picture) for picture in logged)


def test_the_configuration_is_the_same_in_folder_and_checkpoint(run):
    folder, _ = run
    expected = load_config(command_line(folder))
    assert yaml.safe_load((folder / "config.yaml").read_text()) == expected
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["config"] == expected


def test_a_used_folder_is_refused_and_stays_as_it_is(run, capsys):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    message = fails(capsys, command_line(folder))
    assert str(folder) in message and "resume=auto" in message and "run_name" in message
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resume_auto_goes_on_where_a_run_ended(tmp_path, capsys):
    """Two epochs, then the rest: as one run, in weights and in the table."""
    more = [DRAWN, *QUIET]
    assert train.main(command_line(tmp_path / "straight", *more)) == 0
    assert train.main(command_line(tmp_path / "parts", *more, "trainer.max_epochs=2", "resume=auto")) == 0
    assert train.main(command_line(tmp_path / "parts", *more, "resume=auto")) == 0
    ends = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("straight", "parts")]
    assert ends[0]["iteration"] == ends[1]["iteration"] and ends[0]["epoch"] == ends[1]["epoch"]
    assert all(torch.equal(tensor, ends[1]["state_dict"][key]) for key, tensor in ends[0]["state_dict"].items())
    assert (tmp_path / "straight/metrics.csv").read_text() == (tmp_path / "parts/metrics.csv").read_text()
    assert not list((tmp_path / "parts/checkpoints").glob("*-v1*"))


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path):
    result = command(tmp_path / "run", "trainer.devices=2", "datamodule.samples_per_epoch=4", "datamodule.batch_size=1",
                     "callbacks.metrics=null")  # fmt: skip
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert [path.name.partition("fewgan")[1:] for path in (tmp_path / "run/wandb").glob("offline-run-*")] == [
        manifest["wandb_id"].partition("fewgan")[1:]
    ]
    assert manifest["world_size"] == 2 and manifest["status"] == "finished" and len(manifest["starts"]) == 1
    assert result.stdout.count("WANDB_MODE=offline") == result.stdout.count("Done.") == 1
    assert len([line for line in result.stdout.splitlines() if line.startswith("epoch ")]) == 5
    assert len(list((tmp_path / "run/images").glob("conditional_*.png"))) == 5
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["images_seen"] == 5 * 4


# --- mistakes: a message, exit code 2, and no folder --------------------------------------------------------------------


def broken_image(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return f"datamodule.root={folder}"


def empty(folder: Path) -> str:
    folder.mkdir()
    return f"datamodule.root={folder}"


def code(folder: Path) -> str:
    torch.save({"state_dict": {}, "loops": os.system}, folder.with_suffix(".ckpt"))
    return f"resume={folder.with_suffix('.ckpt')}"


def tiny_image(folder: Path) -> str:
    folder.mkdir()
    Image.new("RGB", (100, 75)).save(folder / "a.png")
    Image.new("RGB", (16, 12)).save(folder / "b.png")
    return f"datamodule.root={folder}"


EARLY_STOPPING = "callbacks.stop={class_path: lightning.pytorch.callbacks.EarlyStopping, monitor: val/kd}"
MISTAKES = {
    "file below the coarsest scale": (tiny_image, ["b.png", "coarsest scale (24, 32)"]),
    "missing folder": (lambda folder: f"datamodule.root={folder}", ["data"]),
    "empty folder": (empty, ["data"]),
    "broken image": (broken_image, ["a.png"]),
    "unknown key": (lambda _: "module.lr_gg=1", ["module.lr_gg", "FewGAN", "lr_g"]),
    "unknown callback key": (lambda _: "callbacks.images.num=1", ["callbacks.images.num", "ImageGrid", "num_images"]),
    "wrong type": (lambda _: "module.width=wide", ["module.width", "int", "wide"]),
    "wrong trainer": (lambda _: "trainer.precision=half", ["trainer.precision", "half"]),
    "clipped gradients": (lambda _: "trainer.gradient_clip_val=1", ["trainer.gradient_clip_val: 1", "module.clip_norm"]),
    "accumulated gradients": (lambda _: "trainer.accumulate_grad_batches=2", ["trainer.accumulate_grad_batches: 2"]),
    "double precision": (lambda _: "trainer.precision=64-true", ["trainer.precision: '64-true'", "32-true"]),
    "monitor of nothing": (lambda _: "callbacks.checkpoint.monitor=val_loss", ["StageCheckpoint: monitor=val_loss", "val/kd"]),
    "monitor of another backbone": (lambda _: EARLY_STOPPING, ["EarlyStopping: monitor=val/kd", "not logged"]),
    "no such device": (lambda _: "trainer.accelerator=abacus", ["trainer: ", "abacus"]),
    "no such checkpoints": (lambda _: "callbacks.checkpoint.save_top_k=-3", ["callbacks.checkpoint.save_top_k: ", "-3"]),
    "image below the coarsest scale": (lambda _: "datamodule.image_size=[8,8]", ["module", "8"]),
    "epochs for other scales": (lambda _: "module.epochs_per_stage=[1,2]", ["module", "epochs_per_stage", "[1, 2]"]),
    "missing checkpoint": (lambda folder: f"resume={folder}.ckpt", ["data.ckpt", "no such"]),
    "checkpoint with code": (code, ["data.ckpt", "refused"]),
    "word": (lambda _: "fast", ["fast", "key=value"]),
}


@pytest.mark.parametrize("case", MISTAKES, ids=[name.replace(" ", "-") for name in MISTAKES])
def test_a_mistake_is_reported_before_anything_is_written(case, tmp_path, capsys):
    mistake, parts = MISTAKES[case]
    message = fails(capsys, command_line(tmp_path / "run", mistake(tmp_path / "data")))
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def source_of_another_class(folder: Path) -> Path:
    torch.save({"state_dict": {"vq.encoder.weight": torch.zeros(3)}}, folder / "other.ckpt")
    return folder / "other.ckpt"


SOURCES = {
    "missing file": (lambda folder: folder / "gone.pt", [], ["gone.pt: no such file"]),
    "another class": (source_of_another_class, [], ["other.ckpt: ", "no generator of StyleGAN2"]),
    "another size": (lambda _: source_file(), ["module.z_dim=9"], ["module.z_dim is 9, the source's 8"]),
    "none": (lambda _: "null", [], ["give its checkpoint"]),
}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("case", SOURCES)
def test_a_wrong_source_is_reported_before_anything_is_written(case, dry_run, tmp_path, capsys):
    path, more, parts = SOURCES[case]
    path = path(tmp_path)
    message = fails(capsys, ["configs/tgan.yaml", *TINY, DRAWN, *QUIET, f"run_dir={tmp_path / 'run'}", *more,
                             f"module.source_checkpoint={path}", *(["--dry-run"] if dry_run else [])])  # fmt: skip
    assert message.startswith("error: module.source_checkpoint") and message.count("\n") == 1
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_setting_or_class_is_refused(run, tmp_path, capsys):
    last = run[0] / "checkpoints/last.ckpt"
    message = fails(capsys, command_line(tmp_path / "run", f"resume={last}", "module.width=9"))
    assert str(last) in message and "module.width: 8 → 9" in message
    checkpoint = torch.load(last, weights_only=True)
    torch.save({**checkpoint, "class_path": "modules.other.Other"}, tmp_path / "other.ckpt")
    message = fails(capsys, command_line(tmp_path / "run", f"resume={tmp_path / 'other.ckpt'}"))
    assert "other.ckpt" in message and "modules.other.Other" in message and "modules.fewgan.FewGAN" in message
    assert not (tmp_path / "run").exists()


def test_no_method_is_answered_with_an_example(capsys):
    assert "configs/fewgan.yaml" in fails(capsys, [])


# --- options ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_configuration_and_plan_and_writes_nothing(tmp_path, capsys):
    assert train.main(["--dry-run", *command_line(tmp_path / "run", "module.lr_g=0.125")]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output) == load_config(command_line(tmp_path / "run", "module.lr_g=0.125"))
    assert "# stage" in output and "parameters" in output and "prior" in output
    assert not (tmp_path / "run").exists()


def test_help_comes_without_torch():
    code = "import sys, train; assert train.main(['--help']) == 0; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(word in result.stdout for word in ("configs/fewgan.yaml", "resume=auto", "--dry-run", "trainer.devices=2"))


# --- output -----------------------------------------------------------------------------------------------------------


def test_the_closing_text_names_what_exists_and_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my runs; x"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    assert train.report_end(folder) == 0
    assert capsys.readouterr().out == f"Done. '{folder}' holds checkpoints/, config.yaml.\n"
    (folder / "checkpoints/last.ckpt").write_text("")
    assert train.report_end(folder) == 0
    command = capsys.readouterr().out.splitlines()[1].removeprefix("Measure it: ")
    assert shlex.split(command) == ["python", "evaluate.py", f"{folder}/checkpoints/last.ckpt"]


class BrokenStream(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [BrokenStream(), io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)])
def test_output_never_ends_a_run(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    protect_output()
    print("scale 0 8×10 … fertig", flush=True)
    protect_output()
    assert sys.stdout._stream is stream
    if hasattr(stream, "buffer"):
        assert stream.buffer.getvalue() == rb"scale 0 8\xd710 \u2026 fertig" + b"\n"


@pytest.mark.parametrize("port", ["used", "none", "99999999"])
def test_a_busy_port_is_found_before_anything_is_written(port, tmp_path, monkeypatch, capsys):
    with socket.socket() as used:
        used.bind(("", 0))
        used.listen()
        monkeypatch.setenv("MASTER_PORT", str(used.getsockname()[1]) if port == "used" else port)
        trainer = Trainer(accelerator="cpu", devices=2, logger=False, strategy="ddp_spawn")
        with pytest.raises(UserError, match="MASTER_PORT"):
            check_port(trainer)
    monkeypatch.delenv("MASTER_PORT")
    check_port(trainer)
