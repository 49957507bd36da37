import json
import math
import resource
from collections.abc import Callable, Mapping
from multiprocessing import Queue, get_context
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import sample_metrics
from callbacks.sample_metrics import SampleMetrics, compare_reconstructions, measure_autoencoder
from datamodules.synthetic import SyntheticDataModule
from metrics.backbones.random_cnn import RandomCNN
from metrics.features import crop_features
from metrics.intervals import subsample_interval
from metrics.kernel import kernel_distance
from metrics.nearest_psnr import nearest_psnr
from metrics.perceptual_distance import PerceptualDistance
from metrics.protocol import protocol_hash
from metrics.sifid import single_image_frechet
from modules.base import GenerativeModule
from modules.conditions import Labels
from modules.ops.images import from_uint8, to_uint8
from modules.ops.noise import image_generators, rand, randint

SIZE = (24, 32)
SMALL = {"backbone": "rand_cnn", "num_images": 10, "chunk": 4, "crops": 3, "sample_crops": 2}


class Toy(GenerativeModule):
    """Smooth noise; dropout and a frozen batch norm show whether modes are respected."""

    def __init__(self, ready: bool = True) -> None:
        super().__init__()
        self.image_size = SIZE
        self.ready = ready
        self.dropout = nn.Dropout(0.5)
        self.statistics = nn.BatchNorm2d(3).eval()
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def samples_ready(self) -> bool:
        return self.ready

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        assert num_images <= 4 and not self.dropout.training and not torch.is_grad_enabled()
        noise = self.statistics(self.dropout(rand(num_images, 3, 6, 8, device=self.device)))
        return (nn.functional.interpolate(noise, SIZE, mode="bilinear") * 2 - 1).clamp(-1, 1)

    def diagnostics(self, sets: Mapping) -> dict[str, float]:
        return {"side_images": float(len(sets["side"])), "chance": float(torch.rand(())), "never": math.nan}

    def baselines(self, num_images: int) -> dict[str, Tensor]:
        return {"black": -torch.ones(num_images, 3, *SIZE)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        loss = (self.dropout(batch["image"]) * self.weight).mean() + self.weight.square().sum()
        self.optimize(self.optimizers(), loss)
        self.log("train/noise", torch.rand(()))


def data(**keys: object) -> SyntheticDataModule:
    return SyntheticDataModule(list(SIZE), **{"batch_size": 2, "samples_per_epoch": 4, "num_images": 5} | keys)


def trainer(*callbacks: Callback, **keys: object) -> Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), num_sanity_val_steps=0, **{"devices": 1} | off | keys)


def measure(metrics: SampleMetrics, module: Toy | None = None, **keys: object) -> dict:
    trainer(metrics).test(module or Toy(), data(**keys), verbose=False)
    return metrics.results


@pytest.fixture(scope="module")
def results() -> dict:
    return measure(SampleMetrics(**SMALL))


def references() -> Tensor:
    images = data()
    images.setup()
    return to_uint8(images.sets()["image"].stack())


def seeded(seed: int = 0, number: int = 10) -> Tensor:
    """The samples by the rule: image i from (seed, i) alone."""
    module, samples = Toy().eval(), []
    for image in range(number):
        with torch.no_grad(), image_generators(seed, [image]):
            samples.append(to_uint8(module.sample(1)))
    return torch.cat(samples)


def test_values_are_those_of_the_seeded_samples(results: dict) -> None:
    reals, fakes, backbone = references(), seeded(), RandomCNN()
    values = results["metrics"]
    assert values["kd_rand_cnn"] == pytest.approx(kernel_distance(backbone(reals), backbone(fakes)).item(), rel=1e-4)
    crops = [
        crop_features(backbone, images, range(len(images)), count, seed).flatten(0, 1)
        for images, count, seed in ((reals, 3, 0), (fakes, 2, 1))
    ]
    assert values["kd_rand_cnn_crops"] == pytest.approx(kernel_distance(*crops).item(), rel=1e-4)
    assert values["nearest_psnr_max"] == pytest.approx(nearest_psnr(fakes, reals).max().item(), rel=1e-5)
    assert sum(values[f"source_share_{i}"] for i in range(5)) == pytest.approx(1)
    assert {"fd_rand_cnn", "pixel_diversity", "pixel_diversity_pooled", "pixel_diversity_raw"} <= values.keys()
    assert not {"fid", "kid"} & values.keys() and not any(key.startswith("sif") for key in values)


