"""What Weights & Biases holds of a run, read back from the log and the pictures that an offline run leaves.
"""

import hashlib
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

import train
from modules.fewgan import FewGAN
from modules.ops.noise import image_generators
from tests import test_resume as resume
from tests.wandb_log import content_of, log_of

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH = 16, 20
BATCHES, EPOCHS, BREAK = 4, 8, 3  # batches an epoch; epochs, of which so many come before the interruption
STAGE_ENDS = (1, 3, 5, 7)
SIZES = ["module.epochs_per_stage=2", "module.min_size=8", "module.scale_factor=0.45", "module.num_codes=16",
         "module.code_dim=4", "module.width=8", "module.depth=2", "module.prior_width=8", "module.prior_layers=2",
         "datamodule.samples_per_epoch=8", "datamodule.batch_size=2"]  # fmt: skip


def pictures(log: SimpleNamespace, key: str) -> dict[int, np.ndarray]:
    """Pixels by step of the pictures under a key."""
    rows = [row for row in log.history if key in row]
    files = {row["trainer/global_step"]: row[key]["filenames"] for row in rows}
    assert all(len(names) == 1 for names in files.values()) and len(files) == len(rows)
    return {step: np.asarray(Image.open(log.folder / "files" / name)).astype(int) for step, (name,) in files.items()}


def drawing(seed: int, channels: int) -> np.ndarray:
    """Random bytes [HEIGHT, WIDTH, channels] with the extremes among them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    pixels[0, :2] = [[0] * channels, [255] * channels]
    return pixels


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folder of a gray, an RGBA and an RGB image, and what a viewer on white paper sees of each: [H, W, 3]."""
    folder = tmp_path_factory.mktemp("images")
    gray, rgba, rgb = drawing(1, 1), drawing(2, 4), drawing(3, 3)
    Image.fromarray(gray[..., 0]).save(folder / "a_gray.png")
    Image.fromarray(rgba).save(folder / "b_rgba.png")
    Image.fromarray(rgb).save(folder / "c_rgb.png")
    opacity = rgba[..., 3:] / 255
    return folder, [gray.repeat(3, 2).astype(float), rgba[..., :3] * opacity + 255 * (1 - opacity), rgb.astype(float)]


