import csv
import math

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.adaptation_curve import AdaptationCurve, read_curve
from datamodules.synthetic import SyntheticDataModule
from metrics.realism import realism_file, train_realism
from modules.base import sampling_mode
from modules.ops.images import image_grid, to_uint8
from modules.tgan import TGAN
from tests.callbacks.test_image_grid import ImageLogger
from tests.metrics.test_realism import drawings
from tests.modules.style_source import build, source_model


class Recorder(ImageLogger):
    """Records the values, too."""

    def __init__(self):
        super().__init__()
        self.values = []

    def log_metrics(self, metrics, step=None):
        self.values.append(metrics)


def curve(**changes):
    return AdaptationCurve(**({"every_n_iterations": 2, "num_images": 6, "backbone": "rand_cnn", "chunk": 4} | changes))


def fit(folder, callbacks, checkpoint=None, max_epochs=-1, logger=False):
    lightning.seed_everything(0, verbose=False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks, num_sanity_val_steps=0,
    )  # fmt: skip
    module = build(TGAN)
    data = SyntheticDataModule([16, 16], batch_size=4, samples_per_epoch=8, num_images=4)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return trainer, module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    classifier = train_realism(drawings(120, True, 0), drawings(120, False, 1), steps=120)
    torch.save(realism_file(classifier, {}), folder / "realism.pt")
    return folder, *fit(folder, [curve(realism=str(folder / "realism.pt"))])


def test_a_row_before_the_first_iteration_then_each_so_many_and_at_the_end(run):
    folder, _, module = run
    rows = read_curve(folder / "curve.csv")
    assert [row["iteration"] for row in rows] == [0, 2, 4] and module.iteration == 4
    for row in rows:
        assert 0 <= row["realism"] <= 1 and row["pairs"] > 0 and row["clusters"] >= 1 and math.isfinite(row["kd"])
        assert "rand_cnn" in row["protocol"] and "6 samples of seed 0" in row["protocol"]
    with (folder / "curve.csv").open() as file:
        assert len(list(csv.reader(file))) == 4


def test_the_grid_shows_source_above_target_of_the_same_latents(run):
    folder, _, module = run
    source = source_model().eval()
    rows = []
    for model in (source, module):
        with sampling_mode(model, 0, range(6)):
            rows.append(model.sample(6))
    pixels = np.asarray(Image.open(folder / "images/adaptation_000004.png"))
    expected = to_uint8(image_grid(torch.cat(rows), 6)).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert Image.open(folder / "curve.png").size == (412, 412)


def test_it_changes_nothing_of_the_training(run, tmp_path):
    plain = fit(tmp_path, [])[1].state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in run[2].state_dict().items())


def test_a_resumed_run_has_the_rows_of_the_straight_one(run, tmp_path):
    classifier = str(run[0] / "realism.pt")
    trainer = fit(tmp_path, [curve(realism=classifier)], max_epochs=1)[0]
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    fit(tmp_path, [curve(realism=classifier)], tmp_path / "part.ckpt")
    tables = []
    for folder in (run[0], tmp_path):
        with (folder / "curve.csv").open() as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    names = [sorted(path.name for path in (folder / "images").iterdir()) for folder in (run[0], tmp_path)]
    assert names[0] == names[1]
    pictures = [(folder / "images/adaptation_000004.png").read_bytes() for folder in (run[0], tmp_path)]
    assert pictures[0] == pictures[1]


def test_without_a_classifier_realism_is_unknown_and_loggers_get_the_rest(tmp_path):
    fit(tmp_path, [curve()], logger=(logger := Recorder()))
    rows = read_curve(tmp_path / "curve.csv")
    assert all(math.isnan(row["realism"]) for row in rows)
    logged = [values for values in logger.values if "curve/pairs" in values]
    assert [values["iteration"] for values in logged] == [0, 2, 4] and not any("curve/realism" in values for values in logged)
    assert [values["curve/pairs"] for values in logged] == pytest.approx([row["pairs"] for row in rows], rel=1e-4)
    assert [key for key, *_ in logger.images] == ["curve/adaptation", "curve/curve"] * 3