@pytest.mark.parametrize("sets", [1, 2])
def test_the_samples_are_kept_while_there_are_any(sets: int) -> None:
    metrics, empty = SampleMetrics(**SMALL, sampling_seeds=sets), Toy(ready=False)
    measure(metrics)
    assert torch.equal(metrics.drawn, seeded())
    measure(metrics, empty)
    assert metrics.drawn is None and metrics.nearest is None


def test_other_seed_other_samples_same_seed_same_values(results: dict) -> None:
    assert measure(SampleMetrics(**SMALL)) == results
    other = measure(SampleMetrics(**SMALL, seed=50))["metrics"]
    assert all(other[key] != results["metrics"][key] for key in ("kd_rand_cnn", "pixel_diversity", "nearest_psnr_mean"))


def test_reference_points_stand_beside_the_samples(results: dict) -> None:
    anchors = results["reference_points"]
    assert set(anchors) == {"split_half", "copies", "side", "black"}
    for values in anchors.values():
        assert values.keys() == {"fd_rand_cnn", "kd_rand_cnn", "kd_rand_cnn_crops"}
    reals, backbone = RandomCNN()(references()), RandomCNN()
    copies = kernel_distance(reals, torch.cat([reals, reals]))
    assert anchors["copies"]["kd_rand_cnn"] == pytest.approx(copies.item(), rel=1e-4)
    half = kernel_distance(reals[[0, 2, 4]], reals[[1, 3]])
    assert anchors["split_half"]["kd_rand_cnn"] == pytest.approx(half.item(), rel=1e-4)
    assert "split_half compares 3 with 2 reference images" in results["protocol"]["notes"]
    black = kernel_distance(reals, backbone(torch.zeros(10, 3, *SIZE, dtype=torch.uint8)))
    assert anchors["black"]["kd_rand_cnn"] == pytest.approx(black.item(), rel=1e-4)
    assert anchors["copies"]["kd_rand_cnn"] < anchors["side"]["kd_rand_cnn"] < anchors["black"]["kd_rand_cnn"]


def test_protocol_tells_how(results: dict) -> None:
    images = data()
    images.setup()
    protocol = results["protocol"]
    assert protocol["reference"] == images.sets()["image"].fingerprint
    assert protocol["backbone_fingerprint"] == RandomCNN().fingerprint()
    assert (protocol["num_real"], protocol["num_generated"], protocol["seed"]) == (5, 10, 0)
    assert protocol["max_reference"] is None and "(seed, i)" in protocol["sampling"]
    assert protocol["crops"] == {"reference": 3, "samples": 2, "size": [12, 16]}
    assert any("not comparable with published" in note for note in protocol["notes"])
    assert any(note.startswith("never is not finite") for note in protocol["notes"])
    json.dumps(results, allow_nan=False)


def test_diagnostics_of_the_method_are_logged_too() -> None:
    run = trainer(SampleMetrics(**SMALL))
    run.test(Toy(), data(), verbose=False)
    assert run.callback_metrics["test/side_images"] == 7 and "test/kd_rand_cnn" in run.callback_metrics
    assert "test/never" not in run.callback_metrics


def test_untrained_samples_are_not_measured() -> None:
    metrics = SampleMetrics(**SMALL)
    run = trainer(metrics)
    run.test(Toy(ready=False), data(), verbose=False)
    assert set(run.callback_metrics) == {"test/side_images", "test/chance"}
    assert metrics.results["metrics"] == metrics.results["reference_points"] == {}
    assert "not trained yet" in metrics.results["protocol"]["notes"][-2]


@pytest.fixture(scope="module")
def of_one() -> dict:
    """Results with one reference image, metrics by default."""
    return measure(SampleMetrics(**SMALL), num_images=1)