@contextmanager
def offline(caches: Path) -> Iterator[None]:
    """Inside, W&B stays on this machine; its process begins and ends here, since it reads the environment once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("WANDB_RUN_ID", raising=False)
        for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
            patch.setenv(name, value)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(caches / name))
        wandb.teardown()
        yield
        wandb.finish()
        wandb.teardown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def logs(sources, folder, tmp_path_factory):
    """Offline logs of a training that ended after three of eight epochs, and of its resume."""
    side = tmp_path_factory.mktemp("side")
    for seed in range(3):
        Image.fromarray(drawing(10 + seed, 3)).save(side / f"{seed}.png")
    arguments = ["configs/fewgan.yaml", *SIZES, f"datamodule.root={sources[0]}", f"datamodule.side_root={side}",
             f"datamodule.image_size=[{HEIGHT},{WIDTH}]", f"run_dir={folder}", "trainer.accelerator=cpu", "resume=auto",
             "callbacks.metrics.num_images=6", "callbacks.metrics.crops=2", "callbacks.metrics.sample_crops=2",
             "callbacks.metrics.backbone=rand_cnn", "callbacks.progress=null", "callbacks.images.num_images=6",
             "callbacks.images.log_every_n_epochs=5", "callbacks.checkpoint.upload=[stages,last]"]  # fmt: skip
    with offline(tmp_path_factory.mktemp("caches")):
        for more in ([f"trainer.max_epochs={BREAK}"], []):
            assert train.main([*arguments, *more]) == 0
    found = [log_of(path) for path in folder.glob("wandb/offline-run-*")]
    assert len(found) == 2
    return sorted(found, key=lambda log: log.history[0]["trainer/global_step"])


def test_both_parts_are_one_run_whose_id_is_in_the_run_card(logs, folder):
    manifest = json.loads((folder / "run.json").read_text())
    assert {log.run.run_id for log in logs} == {manifest["wandb_id"]} and manifest["wandb_id"].startswith("fewgan-")
    assert all(log.run.display_name == "fewgan" and log.run.resume for log in logs)
    assert len(manifest["starts"]) == 2 and manifest["status"] == "finished"


def test_the_axis_of_scalars_is_iterations_and_goes_on_after_a_resume(logs):
    for log, first, last in zip(logs, (0, BREAK * BATCHES), (BREAK * BATCHES, EPOCHS * BATCHES), strict=True):
        steps = [row["trainer/global_step"] for row in log.history if "train/iteration" in row]
        assert steps == [row["train/iteration"] for row in log.history if "train/iteration" in row]
        assert steps == list(range(first, last))
        assert all(first <= row["trainer/global_step"] < last for row in log.history)


def test_the_stage_is_logged_with_each_iteration(logs):
    rows = [row for log in logs for row in log.history if "train/stage" in row]
    stages = {row["trainer/global_step"]: row["train/stage"] for row in rows}
    assert stages == {step: step // BATCHES // 2 for step in range(EPOCHS * BATCHES)}


def test_pictures_have_one_key_a_kind_and_the_last_iteration_of_their_epoch(logs):
    """The fifth epoch by the interval, the ends of stages, and the last epoch before the interruption."""
    first, second = ({k for row in log.history for k in row if k.startswith("grids/")} for log in logs)
    assert first == {"grids/reconstruction", "grids/conditional"}
    assert second == {*first, "grids/samples", "grids/nearest"}
    for key in first:
        assert [[step + 1 for step in pictures(log, key)] for log in logs] == [
            [BATCHES * (epoch + 1) for epoch in epochs] for epochs in ([1, BREAK - 1], [3, 4, 5, 7])
        ]
    for key in ("grids/samples", "grids/nearest"):
        assert list(pictures(logs[1], key)) == [EPOCHS * BATCHES - 1]


def test_metrics_have_the_last_iteration_of_their_epoch(logs):
    """Distances are taken as soon as there are samples, which is in the last stage."""
    ends = [BATCHES * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    for key, expected in (("val/reconstruction_rmse_scale0", ends), ("val/kd_rand_cnn", ends[-1:])):
        assert [row["trainer/global_step"] for log in logs for row in log.history if key in row] == expected


def merged(log: SimpleNamespace) -> dict[int, dict]:
    """All values by iteration, without W&B's own, such as times."""
    steps: dict[int, dict] = {}
    for row in log.history:
        own = {key: value for key, value in row.items() if not key.startswith("_")}
        steps.setdefault(row["trainer/global_step"], {}).update(own)
    return steps


