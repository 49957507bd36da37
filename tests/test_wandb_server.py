"""Training that logs to a real W&B server."""

import csv
import json
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.test_wandb import BATCHES, BREAK, EPOCHS, SIZES
from tests.wandb_server import COMMAND, PATIENCE, WandbServer, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="openwandb is not installed: make test-all does that"),
]
ARGUMENTS = ["configs/fewgan.yaml", *SIZES, "datamodule.class_path=datamodules.synthetic.SyntheticDataModule",
             "datamodule.image_size=[16,20]", "trainer.accelerator=cpu", "callbacks.metrics=null",
             "callbacks.images.num_images=4", "callbacks.checkpoint.upload=[stages,last]"]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with WandbServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def complete(process) -> str:
    """The output of a training, which has to succeed."""
    output, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, output
    return output


def run_id(run_dir: Path) -> str:
    return json.loads((run_dir / "run.json").read_text())["wandb_id"]


def losses(rows) -> dict[int, float]:
    """Generator loss by iteration, of rows in metrics.csv or at the server."""
    step = "trainer/global_step" if rows and "trainer/global_step" in rows[0] else "step"
    return {int(row[step]): float(row["train/g_loss"]) for row in rows if row.get("train/g_loss")}


def assert_all_is_there(server: WandbServer, run_dir: Path) -> None:
    """Rows, configuration and grids of a run folder are at the server."""
    rows = server.history(run_id(run_dir))
    with (run_dir / "metrics.csv").open(newline="") as file:
        expected = losses(list(csv.DictReader(file)))
    assert losses(rows) == pytest.approx(expected, rel=1e-5) and len(expected) == 6 * BATCHES
    assert {row["train/iteration"] for row in rows if "train/iteration" in row} == set(range(EPOCHS * BATCHES))
    config = server.get(run_id(run_dir))["run"]["config"]
    for key, value in yaml.safe_load((run_dir / "config.yaml").read_text()).items():
        if key != "resume":
            assert config[key]["value"] == value
    grids = [(key.removeprefix("grids/"), row) for row in rows for key in row if key.startswith("grids/")]
    assert {kind for kind, _ in grids} == {"samples", "reconstruction", "conditional"}
    for kind, row in grids:
        (name,) = row[f"grids/{kind}"]["filenames"]
        local = run_dir / f"images/{kind}_{row['trainer/global_step'] // BATCHES:04d}.png"
        assert np.array_equal(Image.open(server.files(run_id(run_dir)) / name), Image.open(local))


def test_an_online_run_and_its_resume_are_one_run_at_the_server(server, tmp_path):
    arguments = [*ARGUMENTS, f"run_dir={tmp_path / 'run'}", "resume=auto"]
    complete(server.train(*arguments, f"trainer.max_epochs={BREAK}"))
    first = run_id(tmp_path / "run")
    assert server.get(first)["run"]["state"] == "finished"
    assert {row["train/iteration"] for row in server.history(first) if "train/iteration" in row} == set(range(BREAK * BATCHES))
    complete(server.train(*arguments))
    assert run_id(tmp_path / "run") == first and server.get(first)["run"]["state"] == "finished"
    assert_all_is_there(server, tmp_path / "run")
    models = server.get(f"{first}/artifacts")["artifacts"]
    assert {(model["name"], model["artifact_type"]) for model in models} == {(f"model-{first}", "model")}
    assert len(models) == 6  # four stages, and the last one of either part


def test_an_offline_run_is_sent_by_wandb_sync(server, tmp_path):
    complete(server.train(*ARGUMENTS, f"run_dir={tmp_path / 'run'}", WANDB_MODE="offline"))
    assert server.history(run_id(tmp_path / "run")) == []
    server.sync(*map(str, (tmp_path / "run/wandb").glob("offline-run-*")))
    assert_all_is_there(server, tmp_path / "run")


def test_a_training_whose_server_goes_away_ends_well_and_loses_nothing(server, tmp_path):
    run_dir = tmp_path / "run"
    process = server.train(*ARGUMENTS, f"run_dir={run_dir}", "logger.wandb.finish_timeout=5")
    try:
        until(lambda: (run_dir / "metrics.csv").exists() or process.poll() is not None, "no row is written", 0.02)
        process.send_signal(signal.SIGSTOP)  # W&B's own process goes on and sends the first rows
        until(lambda: server.history(run_id(run_dir)), "no row arrives")
        server.stop()
        process.send_signal(signal.SIGCONT)
        output = complete(process)
        server.start()
    finally:
        process.kill()
    received = {row["train/iteration"] for row in server.history(run_id(run_dir)) if "train/iteration" in row}
    assert len(received) < EPOCHS * BATCHES  # else the server has missed nothing
    (line,) = [line for line in output.splitlines() if "wandb sync" in line and line.startswith("W&B:")]
    server.sync(*shlex.split(line)[shlex.split(line).index("sync") + 1 :])
    assert_all_is_there(server, run_dir)
