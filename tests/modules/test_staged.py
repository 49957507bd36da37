"""What a method with one stage gets from its bases, on a toy GAN: each property against a computation of its own."""

import copy

import lightning
import pytest
import torch
from torch import nn

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from experiment.cost import estimate_cost, plan
from modules.base import Average, GenerativeModule, sampling_mode
from modules.conditions import Labels
from modules.ops.weights import file_sha256
from tests.modules.toys import LABELS, ToyGAN, fit


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def differing(first: dict, second: dict) -> set[str]:
    assert first.keys() == second.keys()
    return {key for key in first if not torch.equal(first[key], second[key])}


# --- stage, plan and resume -------------------------------------------------------------------------------------------


def test_one_stage_trains_everything_but_frozen_parts_and_ends_after_its_epochs():
    module = ToyGAN(epochs=3)
    before = state_of(module)
    trainer = fit(module)
    assert trainer.current_epoch == 3 and module.iteration == 6 and module.stage == 0 and module.finished(3)
    assert module.stage_name == "training 8×8" and module.stage_modules(0) == [module.generator, module.critic]
    unchanged = before.keys() - differing(before, module.state_dict())
    assert unchanged == {key for key in before if key.startswith("features.")}
    assert not module.features.training and not any(p.requires_grad for p in module.features.parameters())
    assert module.generator.training and all(p.requires_grad for p in module.generator.parameters())


def test_the_plan_of_one_stage():
    module, data = ToyGAN(epochs=3), SyntheticDataModule([8, 8], batch_size=2, samples_per_epoch=8)
    data.setup()
    rows = plan(module, data, lightning.Trainer(accelerator="cpu", logger=False)).splitlines()
    trained = sum(p.numel() for part in (module.generator, module.critic) for p in part.parameters())
    assert rows[1].split()[:4] == ["0", "training", "8×8", f"{trained:,}"] and rows[1].split()[4] == "6"


def test_resume_is_exact_with_averages_streams_and_counters(tmp_path):
    straight = ToyGAN(epochs=3)
    part = copy.deepcopy(straight)
    fit(straight)
    fit(part, max_epochs=2).save_checkpoint(tmp_path / "part.ckpt")
    assert not part.finished(2)
    resumed = ToyGAN(epochs=3)
    fit(resumed, checkpoint=tmp_path / "part.ckpt")
    assert not differing(straight.state_dict(), resumed.state_dict())
    assert (resumed.iteration, resumed.images_seen) == (straight.iteration, straight.images_seen) == (6, 24)
    rebuilt = ToyGAN.from_checkpoint(torch.load(tmp_path / "part.ckpt", weights_only=True))
    assert not differing(part.state_dict(), rebuilt.state_dict()) and rebuilt.iteration == 4


# --- iterations in place of epochs ------------------------------------------------------------------------------------


class CountedGAN(ToyGAN):
    duration_settings = ("epochs", "iterations")


def counted(iterations):
    return CountedGAN(epochs=None, iterations=iterations)