def test_a_run_that_is_killed_within_an_epoch_repeats_it_with_the_same_numbers(tmp_path):
    """As by `kill -9`, once W&B, which keeps the last seconds in memory, has written what belongs to the begun epoch."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["configs/fewgan.yaml", *SIZES, resume.DRAWN, f"datamodule.image_size=[{HEIGHT},{WIDTH}]", f"run_dir={run}",
             "trainer.accelerator=cpu", "resume=auto", "callbacks.metrics=null", "callbacks.images=null",
             "callbacks.progress=null"]  # fmt: skip

    def is_written() -> bool:
        try:
            return any(BATCHES in merged(content_of(part)) for part in run.glob("wandb/offline-run-*"))
        except (AssertionError, struct.error):  # a part of a block
            return False

    def within_an_epoch(trainer, module) -> None:
        def kill(trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 2):
                resume.until(is_written, resume.PATIENCE, "W&B writes nothing")
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.callbacks.append(resume.Killer(on_train_batch_end=kill))

    with offline(tmp_path / "caches"):
        assert resume.wait(resume.start(arguments, log, within_an_epoch)) == -signal.SIGKILL, log.read_text()
        (killed,) = run.glob("wandb/offline-run-*")
        assert train.main(arguments) == 0
    (again,) = set(run.glob("wandb/offline-run-*")) - {killed}
    first, second = content_of(killed), log_of(again)
    assert first.run.run_id == second.run.run_id
    first, second = merged(first), merged(second)
    assert {BATCHES} <= first.keys() & second.keys() and min(second) == BATCHES
    for step in first.keys() & second.keys():
        assert first[step] == second[step]
    assert first.keys() | second.keys() == set(range(EPOCHS * BATCHES))


def test_pictures_show_gray_transparent_and_colored_images_as_they_are(logs, sources):
    """Above each reconstruction stands its source, byte by byte; transparency lies over white, rounded either way."""
    for log in logs:
        for picture in pictures(log, "grids/reconstruction").values():
            assert picture.shape == (2 * HEIGHT + 2, 3 * WIDTH + 2 * 2, 3)
            for i, source in enumerate(sources[1]):
                shown = picture[:HEIGHT, i * (WIDTH + 2) : i * (WIDTH + 2) + WIDTH]
                assert abs(shown - source).max() <= (1 if i == 1 else 0)


def test_pictures_show_what_the_model_makes_from_minus_one_to_one(logs, folder):
    """By the checkpoint alone, without the code that makes pictures."""
    module = FewGAN.load_from_checkpoint(folder / "checkpoints/last.ckpt", map_location="cpu").eval()
    with torch.no_grad(), image_generators(0, range(6)):  # the seed of base.yaml
        samples = module.sample(6)
    assert samples.min() < -0.2 and samples.max() > 0.2
    (picture,) = pictures(logs[1], "grids/samples").values()
    for i, sample in enumerate(samples):
        top, left = i // 3 * (HEIGHT + 2), i % 3 * (WIDTH + 2)
        expected = (sample.double().permute(1, 2, 0).numpy() + 1) * 127.5
        assert abs(picture[top : top + HEIGHT, left : left + WIDTH] - expected).max() <= 0.51


def test_the_run_holds_configuration_commit_data_and_size(logs, folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    module = FewGAN(**checkpoint["hyper_parameters"])
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert {key: logs[1].config[key] for key in config} == config
    run = logs[1].config["run"]
    assert (run["git"] or {"commit": ""})["commit"] == git.stdout.strip()
    assert run["data"] == checkpoint["ImageDataModule"]["fingerprints"] and len(run["data"]) == 3
    assert run["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert run["num_stages"] == len(STAGE_ENDS) and run["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_lineage_of_a_resume_is_in_the_run(logs):
    (parent,) = logs[1].config["run"]["lineage"]
    assert logs[0].config["run"]["lineage"] == []
    assert parent["kind"] == "resume" and parent["path"].endswith(".ckpt") and len(parent["sha256"]) == 64
    assert parent["wandb_id"] == logs[0].run.run_id and parent["iteration"] == BREAK * BATCHES


def test_checkpoints_are_artifacts_by_stage_and_as_the_last(logs, folder):
    artifacts = [artifact for log in logs for artifact in log.artifacts]
    assert {artifact.name for artifact in artifacts} == {f"model-{logs[0].run.run_id}"}
    aliases = [[alias for alias in artifact.aliases if alias != "latest"] for artifact in artifacts]
    kinds = [next(alias for alias in names if "sha" not in alias) for names in aliases]
    assert kinds == ["stage-0", "last", "stage-1", "stage-2", "stage-3", "last"]
    for artifact, names in zip(artifacts, aliases, strict=True):
        (entry,) = artifact.manifest.contents
        content = Path(entry.local_path).read_bytes()
        assert f"sha256-{hashlib.sha256(content).hexdigest()[:16]}" in names
        if "last" not in names:  # it is replaced by the second part's
            assert content == (folder / "checkpoints" / entry.path).read_bytes()
