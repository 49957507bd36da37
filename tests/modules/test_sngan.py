"""SNGAN: networks against published sizes and written-out formulas, one iteration, transfer, classes."""

import copy

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import sampling_mode
from modules.networks.resnet import ConditionalBatchNorm, LayerFactory, ResNetDiscriminator, ResNetGenerator
from modules.sngan import SNGAN
from tasks.generate import Generate

TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,16]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs=2",
    "module.iterations=null",
    "module.z_dim=8",
    "module.g_channels=[8,8,8]",
    "module.d_channels=[8,8]",
    "module.d_down=2",
    "module.n_dis=2",
    "module.standing_batches=1",
]
JOINED_BATCH = ["module.n_dis=1"]
# The networks of 128 pixels have 32,150,787 and 29,017,857 as published; the average counts once more.
TINY_OF = {"disp_sngan": ["module.condition.extractor=colors"]}  # needs no weights
PARAMETERS = {"sngan": 576_903, "disp_sngan": 902_663, "sngan_128": 93_319_431}
SMALL = {"image_size": [16, 16], "epochs": 2, "z_dim": 8, "g_channels": [8, 8, 8], "d_channels": [8, 8], "n_dis": 2}
LABELS = {"class_path": "modules.conditions.Labels", "num_classes": 2}


def build(class_=SNGAN, **changes) -> SNGAN:
    torch.manual_seed(0)
    return class_(**(SMALL | changes))


def fit(module, callbacks=(), data=None, **trainer):
    """Two iterations an epoch, of four images for each discriminator step."""
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    keys = {"batch_size": 4, "samples_per_epoch": 8 * module.reals_per_iteration, "num_images": 8} | (data or {})
    lightning.Trainer(**(settings | trainer), callbacks=list(callbacks)).fit(module, SyntheticDataModule([16, 16], **keys))
    return module


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


# --- networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "generator", "discriminator"),
    [(32, 4_276_739, 1_053_825), (64, 12_220_675, 10_141_441), (128, 32_150_787, 29_017_857)],
)
def test_published_networks_have_their_numbers_of_parameters(side, generator, discriminator):
    with torch.device("meta"):
        module = SNGAN([side, side], iterations=1)
        assert (count(module.generator), count(module.discriminator)) == (generator, discriminator)
        images = module.generator(torch.zeros(2, 128))
        output = module.discriminator(images)
    assert images.shape == (2, 3, side, side) and output.logits.shape == (2,)


def test_spectral_norm_reaches_the_largest_singular_value_and_rests_in_eval_mode():
    net = ResNetDiscriminator([8, 8, 8], 2, 3).train()
    images, vectors = torch.randn(2, 3, 16, 16), torch.eye(3)[:2]
    for _ in range(300):
        net(images, vectors)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.eval().weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)
    before = state(net.eval())
    assert torch.equal(net(images, vectors).logits, net(images, vectors).logits) and not changed(before, net.state_dict())
    for layer in layers:
        layer.parametrizations.weight.original.data.normal_()
    net.train()(images, vectors)
    moved = {key.rpartition(".parametrizations")[0] for key in changed(before, net.state_dict()) if key.endswith((".u", ".v"))}
    assert len(moved) == len(layers)
    nn.init.zeros_(net.linear.parametrizations.weight.original)
    assert net(images, vectors).logits.isfinite().all()


def test_conditional_batch_norm_written_out():
    torch.manual_seed(0)
    features, codes = torch.randn(5, 4, 3, 3), torch.randn(5, 6)
    for one_hot in (False, True):
        norm = ConditionalBatchNorm(4, 6, one_hot).train()
        if not one_hot:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        output = norm(features, codes)
        for n in range(5):
            for c in range(4):
                plane = features[:, c]
                plain = (features[n, c] - plane.mean()) / (plane.var(correction=0) + 1e-5).sqrt()
                gain = (1 if one_hot else norm.weight[c]) + norm.gain.weight[c] @ codes[n]
                shift = (0 if one_hot else norm.bias[c]) + norm.shift.weight[c] @ codes[n]
                assert torch.allclose(output[n, c], gain * plain + shift, atol=1e-5)
        assert torch.allclose(norm.running_mean, 0.1 * features.mean((0, 2, 3)), atol=1e-6)
    plain, conditional = ConditionalBatchNorm(4), ConditionalBatchNorm(4, 6)
    nn.init.zeros_(conditional.gain.weight)
    nn.init.zeros_(conditional.shift.weight)
    assert torch.allclose(plain(features), conditional(features, codes), atol=1e-6)