@pytest.mark.parametrize(
    ("iterations", "samples", "length"),
    [(12, 8, 2), (12, 12, 3), (12, 22, 6), (12, 4000, 12), (13, 40, 13), (13, 4, 1), (5002, 800, 122), (1, 400, 1)],
)
def test_iterations_become_whole_epochs_of_the_length_nearest_to_the_configured_one(iterations, samples, length):
    module, data = counted(iterations), SyntheticDataModule([8, 8], batch_size=2, samples_per_epoch=samples)
    for ranks in (1, 1, 3):  # again and with other ranks: the same epochs
        module.set_epoch_length(data, ranks)
        assert module.stage_epochs(0) == iterations // length and data.samples_per_epoch == length * 4 * ranks
    assert module.finished(iterations // length) and not module.finished(iterations // length - 1)


def test_exactly_the_iterations_are_trained_and_planned_and_resumed(tmp_path):
    straight = counted(6)
    part = copy.deepcopy(straight)
    trainer = fit(straight)
    assert straight.iteration == 6 and trainer.current_epoch == 3
    fit(part, max_epochs=2).save_checkpoint(tmp_path / "part.ckpt")
    resumed = counted(6)
    assert fit(resumed, checkpoint=tmp_path / "part.ckpt").current_epoch == 3
    assert resumed.iteration == 6 and not differing(straight.state_dict(), resumed.state_dict())
    checkpoint = torch.load(tmp_path / "part.ckpt", weights_only=True)
    assert not CountedGAN.from_checkpoint(checkpoint).finished(2)
    data = SyntheticDataModule([8, 8], batch_size=2, samples_per_epoch=8)
    data.setup()
    module = counted(6)
    module.set_epoch_length(data, 1)
    assert plan(module, data, lightning.Trainer(accelerator="cpu", logger=False)).splitlines()[1].split()[4] == "6"
    assert (module.stage_epochs(0), data.samples_per_epoch) == (3, 8)


def test_a_longer_training_keeps_the_epochs_of_its_checkpoint(tmp_path):
    fit(counted(6)).save_checkpoint(tmp_path / "end.ckpt")
    longer = counted(10)  # alone it would have epochs of 2 iterations as well, of 12 samples 5
    fit(longer, checkpoint=tmp_path / "end.ckpt", data={"samples_per_epoch": 20})
    assert longer.iteration == 10 and longer.stage_epochs(0) == 5
    with pytest.raises(UserError, match="epochs have 2 iterations each, which do not divide 9; choose a multiple of 2"):
        fit(counted(9), checkpoint=tmp_path / "end.ckpt")


@pytest.mark.parametrize("iterations", [None, 4])
def test_epochs_and_iterations_are_alternatives(iterations):
    with pytest.raises(UserError, match="module.epochs is .*; give one of the two and null for the other"):
        CountedGAN(epochs=iterations, iterations=iterations)


class Poison(lightning.Callback):
    def __init__(self, name):
        self.name = name

    def on_train_batch_start(self, trainer, module, *rest):
        if trainer.current_epoch == 1:
            nn.init.constant_(module.get_parameter(self.name), float("nan"))


def test_the_check_for_finite_weights_covers_trained_parts_only():
    with pytest.raises(FloatingPointError, match="training 8×8: weights are infinite or NaN after epoch 1"):
        fit(ToyGAN(), Poison("critic.weight"))
    module = ToyGAN()
    nn.init.constant_(module.features[0].running_mean, float("nan"))
    module.features.forward = lambda images: images
    fit(module)
    assert module.generator[0].weight.isfinite().all()


def test_an_optimizer_of_parameters_that_do_not_train_is_an_error():
    class Stray(ToyGAN):
        def stage_optimizers(self, stage):
            return [*super().stage_optimizers(stage)[:1], torch.optim.SGD(self.features.parameters(), 0.1)]

    with pytest.raises(RuntimeError, match=r"stage_optimizers\(0\) has parameters outside of stage_modules\(0\)"):
        fit(Stray())


# --- averages ---------------------------------------------------------------------------------------------------------


class FollowAverage(lightning.Callback):
    """Averages by hand after every iteration."""

    def on_train_start(self, trainer, module):
        self.mean = module.generator[0].weight.detach().clone()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        weight = module.averages["generator_ema"].weight(len(batch["image"]))
        self.mean = weight * self.mean + (1 - weight) * module.generator[0].weight.detach()


def test_an_average_follows_its_source_and_is_what_samples_use():
    module, spy = ToyGAN(decay=0.9), FollowAverage()
    fit(module, spy)
    assert torch.allclose(module.generator_ema[0].weight, spy.mean, atol=1e-6)
    assert not torch.allclose(module.generator_ema[0].weight, module.generator[0].weight)
    assert torch.equal(module.generator_ema[2].running_mean, module.generator[2].running_mean)
    assert not module.generator_ema.training and not any(p.requires_grad for p in module.generator_ema.parameters())
    with sampling_mode(module, 1, range(2)):
        images = module.sample(2)
    nn.init.zeros_(module.generator[0].weight)
    with sampling_mode(module, 1, range(2)):
        assert torch.equal(module.sample(2), images)


def test_weights_of_averages():
    assert Average("generator", decay=0.999).weight(64) == 0.999
    by_images = Average("generator", half_life=1000)
    assert by_images.weight(1000) == 0.5 and by_images.weight(500) ** 2 == pytest.approx(0.5)
    with pytest.raises(ValueError, match="either half_life or decay"):
        ToyGAN().add_average("other", "generator")


def test_averages_are_equal_on_all_ranks_batch_statistics_included(tmp_path):
    class Write(lightning.Callback):
        def on_train_end(self, trainer, module):
            draws = torch.stack(module.draws)
            shared, local = (torch.rand(3, generator=module.random_stream("x", shared=s)) for s in (True, False))
            mean = module.mean_over_ranks(torch.tensor([1.0 + 2 * trainer.global_rank]))
            record = {"state": module.state_dict(), "draws": draws, "shared": shared, "local": local, "mean": mean}
            torch.save(record, tmp_path / f"{trainer.global_rank}.pt")

    fit(ToyGAN(), Write(), devices=2, strategy="ddp_fork", data={"batch_size": 1})
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not differing(first["state"], second["state"])
    assert not torch.equal(first["draws"], second["draws"])
    assert torch.equal(first["shared"], second["shared"]) and not torch.equal(first["local"], second["local"])
    assert first["mean"] == second["mean"] == 2


# --- random streams ---------------------------------------------------------------------------------------------------


def test_a_random_stream_does_not_depend_on_other_draws_and_restarts_each_epoch():
    plain, disturbed = ToyGAN(), ToyGAN()

    class Disturb(lightning.Callback):
        def on_train_batch_start(self, trainer, module, *rest):
            torch.rand(7)
            torch.rand(7, generator=module.random_stream("another"))

    fit(plain)
    fit(disturbed, Disturb())
    assert all(torch.equal(a, b) for a, b in zip(plain.draws, disturbed.draws, strict=True))
    assert len({tuple(draw.flatten().tolist()) for draw in plain.draws}) == len(plain.draws) == 8
    module, second = ToyGAN(), ToyGAN()
    assert module.random_stream("a") is module.random_stream("a") is not module.random_stream("a", shared=True)
    values = {key: torch.rand(2, generator=module.random_stream(*key)).tolist() for key in (("a",), ("b",))}
    assert values["a",] != values["b",] and torch.rand(2, generator=second.random_stream("a")).tolist() == values["a",]


# --- optimization -----------------------------------------------------------------------------------------------------


def test_scrubbing_replaces_gradients_that_are_not_finite():
    module = ToyGAN()
    fit(module)
    weight = module.critic.weight
    optimizer = torch.optim.SGD([weight], 1e-5)
    before = weight.detach().clone()
    factors = torch.ones_like(weight)
    factors[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    module.optimize(optimizer, (weight * factors).sum(), scrub=True)
    change = (weight - before)[0] / -1e-5
    assert torch.allclose(change[:4], torch.tensor([0.0, 1e5, -1e5, 1.0]), rtol=1e-2, atol=0.05)


def test_lazy_terms_are_due_every_n_iterations_with_corrected_adam():
    module = ToyGAN()
    due = []
    for module.iteration in range(33):
        due.append(module.every(16))
    assert [iteration for iteration, is_due in enumerate(due) if is_due] == [0, 16, 32]
    lr, betas = GenerativeModule.lazy_adam(0.002, (0.0, 0.99), 16)
    assert lr == pytest.approx(0.002 * 16 / 17) and betas == pytest.approx((0.0, 0.99 ** (16 / 17)))
    # Seventeen steps of the corrected optimizer forget as much as sixteen of the plain one.
    assert betas[1] ** 17 == pytest.approx(0.99**16) and lr * 17 == pytest.approx(0.002 * 16)


def test_an_iteration_gets_as_many_batches_of_reals_as_it_needs():
    batches = []

    class Seen(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batches.append(batch)

    module = ToyGAN(epochs=1)
    fit(module, Seen(), data={"num_images": 8})
    assert [len(batch["image"]) for batch in batches] == [4, 4]
    parts = module.split_reals(batches[0])
    assert [part["index"].tolist() for part in parts] == [batches[0]["index"][:2].tolist(), batches[0]["index"][2:].tolist()]
    assert torch.equal(torch.cat([part["image"] for part in parts]), batches[0]["image"])
    with pytest.raises(UserError, match="samples_per_epoch=1: an iteration needs 2 images"):
        fit(ToyGAN(), data={"samples_per_epoch": 1})


# --- source weights ---------------------------------------------------------------------------------------------------


class Loads(ToyGAN):
    calls = 0

    def load_source(self, checkpoint):
        type(self).calls += 1
        super().load_source(checkpoint)


@pytest.fixture
def source(tmp_path):
    """A checkpoint of another run, and its weights."""
    torch.manual_seed(5)
    other = ToyGAN()
    path = tmp_path / "source.ckpt"
    torch.save({"state_dict": other.state_dict(), "epoch": 7}, path)
    return path, other.state_dict()


class FirstWeights(lightning.Callback):
    def on_train_start(self, trainer, module):
        self.state = state_of(module)


def test_source_weights_are_loaded_at_a_fresh_start_only(source, tmp_path, monkeypatch):
    path, weights = source
    monkeypatch.setattr(Loads, "calls", 0)
    spy, module = FirstWeights(), Loads(source_checkpoint=str(path))
    assert module.source_sha256 is None  # the constructor reads no file
    fit(module, spy, max_epochs=1).save_checkpoint(tmp_path / "run.ckpt")
    assert Loads.calls == 1 and not differing(spy.state, weights)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert saved["source_sha256"] == module.source_sha256 == file_sha256(path)
    path.rename(tmp_path / "moved.ckpt")
    resumed = Loads(source_checkpoint=str(path))
    fit(resumed, checkpoint=tmp_path / "run.ckpt")
    assert Loads.calls == 1 and resumed.iteration == 4 and resumed.source_sha256 == module.source_sha256
    rebuilt = Loads.from_checkpoint(saved)
    assert Loads.calls == 1 and rebuilt.source_sha256 == module.source_sha256


def test_the_cost_estimate_reads_no_source_weights(tmp_path):
    data = SyntheticDataModule([8, 8], batch_size=2, samples_per_epoch=8)
    data.setup()
    module = ToyGAN(source_checkpoint=str(tmp_path / "nowhere.ckpt"))
    assert estimate_cost(module, data, lightning.Trainer(accelerator="cpu", logger=False)).measured == 1
    with pytest.raises(UserError, match="module.source_checkpoint=.*nowhere.ckpt: no such file"):
        fit(module)


def test_source_weights_have_to_fit_exactly(source, tmp_path):
    path, weights = source
    wrong = dict(weights)
    wrong["critic.weights"], wrong["critic.bias"] = wrong.pop("critic.weight"), torch.zeros(7)
    torch.save({"state_dict": wrong}, path)
    with pytest.raises(UserError) as caught:
        fit(ToyGAN(source_checkpoint=str(path)))
    for text in (f"module.source_checkpoint={path}: ", "missing critic.weight;", "unexpected critic.weights",
                 "critic.bias has shape (7,), expected (1,)"):  # fmt: skip
        assert text in str(caught.value)
    for checkpoint in (torch.zeros(3), {"state_dict": {"a": 1}}):
        torch.save(checkpoint, path)
        with pytest.raises(UserError, match="holds no state dict of tensors"):
            fit(ToyGAN(source_checkpoint=str(path)))


def test_foreign_files_are_converted(source):
    path, weights = source
    torch.save({"params": {key.upper(): value for key, value in weights.items()}}, path)

    class Foreign(ToyGAN):
        def convert(self, checkpoint):
            return {key.lower(): value for key, value in checkpoint["params"].items()}

    spy = FirstWeights()
    fit(Foreign(source_checkpoint=str(path)), spy)
    assert not differing(spy.state, weights)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_labels_reach_a_conditional_gan_by_a_nested_node():
    module = ToyGAN(condition=LABELS)
    assert isinstance(module.condition, Labels) and module.hparams.condition == LABELS  # plain values in the checkpoint
    before = state_of(module)
    fit(module, data={"labels": "folder", "num_images": 6})
    assert {"generator.0.weight", "critic.weight"} <= differing(before, module.state_dict())
    with sampling_mode(module, 0, range(40)):
        vectors = module.condition.draw(40)
        images = module.sample(40)
    assert images.shape == (40, 3, 8, 8) and vectors.shape == (40, 3)
    assert (vectors.sum(1) == 1).all() and set(vectors.argmax(1).tolist()) == {0, 1, 2}
    assert module.condition.of_batch({"label": torch.tensor([2, 0])}).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_labels_need_labelled_images_and_enough_classes():
    unlabelled, labelled = SyntheticDataModule([8, 8]), SyntheticDataModule([8, 8], num_images=6, labels="folder")
    for data in (unlabelled, labelled):
        data.setup()
    with pytest.raises(UserError, match="module.condition needs class labels: set datamodule.labels"):
        ToyGAN(condition=LABELS).check_data(unlabelled.sets())
    classes = len(labelled.label_names)
    ToyGAN(condition=LABELS | {"num_classes": classes}).check_data(labelled.sets())
    with pytest.raises(UserError, match=f"num_classes is {classes - 1}, but the images have {classes} classes"):
        ToyGAN(condition=LABELS | {"num_classes": classes - 1}).check_data(labelled.sets())


def test_a_condition_is_prepared_once_at_the_start_and_stored(tmp_path):
    calls = []

    class Mean(Labels):
        def __init__(self):
            super().__init__(3)
            self.register_buffer("mean", torch.zeros(()))

        def prepare(self, module, sets):
            calls.append(module.stage)
            self.mean.fill_(sets["image"][0].mean())

    def conditional():
        module = ToyGAN(condition=LABELS)
        module.condition = Mean()
        return module

    data = {"labels": "folder", "num_images": 6}
    module = conditional()
    fit(module, max_epochs=1, data=data).save_checkpoint(tmp_path / "run.ckpt")
    assert calls == [0] and module.condition.mean != 0
    resumed = conditional()
    fit(resumed, checkpoint=tmp_path / "run.ckpt", data=data)
    assert calls == [0] and torch.equal(resumed.condition.mean, module.condition.mean)


def test_a_copy_of_the_module_trains_alone():
    """Averages and streams belong to one module."""
    module = ToyGAN()
    other = copy.deepcopy(module)
    fit(other)
    assert differing(module.state_dict(), other.state_dict())