def test_one_image_is_measured_by_what_one_image_allows(of_one: dict) -> None:
    values, notes = of_one["metrics"], of_one["protocol"]["notes"]
    assert {"sifd_rand_cnn", "sifd_rand_cnn_median", "pixel_diversity", "nearest_psnr_max"} <= values.keys()
    assert "kd_rand_cnn_crops" in values
    assert not {"kd_rand_cnn", "fd_rand_cnn", "source_share_min", "sifid"} & values.keys()
    assert not any(note.startswith("no ") or "split_half" in note for note in notes)
    assert "sifd_rand_cnn is over 6×8 positions of 64 features, images not resized; the covariances are singular" in notes


def one_reference() -> Tensor:
    images = data(num_images=1)
    images.setup()
    return to_uint8(images.sets()["image"].stack())


def test_single_image_distance_is_that_of_the_seeded_samples(of_one: dict) -> None:
    real, backbone = one_reference(), RandomCNN()
    pairs = single_image_frechet(*(backbone.maps(images)["sifd_rand_cnn"] for images in (real, seeded())))
    assert of_one["metrics"]["sifd_rand_cnn"] == pytest.approx(pairs.mean().item(), rel=1e-4)
    low, high = sorted(pairs.tolist())[4:6]
    assert of_one["metrics"]["sifd_rand_cnn_median"] == pytest.approx((low + high) / 2, rel=1e-4)


def test_single_image_reference_points(of_one: dict) -> None:
    anchors = of_one["reference_points"]
    assert set(anchors) == {"copies", "mirrored", "side", "black"}
    real, backbone = one_reference(), RandomCNN()
    for name, images in {"mirrored": real.flip(-1), "black": torch.zeros_like(real)}.items():
        expected = single_image_frechet(*(backbone.maps(part)["sifd_rand_cnn"] for part in (real, images)))
        assert anchors[name]["sifd_rand_cnn"] == pytest.approx(expected.item(), rel=1e-4)
    assert abs(anchors["copies"]["sifd_rand_cnn"]) < 1e-6
    assert 1e-6 < anchors["mirrored"]["sifd_rand_cnn"] < anchors["side"]["sifd_rand_cnn"]


@pytest.mark.parametrize(
    ("number", "asked", "found", "refused"),
    [
        (1, ["fd", "kd", "source_share", "sifid"], {"sifd_rand_cnn", "sifd_rand_cnn_median"},
         ["fd_rand_cnn", "kd_rand_cnn", "source_share"]),
        (3, ["sifid", "nearest_psnr"], {"nearest_psnr_max", "nearest_psnr_mean"}, ["sifid"]),
    ],
)  # fmt: skip
def test_what_was_asked_for_and_does_not_apply_becomes_a_note(number: int, asked: list, found: set, refused: list) -> None:
    results = measure(SampleMetrics(**SMALL, metrics=asked), num_images=number)
    notes = [note for note in results["protocol"]["notes"] if note.startswith("no ")]
    needed = {1: "at least {} and 2 of the reference, got 10 and 1", 3: "at most 1 reference image, got 3"}[number]
    fewest = {"source_share": "1 sample"}
    assert notes == [f"no {key}: needs {needed.format(fewest.get(key, '2 samples'))}" for key in refused]
    assert results["metrics"].keys() == found