def test_projection_is_an_inner_product_and_features_are_summed():
    net = ResNetDiscriminator([8, 8, 8], 2, 5, layers=LayerFactory(spectral=False)).eval()
    images, first, second = torch.randn(4, 3, 16, 16), torch.randn(4, 5), torch.randn(4, 5)
    one, other = net(images, first), net(images, second)
    units = [vectors / vectors.square().sum(1, keepdim=True).sqrt() for vectors in (first, second)]
    difference = ((net.embedding(units[0]) - net.embedding(units[1])) * one.features).sum(1)
    assert torch.allclose(one.logits - other.logits, difference, atol=1e-5)
    assert torch.allclose(one.logits, net.linear(one.features)[:, 0] + one.projection)
    maps = images
    for block in net.blocks:
        maps = block(maps)
    assert torch.allclose(one.features, maps.clamp(min=0).flatten(2).sum(2), atol=1e-5)
    both = net(torch.cat([images, images.flip(3)]), torch.cat([first, second])).logits  # no image sees another
    assert torch.allclose(both, torch.cat([one.logits, net(images.flip(3), second).logits]), atol=1e-5)


def test_blocks_written_out():
    """Up: the skip is upsampled; first block: the skip is averaged before its convolution; no block changes its input."""
    torch.manual_seed(0)
    generator, net = ResNetGenerator(8, 4, [6, 5]).eval(), ResNetDiscriminator([5, 5, 7], 2).eval()
    block, features = generator.blocks[0], torch.randn(2, 6, 4, 4)
    main = F.interpolate(block.norm1(features).relu(), scale_factor=2)
    main = F.conv2d(main, block.conv1.weight, block.conv1.bias, padding=1)
    main = F.conv2d(block.norm2(main).relu(), block.conv2.weight, block.conv2.bias, padding=1)
    skip = F.conv2d(F.interpolate(features, scale_factor=2), block.skip.weight, block.skip.bias)
    assert torch.allclose(block(features, None), main + skip, atol=1e-5)
    first, images = net.blocks[0], torch.randn(2, 3, 8, 8)
    main = F.avg_pool2d(first.conv2(first.conv1(images).relu()), 2)
    assert torch.allclose(first(images), main + first.skip(F.avg_pool2d(images, 2)), atol=1e-5)
    inputs = torch.randn(2, 5, 4, 4)
    kept = inputs.clone()
    main = net.blocks[1].conv2(net.blocks[1].conv1(inputs.relu()).relu())
    assert torch.allclose(net.blocks[1](inputs), F.avg_pool2d(main, 2) + F.avg_pool2d(net.blocks[1].skip(inputs), 2), atol=1e-5)
    assert torch.equal(inputs, kept)


# --- the iteration ------------------------------------------------------------------------------------------------------


def test_every_discriminator_step_has_its_own_images_and_each_step_moves_its_own_network():
    module = build(n_dis=3)
    seen, moved = [], []
    discriminate, optimize = module.discriminate, module.optimize

    def watch_discriminate(images, vectors):
        seen.append(images.detach().clone())
        return discriminate(images, vectors)

    def watch_optimize(optimizer, loss):
        before = state(module)
        optimize(optimizer, loss)
        moved.append({key.split(".")[0] for key in changed(before, module.state_dict())})

    module.discriminate, module.optimize = watch_discriminate, watch_optimize
    fit(module, max_epochs=1, data={"num_images": 24})
    assert len(seen) == 14 and moved == [{"discriminator"}] * 3 + [{"generator"}] + [{"discriminator"}] * 3 + [{"generator"}]
    reals = torch.cat(seen[0:6:2] + seen[7:13:2])
    assert len(reals) == 24 and len(reals.unique(dim=0)) == 24
    assert all(not a.equal(b) for a, b in zip(seen[1:6:2], seen[3:6:2], strict=False))  # fresh fakes


