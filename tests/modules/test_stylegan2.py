"""StyleGAN2's training step; its networks, losses and augmentations have tests of their own."""

import copy

import lightning
import pytest
import torch
from torch import nn

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import sampling_mode
from modules.capabilities import Injects
from modules.stylegan2 import StyleGAN2

TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,16]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=4",
    "module.epochs=2",
    "module.z_dim=8",
    "module.w_dim=8",
    "module.mapping_layers=2",
    "module.channels=[8,8,8]",
]
JOINED_BATCH = ["module.mixing=0.0", "module.path_interval=0"]
TINY_OF = {"disp_stylegan2": ["module.condition.extractor=colors"]}  # needs no weights
# With the average; the networks: test_style_generator.
PARAMETERS = {"stylegan2": 410_207, "disp_stylegan2": 643_855, "stylegan2_256": 88_932_805}
SMALL = {"image_size": [16, 16], "epochs": 2, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": [8, 8, 8]}


def build(**changes) -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(**(SMALL | changes))


def drawn(**keys) -> SyntheticDataModule:
    return SyntheticDataModule([16, 16], **({"batch_size": 4, "samples_per_epoch": 16, "num_images": 4} | keys))


def fit(module, data=None, callbacks=(), **trainer):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    runner = lightning.Trainer(**(settings | trainer), callbacks=list(callbacks))
    runner.fit(module, data or drawn(), ckpt_path=None)
    return module


@pytest.mark.parametrize(("size", "message"), [([16, 20], "square"), ([24, 24], "power of two"), ([8, 8], "at least 16")])
def test_impossible_sizes_are_refused(size, message):
    with pytest.raises(UserError, match=f"image_size is .*{message}"):
        build(image_size=size)


def test_lazy_settings_of_the_optimizers():
    generator, discriminator = build().stage_optimizers(0)
    assert generator.defaults["lr"] == pytest.approx(0.0016)
    assert generator.defaults["betas"][1] == pytest.approx(0.991992, abs=1e-6)
    assert discriminator.defaults["lr"] == pytest.approx(0.00188235, abs=1e-7)
    assert discriminator.defaults["betas"][1] == pytest.approx(0.990585, abs=1e-6)
    plain = build(path_interval=0, r1_interval=0).stage_optimizers(0)
    assert [(o.defaults["lr"], o.defaults["betas"]) for o in plain] == [(0.002, (0.0, 0.99))] * 2


def test_steps_of_each_optimizer_and_the_order_of_an_iteration(monkeypatch):
    module, steps = build(r1_interval=3, path_interval=2), []
    plain = module.optimize

    def optimize(optimizer, loss, **options):
        steps.append("GD"[module.current_optimizers().index(optimizer)])
        plain(optimizer, loss, **options)

    monkeypatch.setattr(module, "optimize", optimize)
    fit(module, max_epochs=1)
    assert "".join(steps) == "DDGG" + "DG" + "DGG" + "DDG"  # iterations 0 to 3
    assert module.iteration == 4


def test_phases_and_those_without_weight():
    phases = [("discriminator", 1, 1), ("r1", 16, 1), ("generator", 1, 0), ("path", 4, 0)]
    assert StyleGAN2([16, 16], epochs=1, channels=[8, 8, 8]).phases() == phases
    assert build(r1_gamma=0, path_interval=0).phases() == [phases[0], phases[2]]


def test_the_average_is_1_minus_a_power_of_its_decay():
    module = build()
    for target, source in zip(module.generator_ema.parameters(), module.generator.parameters(), strict=True):
        target.data.zero_()
        source.data.fill_(1)
    for _ in range(5):
        module.update_averages(7)
    expected = 1 - 0.997784**5
    assert all(torch.allclose(p, torch.tensor(expected), rtol=1e-4) for p in module.generator_ema.parameters())
    assert 0.5 ** (32 / 10_000) == pytest.approx(0.997784, abs=1e-6)


def test_a_short_memory_at_first():
    module = build(ema_ramp_up=True, ema_decay=0.9)
    for iteration, decay in ((0, 0.1), (5, 6 / 15), (500, 0.9)):
        module.iteration = iteration
        module.update_averages(4)
        assert module.averages["generator_ema"].decay == pytest.approx(decay)


def test_no_noise_leaves_the_strengths_at_0_and_without_an_optimizer():
    module = fit(build(noise=False), max_epochs=1)
    assert all(not conv.noise_strength.any() for conv in module.generator.convs)
    trained = {id(parameter) for parameter in module.trained_g()}
    assert len(trained) == sum(1 for _ in module.generator.parameters()) - module.generator.num_convs
    assert len(build().trained_g()) == sum(1 for _ in module.generator.parameters())


def test_everything_that_has_a_gradient_moves_and_the_average_less():
    module = build()
    before = copy.deepcopy(module.state_dict())
    after = fit(module, max_epochs=1).state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    networks = [name for name, _ in module.named_parameters()]
    assert not [name for name in networks if name not in moved]

    def distance(part):
        keys = [key for key in before if key.startswith(f"{part}.") and "w_mean" not in key]
        return sum(float((after[key] - before[key]).square().sum()) for key in keys)

    assert 0 < distance("generator_ema") < distance("generator")


def test_latents_of_an_image_come_from_one_or_two_vectors():
    never, always = build(mixing=0.0), build(mixing=1.0)
    w = never.latents(3)
    assert all(torch.equal(w[:, 0], w[:, i]) for i in range(w.shape[1]))
    crossovers = set()
    for _ in range(60):
        w = always.latents(3)
        differences = [i for i in range(1, w.shape[1]) if not torch.equal(w[:, i], w[:, i - 1])]
        assert len(differences) == 1 and w.shape == (3, always.generator.num_latents, 8)
        crossovers |= set(differences)
    assert crossovers == set(range(1, always.generator.num_latents))


def test_path_mean_follows_the_lengths():
    module = fit(build(path_interval=1), max_epochs=1)
    assert module.path_mean > 0
    assert torch.equal(fit(build(path_interval=0), max_epochs=1).path_mean, torch.tensor(0.0))


def test_samples_of_an_image_do_not_depend_on_the_batch_and_truncation_moves_to_the_mean():
    module = fit(build(), max_epochs=1).eval()
    with sampling_mode(module, 5, range(4)):
        together = module.sample(4)
    with sampling_mode(module, 5, [2]):
        assert torch.allclose(module.sample(1), together[2:3], atol=1e-6)
    with sampling_mode(module, 5, range(4)):
        latents = module.sample_latents(4)
        same = module.decode(latents, truncation=0.0)
        assert torch.allclose(same[0], same[3], atol=1e-6)
        assert not torch.equal(module.decode(latents)[0], module.decode(latents)[3])
    center = nn.functional.normalize(module.generator_ema.w_mean, dim=0)
    z = torch.randn(10_000, 8)
    assert float(center @ nn.functional.normalize(module.generator_ema.mapping(z).mean(0), dim=0)) > 0.99
    with pytest.raises(UserError, match=r"size is \[32, 32\]; StyleGAN2 makes images of \[16, 16\] only"):
        module.sample(1, (32, 32))


@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
def test_augmented_trainings_differ_and_samples_are_not_augmented(augment):
    plain, augmented = (fit(build(augment=kind), max_epochs=1) for kind in ("none", augment))
    same = torch.equal(plain.generator.const, augmented.generator.const)
    assert same == (augment == "ada")  # whose probability is 0 at first
    if augment == "ada":
        assert augmented.augment.calls == 4
        fit(augmented := build(augment="ada", ada_kimg=0.001), max_epochs=1)
        logged = augmented.trainer.callback_metrics
        assert augmented.augment.overfitting.abs() <= 1
        assert torch.equal(logged["train/ada_p"], augmented.augment.p)
        assert torch.equal(logged["train/ada_overfitting"], augmented.augment.overfitting)


@pytest.mark.slow
def test_300_iterations_stay_calm_and_come_nearer_to_the_data():
    data = drawn(num_images=64, samples_per_epoch=800, batch_size=8)
    sizes = {"channels": [16, 16, 16], "noise": False, "path_interval": 0}
    module = build(epochs=3, r1_gamma=1.0, ema_decay=0.99, ema_ramp_up=True, **sizes)
    data.setup()
    reals = torch.stack([data.sets()["image"][i] for i in range(64)])
    logits = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            logits.append([float(trainer.callback_metrics[f"train/{kind}_logits"]) for kind in ("real", "fake")])

    def distance():  # of the images' mean and deviation at 4×4
        with sampling_mode(module, 0):
            fakes = module.sample(64)
        small = [nn.functional.adaptive_avg_pool2d(images, 4) for images in (fakes, reals)]
        return float(sum(((f(small[0], 0) - f(small[1], 0)) ** 2).mean() for f in (torch.mean, torch.std)))

    before = distance()
    fit(module, data, [Watch()])
    assert module.iteration == 300 and torch.tensor(logits).abs().max() < 20
    assert distance() < before / 2


def test_latents_w_give_the_images_of_z_and_are_truncated():
    module = fit(build(), max_epochs=1).eval()
    with sampling_mode(module, 5, range(3)):
        z = module.sample_latents(3)
    with sampling_mode(module, 5, range(3)):
        w = module.sample_latents(3, space="w")
    assert w.shape == (3, module.generator.num_latents, 8) and torch.equal(module.decode(z), module.decode(w))
    with sampling_mode(module, 5, range(3)):
        half = module.sample_latents(3, space="w", truncation=0.5)
    assert torch.allclose(module.decode(z, truncation=0.5), module.decode(half), atol=1e-6)
    with pytest.raises(UserError, match="truncation=0.5 is one of w; set space=w, too"):
        module.sample_latents(3, truncation=0.5)
    with pytest.raises(UserError, match=r"latents of shape \[3, 5\]; StyleGAN2 takes \[N, 8\] or \[N, 6, 8\]"):
        module.decode(torch.zeros(3, 5))


def test_activations_are_clamped_where_asked():
    bound = 0.2
    free, clamped = build(), build(conv_clamp=bound)  # which also set the seed of z
    z = torch.randn(2, 8)
    clamped.load_state_dict(free.state_dict())
    layers = range(free.generator.num_convs)
    before, after = (module.generator(z, None, features=layers) for module in (free, clamped))
    assert max(maps.detach().abs().max() for maps in before.features.values()) > 2 * bound
    assert max(maps.detach().abs().max() for maps in after.features.values()) == torch.tensor(bound)
    assert torch.equal(after.features[0], before.features[0].clamp(-bound, bound))
    images = torch.randn(2, 3, 16, 16)
    taps = [module.discriminator(images, taps=["16.conv1"]).taps["16.conv1"] for module in (free, clamped)]
    assert torch.equal(taps[1].abs().max(), torch.tensor(bound)) and taps[0].abs().max() > bound


# --- conditions ---------------------------------------------------------------------------------------------------------

LABELS = {"class_path": "modules.conditions.Labels", "num_classes": 2}
PRIOR = {"class_path": "modules.conditions.DataInstancePrior", "extractor": "colors", "max_images": 16, "embedding": 6}
CLUSTERS = {"class_path": "modules.conditions.Clusters", "num_clusters": 2, "max_images": 16, "interval": 2}


@pytest.mark.parametrize("condition", [LABELS, PRIOR, CLUSTERS], ids=["labels", "prior", "clusters"])
def test_conditions_reach_both_networks(condition):
    module = fit(build(condition=condition, path_interval=2), drawn(num_images=8, labels="folder"))
    fresh = build(condition=condition)
    for name in ("generator.embedding.weight", "generator_ema.embedding.weight", "discriminator.embedding.weight"):
        assert not torch.equal(module.state_dict()[name], fresh.state_dict()[name])
    assert module.generator.z_dim == 8 + (6 if condition is PRIOR else 2)
    with sampling_mode(module, 0, range(4)):
        latents = module.sample_latents(4)
    assert torch.allclose(latents.split([8, latents.shape[1] - 8], 1)[1].square().mean(1), torch.ones(4), atol=1e-4)
    with sampling_mode(module, 0, range(4)):
        assert module.sample(4).shape == (4, 3, 16, 16)


def test_classes_are_chosen():
    module = fit(build(condition=LABELS), drawn(num_images=8, labels="folder"))

    def samples(labels):
        with sampling_mode(module, 0, range(6)):
            return module.sample(6, labels=labels)

    zeros, ones, mixed = samples([0]), samples([1]), samples([0, 1])
    rows = torch.stack([(mixed - other).flatten(1).abs().amax(1) for other in (zeros, ones)])
    assert not torch.allclose(zeros, ones) and (rows.min(0).values < 1e-5).all()
    with pytest.raises(UserError, match="this StyleGAN2 was not trained with classes"):
        build().sample(1, labels=[0])


def test_images_give_their_priors_and_priors_are_diagnosed():
    data = drawn(num_images=8)
    module = fit(build(condition=PRIOR), data)
    images = torch.stack([data.sets()["image"][i] for i in range(8)])
    assert isinstance(module, Injects) and not isinstance(build(), Injects)
    with sampling_mode(module, 0, range(1)):
        found = module.inject(images[3:4], variants=3)
    with sampling_mode(module, 0, range(1)):
        nearest = module.inject(images[3:4], variants=3, neighbors=1)
    assert found.shape == (3, 3, 16, 16) and len(found.unique(dim=0)) == 3
    assert torch.allclose(found, nearest, atol=1e-4)  # its nearest prior is its own
    values = module.diagnostics(data.sets())
    net, rows = module.eval().discriminator, module.condition.bank.rows[:8]
    with torch.no_grad():
        plain = net(images, vectors=torch.zeros_like(rows)).logits[:, 0]
        bias = net(images, vectors=torch.zeros_like(rows)).features @ net.embedding(torch.zeros_like(rows[0])) / 8**0.5
        logits = torch.stack([net(images, vectors=row.expand(8, -1)).logits[:, 0] for row in rows], 1)
    projection = logits - (plain - bias)[:, None]
    assert values["prior_match"] == float((projection.argmax(1) == torch.arange(8)).float().mean())
    assert values["logit_projection_rms"] == pytest.approx(float(projection.diagonal().square().mean().sqrt()), rel=1e-4)
    assert values["logit_linear_rms"] == pytest.approx(float((plain - bias).square().mean().sqrt()), rel=1e-4)
    assert values["pixel_spread_over_priors"] > 1e-4 and values["pixel_spread_over_z"] > 1e-4
    assert not build().diagnostics(data.sets())


def test_projection_written_out():
    module = build(condition=PRIOR)
    net, images, vectors = module.discriminator, torch.randn(4, 3, 16, 16), torch.randn(2, 4, 192)
    hidden = []
    net.linear.register_forward_hook(lambda _, __, output: hidden.append(output))
    first, second = (net(images, vectors=rows).logits[:, 0] for rows in vectors)
    difference = ((net.embedding(vectors[0]) - net.embedding(vectors[1])) * hidden[0]).sum(1) / 8**0.5
    assert torch.allclose(first - second, difference, atol=1e-5)