def test_images_too_small_for_the_layer_are_a_note() -> None:
    class Tiny(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.image_size = (4, 4)

        def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
            return torch.rand(num_images, 3, 4, 4) * 2 - 1

        def baselines(self, num_images: int) -> dict[str, Tensor]:
            return {}

    metrics = SampleMetrics(**SMALL, metrics=["sifid", "pixel_diversity"])
    trainer(metrics).test(Tiny(), SyntheticDataModule([4, 4], batch_size=2, num_images=1), verbose=False)
    assert not any(key.startswith("sif") for key in metrics.results["metrics"])
    assert any(note.startswith("no sifd_rand_cnn:") for note in metrics.results["protocol"]["notes"])


def test_too_few_samples_for_a_distance_are_a_note() -> None:
    results = measure(SampleMetrics(**SMALL | {"num_images": 1}))
    assert results["metrics"].keys() == {"nearest_psnr_max", "nearest_psnr_mean", "kd_rand_cnn_crops", "source_share_min"} | {
        f"source_share_{i}" for i in range(5)
    }
    assert [note for note in results["protocol"]["notes"] if note.startswith("no ")] == [
        "no fd_rand_cnn: needs at least 2 samples and 2 of the reference, got 1 and 5",
        "no kd_rand_cnn: needs at least 2 samples and 2 of the reference, got 1 and 5",
        "no pixel_diversity: needs at least 2 samples, got 1",
        "no pd_rand_cnn: needs at least 2 samples, got 1",
        "no intervals: they need 10 samples, got 1",
    ]


def test_chosen_metrics_only_and_no_backbone_without_need() -> None:
    metrics = SampleMetrics(num_images=4, chunk=4, metrics=["nearest_psnr"], backbone="inception_v3_fid")
    assert measure(metrics)["metrics"].keys() == {"nearest_psnr_max", "nearest_psnr_mean"}
    assert metrics.results["reference_points"] == {} and metrics.results["protocol"]["backbone"] is None


class Modes(Callback):
    """Training modes and random state before and after each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def state(self, trainer: Trainer, module: Toy) -> None:
        modes = tuple(part.training for part in module.modules())
        self.seen.append((modes, hash(torch.get_rng_state().numpy().tobytes())))

    on_validation_start = on_validation_end = state


def logged_noise(*callbacks: Callback, epochs: int = 2) -> tuple[list[float], Trainer]:
    values: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            values.append(trainer.callback_metrics["train/noise"].item())

    torch.manual_seed(0)
    module = Toy()
    run = trainer(*callbacks, Record(), max_epochs=epochs, log_every_n_steps=1)
    run.fit(module, data())
    assert module.dropout.training and module.training
    return values, run


def test_training_is_the_same_with_and_without_and_values_are_logged() -> None:
    modes, metrics = Modes(), SampleMetrics(**SMALL)
    plain, _ = logged_noise()
    measured, run = logged_noise(modes, metrics)
    assert plain == measured
    assert modes.seen[0] == modes.seen[1] and len(modes.seen) == 4
    assert "val/kd_rand_cnn" in run.callback_metrics and "val/nearest_psnr_max" in run.callback_metrics
    assert metrics.results["reference_points"] == {}  # of a test only


def test_reference_features_are_computed_once() -> None:
    metrics, seen = SampleMetrics(**SMALL), []
    metrics._read_reference = lambda *args: seen.append(1) or SampleMetrics._read_reference(metrics, *args)
    logged_noise(metrics, epochs=3)
    assert seen == [1]


@pytest.mark.parametrize(("epochs", "measured"), [(1, False), (2, True)])
def test_every_n_epochs(epochs: int, measured: bool) -> None:
    _, run = logged_noise(SampleMetrics(**SMALL, every_n_epochs=2), epochs=epochs)
    assert ("val/kd_rand_cnn" in run.callback_metrics) == measured


def test_reference_of_another_size_is_refused() -> None:
    run = trainer(SampleMetrics(**SMALL))
    with pytest.raises(ValueError, match=r"datamodule.image_size=\[24, 32\]"):
        run.test(Toy(), SyntheticDataModule([16, 16], batch_size=2), verbose=False)


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match="Did you mean kd_crops"):
        SampleMetrics(metrics=["kd_crop"])


class Write(Callback):
    """Every rank's results into a file of its own."""

    def __init__(self, metrics: SampleMetrics, folder: Path) -> None:
        self.metrics, self.folder = metrics, folder

    def on_test_end(self, trainer: Trainer, module: Toy) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.metrics.results))