def test_the_generator_learns_from_the_discriminator_alone():
    module = build(d_down=1)
    nn.init.zeros_(module.discriminator.linear.parametrizations.weight.original)
    module.discriminate(module.fakes(4, None), None).logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.generator.parameters())


def test_learning_rates_fall_to_zero():
    module, rates = build(epochs=5, lr_decay=0.6, lr_g=1.0e-3), []

    class Watch(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    fit(module, [Watch()])
    assert [row[0] for row in rates] == pytest.approx([1e-3] * 4 + [0.5e-3])
    assert [row[1] for row in rates] == pytest.approx([2e-4] * 4 + [1e-4])


@pytest.mark.parametrize("settings", [{"augment": "diffaugment"}, {"augment": "ada"}, {"loss": "logistic"}, {"g_batch": 2}])
def test_settings_change_the_training(settings):
    plain, other = (fit(build(**keys), max_epochs=1) for keys in ({}, settings))
    assert bool(changed(plain.generator.state_dict(), other.generator.state_dict())) == (settings != {"augment": "ada"})
    if settings == {"augment": "ada"}:
        assert other.augment.calls == 4  # of each discriminator step
    assert not changed(plain.state_dict(), fit(build(augment="diffaugment", policy=""), max_epochs=1).state_dict())


def test_the_average_is_a_copy_until_it_starts():
    module = fit(build(ema_decay=0.9, ema_start=2), max_epochs=1)
    assert not changed(module.generator.state_dict(), module.generator_ema.state_dict())
    module = fit(build(ema_decay=0.9, ema_start=2))
    assert changed(module.generator.state_dict(), module.generator_ema.state_dict())


def test_standing_statistics_are_those_of_samples():
    module = build(standing_batches=3)
    for part in (module.generator, module.generator_ema):
        part.blocks[0].norm1.weight.data.fill_(2.0)
    module.prepare_sampling()
    net = module.generator_ema
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        inputs = [net.linear(torch.randn(64, 8)).unflatten(1, (-1, 4, 4)) for _ in range(3)]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in inputs]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in inputs]).mean(0)
    assert torch.allclose(net.blocks[0].norm1.running_mean, mean, atol=1e-6)
    assert torch.allclose(net.blocks[0].norm1.running_var, variance, atol=1e-5)
    assert not any(part.training for part in net.modules()) and net.norm.momentum == 0.1
    before, random = state(module), torch.get_rng_state()
    module.prepare_sampling()
    assert not changed(before, module.state_dict()) and torch.equal(random, torch.get_rng_state())


# --- transfer -----------------------------------------------------------------------------------------------------------


def source_of(module: SNGAN) -> dict[str, torch.Tensor]:
    """Weights unlike the initial ones, the average unlike the generator."""
    torch.manual_seed(5)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return state(module)


def test_transfer_begins_at_the_source_and_frozen_blocks_stay(tmp_path):
    source = build()
    torch.save({"state_dict": source_of(source)}, tmp_path / "source.pt")
    module = build(source_checkpoint=str(tmp_path / "source.pt"), freeze_blocks=1, ema_decay=0.9)
    loaded = copy.deepcopy(module)
    loaded.load_source({"state_dict": source.state_dict()})
    z = torch.randn(3, 8)
    for net in (loaded.generator, loaded.generator_ema):
        assert torch.equal(net.eval()(z), source.generator_ema(z))
    fit(module)
    differing = changed(source.discriminator.state_dict(), module.discriminator.state_dict())
    assert differing and not any(key.startswith("blocks.0.") for key in differing)
    trained = [sum(p.numel() for g in m.configure_optimizers()[1].param_groups for p in g["params"]) for m in (build(), module)]
    assert trained[0] - trained[1] == count(module.discriminator.blocks[0])
    with pytest.raises(UserError, match="freeze_blocks is 3; there are 2 blocks"):
        build(freeze_blocks=3)