@pytest.mark.parametrize(
    ("keys", "number"),
    [({"num_images": 10}, 5), ({"num_images": 3}, 5), ({"metrics": ["nearest_psnr"]}, 5),
     ({"metrics": ["kd", "source_share"]}, 5), ({"num_images": 3, "metrics": ["sifid"]}, 1)],
    ids=["all", "second process draws nothing", "no backbone", "no crops", "one image"],
)  # fmt: skip
def test_two_processes_equal_one(tmp_path: Path, keys: dict, number: int) -> None:
    one, two = (SampleMetrics(**SMALL | keys) for _ in range(2))
    expected = measure(one, num_images=number)
    run = trainer(two, Write(two, tmp_path), devices=2, strategy="ddp_fork")
    run.test(Toy(), data(num_images=number), verbose=False)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["protocol"] == expected["protocol"]
        assert found["diagnostics"] == expected["diagnostics"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        assert found["intervals"].keys() == expected["intervals"].keys()
        for key, interval in expected["intervals"].items():
            assert found["intervals"][key] == pytest.approx(interval, rel=1e-4, abs=1e-7), key
        numbers = {key: value for key, value in expected["verdict"].items() if isinstance(value, float)}
        assert {key: found["verdict"][key] for key in numbers} == pytest.approx(numbers, rel=1e-5)
        assert found["verdict"] | numbers == expected["verdict"]
        for name, values in expected["reference_points"].items():
            assert found["reference_points"][name] == pytest.approx(values, rel=1e-5, abs=1e-7)


def test_bytes_survive_the_loader() -> None:
    """The reference is compared as the bytes of its files."""
    images = references()
    assert torch.equal(to_uint8(from_uint8(images)), images)


# --- what stands beside the numbers ---------------------------------------------------------------------------------


class Copier(Toy):
    """One of the training images, whichever."""

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        return from_uint8(references()[randint(0, 5, (num_images,))])


class Encoder(Toy):
    """Knows the side images by heart, others it does not know at all."""

    def reconstruct(self, images: Tensor) -> Tensor:
        drawn = data()
        drawn.setup()
        known = drawn.sets()["side"].stack()
        near = [known[(known - image).square().sum((1, 2, 3)).argmin()] for image in images]
        return torch.stack(near)


def test_intervals_stand_beside_the_values(results: dict) -> None:
    values, intervals = results["metrics"], results["intervals"]
    expected = {"kd_rand_cnn", "fd_rand_cnn", "kd_rand_cnn_crops", "nearest_psnr_mean", "pixel_diversity"}
    assert expected | {"pd_rand_cnn_pairs", "pd_rand_cnn_ratio"} <= intervals.keys() <= values.keys()
    for key, (low, high) in intervals.items():
        assert low < values[key] < high
        assert (low + high) / 2 == pytest.approx(values[key], rel=1e-4, abs=1e-6)


def test_interval_of_a_distance_is_that_of_its_rows(results: dict) -> None:
    reals, fakes = RandomCNN()(references()), RandomCNN()(seeded())
    value = results["metrics"]["kd_rand_cnn"]
    expected = subsample_interval(lambda picks: kernel_distance(reals, fakes[picks]), 10, value)
    assert results["intervals"]["kd_rand_cnn"] == pytest.approx(expected, rel=1e-4)


def test_too_few_samples_for_an_interval_are_a_note() -> None:
    results = measure(SampleMetrics(**SMALL | {"num_images": 8}, metrics=["pixel_diversity"]))
    assert results["intervals"] == {}
    assert "no intervals: they need 10 samples, got 8" in results["protocol"]["notes"]


def test_intervals_over_sampling_seeds() -> None:
    """Set k has the seed `seed` + k."""
    keys = SMALL | {"num_images": 8, "metrics": ["kd", "nearest_psnr"]}
    one, other = (measure(SampleMetrics(**keys, seed=seed))["metrics"] for seed in (0, 1))
    both = measure(SampleMetrics(**keys, sampling_seeds=2))
    for key in ("kd_rand_cnn", "nearest_psnr_max", "nearest_psnr_mean"):
        mean, half = (one[key] + other[key]) / 2, abs(one[key] - other[key]) / 2
        assert both["metrics"][key] == pytest.approx(mean, rel=1e-4)
        low, high = both["intervals"][key]
        assert (high - low) / 2 == pytest.approx(12.706 * half, rel=1e-3)  # Student's with one degree of freedom
    assert both["protocol"]["sampling_seeds"] == 2


def test_samples_that_are_all_equal_or_of_no_contrast() -> None:
    class Grey(Toy):
        def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
            return torch.zeros(num_images, 3, *SIZE)

    results = measure(SampleMetrics(**SMALL), Grey())
    for key in ("pixel_diversity", "pd_rand_cnn_pairs"):
        assert results["intervals"][key] == pytest.approx([0, 0], abs=1e-9)
    assert results["metrics"]["pd_rand_cnn_intra"] == pytest.approx(0, abs=1e-9)


def test_diversity_of_pairs_is_measured_in_a_test(results: dict) -> None:
    rows = PerceptualDistance(RandomCNN())(seeded())
    gaps = torch.cdist(rows.double(), rows.double()).square()
    expected = gaps[tuple(torch.triu_indices(10, 10, 1))].mean().item()  # 45 pairs: all of them
    assert results["metrics"]["pd_rand_cnn_pairs"] == pytest.approx(expected, rel=1e-4)
    assert results["protocol"]["perceptual"]["key"] == "pd_rand_cnn"
    assert not any(key.startswith("precision") for key in results["metrics"])  # 5 references are too few


def test_refusals_of_what_was_asked_for() -> None:
    asked = ["manifold", "fd_infinity", "inception_score"]
    results = measure(SampleMetrics(**SMALL, metrics=asked))
    assert results["metrics"] == {}
    assert [note for note in results["protocol"]["notes"] if note.startswith("no ")][:3] == [
        "no manifold_rand_cnn: needs at least 50 samples and 50 of the reference, got 10 and 5",
        "no fd_infinity_rand_cnn: needs at least 1000 samples and 2000 of the reference, got 10 and 5",
        "no inception_score_rand_cnn: needs the classifier of an Inception-v3 (weights)",
    ]


def test_manifold_scores_where_there_are_enough() -> None:
    metrics = SampleMetrics(**SMALL | {"num_images": 50, "metrics": ["manifold"]})
    values = measure(metrics, num_images=50)["metrics"]
    assert set(values) == {f"{kind}_rand_cnn" for kind in ("precision", "recall", "density", "coverage")}


def test_verdict_of_a_copier_and_of_another(results: dict) -> None:
    metrics = SampleMetrics(**SMALL)
    found = measure(metrics, Copier())["verdict"]
    assert found["copies"] and found["line"].startswith("COPIES") and found["num_training"] == 5
    assert results["verdict"]["copies"] is False and results["verdict"]["line"].startswith("no copying found")
    assert {"pixel_ratio", "perceptual_ratio", "patch_ratio", "patch_copy_share", "authentic_share"} <= found.keys()
    assert metrics.nearest.shape[0] == 3 and metrics.nearest.min() >= -1 and metrics.nearest.max() <= 1


def test_verdict_on_an_encoder() -> None:
    found = measure(SampleMetrics(**SMALL, metrics=["pixel_diversity"]), Encoder())["verdict"]
    assert found["reconstruction"]["training"] < 1e-6 < found["reconstruction"]["heldout"]
    assert "reconstructs side images of the training" in found["line"]


class Shown(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple] = []

    def log_image(self, key: str, images: list, step: int, caption: list) -> None:
        self.pictures.append((key, images[0].shape[-1], step, caption))


def test_training_logs_verdict_and_last_pairs_and_no_heavy_metrics() -> None:
    logger, metrics = Shown(), SampleMetrics(**SMALL)
    run = trainer(metrics, max_epochs=2, log_every_n_steps=1, logger=logger)
    run.fit(Toy(), data())
    assert run.callback_metrics["val/copies"] == 0 and "val/duplicate_share" in run.callback_metrics
    line = metrics.results["verdict"]["line"]
    assert logger.pictures == [("grids/nearest", 3, run.fit_loop.total_batch_idx, [line])] and "no copying found" in line
    assert not any(key.startswith("pd_") for key in metrics.results["metrics"]) and metrics.results["intervals"] == {}


def test_hash_tells_the_protocol(results: dict) -> None:
    assert results["protocol"]["hash"] == protocol_hash(results["protocol"])
    other = measure(SampleMetrics(**SMALL | {"num_images": 8}))
    assert other["protocol"]["hash"] != results["protocol"]["hash"]
    assert measure(SampleMetrics(**SMALL), Copier())["protocol"]["hash"] == results["protocol"]["hash"]


# --- samples and reference sets --------------------------------------------------------------------------------------


def test_samples_depend_neither_on_the_chunk_nor_on_their_number() -> None:
    changes = {"num_images": 3, "chunk": 2}, {"chunk": 4}
    few, more = (SampleMetrics(**SMALL | keys, metrics=["nearest_psnr"]) for keys in changes)
    for metrics in (few, more):
        measure(metrics)
    assert torch.equal(few.drawn, more.drawn[:3]) and torch.equal(more.drawn, seeded())


def test_two_lists_of_metrics() -> None:
    metrics = SampleMetrics(**SMALL, quick=["nearest_psnr"], full=["pixel_diversity"])
    _, run = logged_noise(metrics, epochs=1)
    assert "val/nearest_psnr_max" in run.callback_metrics and "val/pixel_diversity" not in run.callback_metrics
    assert measure(metrics)["metrics"].keys() == {"pixel_diversity", "pixel_diversity_pooled", "pixel_diversity_raw"}
    both = SampleMetrics(**SMALL, metrics=["kd"], full=["fd"])
    assert (both.quick, both.full) == (["kd"], ["fd"])


def test_a_large_reference_is_a_seeded_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 of 30 images; bytes of 8 of these. Features of all 20 are compared."""
    monkeypatch.setattr(sample_metrics, "MAX_IMAGES", 8)
    keys = SMALL | {"metrics": ["kd", "nearest_psnr"]}
    all_images = measure(SampleMetrics(**keys, max_reference=30), num_images=30)
    first, same, other = (SampleMetrics(**keys, max_reference=20, seed=seed) for seed in (0, 0, 1))
    results = [measure(metrics, num_images=30) for metrics in (first, same, other)]
    assert results[0] == results[1] and len({result["protocol"]["hash"] for result in [all_images, *results]}) == 3
    protocol = results[0]["protocol"]
    assert (protocol["num_real"], protocol["max_reference"]) == (20, 20) and all_images["protocol"]["max_reference"] is None
    assert "crops, pixel metrics and the verdict use 8 of 20 reference images" in protocol["notes"]
    images = data(num_images=30)
    images.setup()
    pixels = to_uint8(images.sets()["image"].stack())
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:20].sort().values
    assert torch.equal(first._reference.images, pixels[chosen[torch.linspace(0, 19, 8).long()]])
    expected = kernel_distance(RandomCNN()(pixels[chosen]), RandomCNN()(seeded()))
    assert results[0]["metrics"]["kd_rand_cnn"] == pytest.approx(expected.item(), rel=1e-4)


def test_other_images_than_those_of_the_training_are_not_called_so() -> None:
    images = data()
    metrics = SampleMetrics(**SMALL, metrics=["pixel_diversity"])
    for unlike, name in (({}, "training images"), ({"image": "files of the image set image: a → b"}, "reference images")):
        images.unlike_training = unlike
        trainer(metrics).test(Toy(), images, verbose=False)
        assert f"near-duplicates of the 5 {name}" in metrics.results["verdict"]["line"]


class Pictures(list):
    def originals(self) -> "Pictures":
        return self


class Lookup:
    device = "cpu"

    def __init__(self, reconstruct: Callable[[Tensor], Tensor]) -> None:
        self.reconstruct = reconstruct


def test_reconstruction_of_sets_with_held_out_images() -> None:
    torch.manual_seed(0)
    known = from_uint8(torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8))
    sets = {"image": Pictures(known[:1]), "side": Pictures(known), "side_heldout": Pictures(torch.rand(8, 3, 6, 6) * 2 - 1)}
    lookup = Lookup(lambda image: known[(known - image).abs().sum((1, 2, 3)).argmin()][None])
    found = compare_reconstructions(lookup, sets)
    assert found["p"] < 0.01 and found["of"] == "side"
    assert compare_reconstructions(Lookup(lambda image: image * 0.9), sets)["p"] > 0.01
    assert compare_reconstructions(Lookup(lambda image: known[:1]), sets) is None  # there is no encoder
    few = sets | {"image_heldout": Pictures(torch.rand(4, 3, 6, 6) * 2 - 1)}  # of the training images themselves
    assert compare_reconstructions(lookup, few)["num_heldout"] == 4
    assert compare_reconstructions(lookup, {"image": sets["image"]}) is None
    assert compare_reconstructions(object(), sets) is None


def test_an_autoencoder_that_memorizes_is_found() -> None:
    """Errors of the set `source`, where the autoencoder was trained, against held-out images; `image` has no verdict."""
    torch.manual_seed(0)
    images = from_uint8(torch.randint(0, 256, (60, 3, 6, 6), dtype=torch.uint8))
    sets = {"image": Pictures(images[:20]), "source": Pictures(images[20:40]), "image_heldout": Pictures(images[40:])}

    class Autoencoder:
        device = "cpu"

        def autoencode(self, inputs: Tensor) -> Tensor:
            known = (inputs[:, None] == images[20:40]).flatten(2).all(2).any(1)
            return torch.where(known.view(-1, 1, 1, 1), inputs * 0.95, inputs * 0.8)

    class Distance:
        key = "pd"

        def __call__(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1).float()

    found = measure_autoencoder(Autoencoder(), sets, Distance())
    assert found["memorizes"] and found["mse"]["memorizes"] and found["pd"]["memorizes"]
    expected = ((images[20:40] * 0.05) ** 2).mean((1, 2, 3)).median()
    assert found["mse"]["median_training"] == pytest.approx(float(expected), rel=1e-4)
    assert not measure_autoencoder(Autoencoder(), {key: sets[key] for key in ("image", "image_heldout")}, None)["memorizes"]


class Generated:
    """Images that are made at each access, as of a folder that is read lazily."""

    names: list[str] = []
    fingerprint = "0" * 64

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index)) * 2 - 1

    def originals(self) -> "Generated":
        return self


class Large(SyntheticDataModule):
    def __init__(self, number: int) -> None:
        super().__init__([64, 64], batch_size=1, num_images=1)
        self.number = number

    def sets(self) -> dict:
        return super().sets() | {"image": Generated(self.number)}

    def val_dataloader(self) -> DataLoader:
        return DataLoader([0])


class Noise64(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.image_size = (64, 64)

    def sample(self, num_images: int, size: tuple[int, int] | None = None) -> Tensor:
        return rand(num_images, 3, 64, 64) * 2 - 1


def measure_large(number: int, queue: Queue) -> None:
    """Memory in MB by which measuring so many reference images raises the maximum of this process."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = SampleMetrics(num_images=10, metrics=["nearest_psnr", "pixel_diversity"])
    trainer(metrics).validate(Noise64(), Large(number), verbose=False)
    queue.put(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, metrics.results["protocol"]["num_real"]))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pixels_of_the_reference() -> None:
    """Two thousand more images of 64 x 64 take 98 MB as floats and 25 MB as bytes."""
    context, found = get_context("fork"), {}
    for number in (1000, 3000):
        queue = context.Queue()
        process = context.Process(target=measure_large, args=(number, queue))
        process.start()
        found[number], num_real = queue.get(timeout=600)
        process.join()
        assert num_real == number
    assert found[3000] - found[1000] < 50


class Classes(Toy):
    """Class 0 is dark, class 1 bright."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = Labels(2)

    def sample(self, num_images: int, size: tuple[int, int] | None = None, labels: list[int] | None = None) -> Tensor:
        picks = torch.tensor(labels or [0, 1])[randint(0, len(labels or [0, 1]), (num_images,))]
        return (super().sample(num_images) / 4 + picks.view(-1, 1, 1, 1) - 0.5).clamp(-1, 1)


def test_a_method_with_classes_has_a_distance_for_each() -> None:
    metrics = SampleMetrics(**SMALL)
    values = measure(metrics, Classes(), num_images=6, labels="folder")["metrics"]
    backbone = RandomCNN()
    images = data(num_images=6, labels="folder")
    images.setup()
    folder, module = images.sets()["image"], Classes().eval()
    for label in (0, 1):
        rows = []
        for image in range(5):
            with torch.no_grad(), image_generators(0, [image]):
                rows.append(to_uint8(module.sample(1, labels=[label])))
        reals = to_uint8(folder.stack()[folder.labels == label])
        expected = float(kernel_distance(backbone(reals), backbone(torch.cat(rows))))
        assert values[f"kd_rand_cnn_class_{label}"] == pytest.approx(expected, abs=1e-6)
    assert not [key for key in measure(SampleMetrics(**SMALL), num_images=6, labels="folder")["metrics"] if "_class_" in key]