def test_a_source_with_classes_gives_the_mean_of_its_classes():
    source = build(condition=LABELS)
    source_of(source)
    module = build()
    module.load_source(source.state_dict())
    for ours, theirs in ((module.generator, source.generator_ema), (module.generator_ema, source.generator_ema)):
        norms = [[m for m in net.modules() if isinstance(m, ConditionalBatchNorm)] for net in (ours, theirs)]
        for mean, tables in zip(*norms, strict=True):
            assert torch.allclose(mean.weight, 1 + tables.gain.weight.mean(1))
            assert torch.allclose(mean.bias, tables.shift.weight.mean(1))
    classes = build(condition=LABELS | {"num_classes": 3})
    before = state(classes)
    classes.load_source(source.state_dict())
    kept = before.keys() - changed(before, classes.state_dict())
    assert {"discriminator.embedding.parametrizations.weight.original", "generator.blocks.0.norm1.gain.weight"} <= kept


def test_a_source_of_another_size_is_one_error():
    shapes = r"does not fit SNGAN: .*; generator.*linear.weight has shape \(64, 8\), expected \(128, 8\); "
    with pytest.raises(UserError, match=shapes):
        build().load_source(build(g_channels=[4, 8, 8]).state_dict())
    with pytest.raises(UserError, match="holds no generator"):
        build().load_source({"x": torch.zeros(1)})


# --- classes, sizes -----------------------------------------------------------------------------------------------------


def test_classes_are_learned_and_chosen():
    module = fit(build(condition=LABELS), data={"labels": "folder"})

    def drawn(labels):
        with sampling_mode(module, 0, range(6)):
            return module.sample(6, labels=labels)

    ones, zeros, mixed = drawn([1]), drawn([0]), drawn([0, 1])
    assert not torch.allclose(ones, zeros)
    rows = torch.stack([(mixed - other).flatten(1).abs().amax(1) for other in (zeros, ones)])
    assert (rows.min(0).values < 1e-5).all() and (rows.argmin(0).unique(return_counts=True)[1] > 0).all()
    task = Generate(num_images=6, options={"labels": [1]})
    assert len(dict(task(module))) == 6
    for labels, message in (([2], "class 2 is unknown; allowed are 0 to 1"), ([], r"labels is \[\]; expected at least one")):
        with pytest.raises(UserError, match=message):
            module.sample(1, labels=labels)
    with pytest.raises(UserError, match="this SNGAN was not trained with classes"):
        build().sample(1, labels=[0])


def test_a_class_with_one_image_is_an_error():
    data = SyntheticDataModule([16, 16], num_images=3, labels="folder")
    data.setup()
    with pytest.raises(UserError, match=r"class 1 has one image, image_001\.png; at least two are needed"):
        build(condition=LABELS).check_data(data.sets())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [16, 32]}, "makes squares of 8, 16, 32"),
        ({"g_channels": [8, 8]}, "g_channels has 2 entries, .* expected 3, at 4×4 and at each size up to 16"),
        ({"g_channels": None}, "published ones for 32, 64, 128 pixels only; give them for 16"),
        ({"d_down": 3}, "d_channels has 2 entries, .* expected 3, at least d_down=3"),
        ({"d_channels": [8] * 5, "d_down": 5}, "images of 16 pixels can be halved 4 times"),
    ],
)
def test_wrong_sizes_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


@pytest.mark.slow
def test_one_image_is_learned_by_heart():
    widths = {"g_channels": [16, 16, 16], "d_channels": [16, 16, 16]}
    module = build(epochs=4, lr_g=1e-3, lr_d=1e-3, betas=[0.5, 0.9], n_dis=1, ema_decay=0.98, **widths)
    fit(module, data={"num_images": 1, "samples_per_epoch": 800})
    with sampling_mode(module, 0):
        fakes = module.sample(16)
    data = SyntheticDataModule([16, 16], num_images=1)
    data.setup()
    assert (fakes - data.sets()["image"][0]).abs().mean() < 0.1
