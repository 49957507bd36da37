import copy
import warnings

import lightning
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import modules.consingan as consingan
import modules.pyramid as pyramid
from datamodules.image_datamodule import ImageDataModule
from datamodules.synthetic import SyntheticDataModule
from modules.consingan import ConSinGAN, RepeatedAdam, concurrent_sizes
from modules.networks.growing import GrowingGenerator, degrade, move_tiles, valid_critic
from modules.ops.noise import random_walk

TINY = [
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs_per_stage=2",
    "module.num_scales=4",
    "module.min_size=9",
    "module.train_depth=2",
    "module.num_layers=2",
    "module.width=8",
]
JOINED_BATCH = ["module.epochs_per_stage=1", "module.d_steps=2", "module.g_steps=2"]
PARAMETERS = {"consingan": 169_412, "consingan_250": 781_380}
SIZES = {"image_size": [16, 20], "num_scales": 4, "min_size": 9, "train_depth": 2, "num_layers": 2, "width": 8}


def fit(data=None, epochs=1, callbacks=(), samples=4, seed=0, trainer=(), **changes):
    """A small model trained on one drawn scene."""
    lightning.seed_everything(seed, verbose=False)
    module = ConSinGAN(**({"epochs_per_stage": epochs} | SIZES | changes))
    data = data or SyntheticDataModule(list(module.image_size), samples_per_epoch=samples, num_images=1)
    options = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
               "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    lightning.Trainer(**options, **dict(trainer), callbacks=list(callbacks)).fit(module, data)
    return module.eval()


@pytest.fixture(scope="module")
def trained():
    """Long enough for the reconstruction to be better than the mean color."""
    return fit(samples=40, train_depth=3, width=16, mode="retarget", lr_g=1e-3, weight_reconstruction=100.0)


@pytest.fixture(scope="module")
def image():
    data = SyntheticDataModule([16, 20], num_images=1)
    data.setup()
    return data.sets()["image"].stack()


class Watch(lightning.Callback):
    """Calls `function(module)` before the first batch of every epoch, when the stage has been entered."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.function(module)


def shrink(images, size):
    same = tuple(images.shape[-2:]) == tuple(size)
    return images if same else F.interpolate(images, tuple(size), mode="bicubic", antialias=True).clamp(-1, 1)


# --- pyramid ----------------------------------------------------------------------------------------------------------


def test_sizes_of_the_released_code():
    """The second vector is printed in a thread of the released code, which rounds 25 · (1 + 1e-16) up to 26 × 38."""
    assert concurrent_sizes((188, 250), 25, 6) == [(25, 34), (32, 42), (42, 56), (63, 84), (126, 167), (188, 250)]
    expected = [(25, 38), (29, 43), (34, 50), (40, 61), (51, 77), (72, 108), (127, 191), (166, 250)]
    assert concurrent_sizes((166, 250), 25, 8) == expected


@pytest.mark.parametrize("size", [(188, 250), (250, 61), (121, 121), (96, 72)])
@pytest.mark.parametrize("even", [False, True])
def test_sizes_grow_from_the_smallest_to_the_image(size, even):
    sizes = concurrent_sizes(size, 25, 5, even)
    assert min(sizes[0]) == 25 and sizes[-1] == size
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in zip(sizes, sizes[1:], strict=False))


def test_harmonization_spaces_the_scales_evenly():
    assert concurrent_sizes((160, 320), 20, 4, even=True) == [(20, 40), (40, 80), (80, 160), (160, 320)]
    module = ConSinGAN([40, 60], mode="harmonization", num_scales=3, min_size=10, width=4, num_layers=2)
    assert module.sizes == [(10, 15), (20, 30), (40, 60)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [25, 1000]}, r"image_size \[25, 1000\].*larger than min_size 25"),
        ({"image_size": [1, 60], "min_size": 9}, r"image_size \[1, 60\].*larger than min_size 9"),
        ({"image_size": [60, 60], "min_size": 10}, "min_size is 10.*at least 11"),
        ({"image_size": [60, 60], "num_scales": 2}, "num_scales is 2; at least 3"),
        ({"image_size": [60, 60], "num_scales": 1, "mode": "harmonization"}, "num_scales is 1; at least 2"),
        ({"image_size": [60, 60], "epochs_per_stage": [5, 5]}, r"epochs_per_stage is \[5, 5\]"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ConSinGAN(**changes)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_numbers_of_parameters_of_the_released_code():
    module = ConSinGAN([188, 250])
    assert sum(p.numel() for p in module.generator.parameters()) == 668_227
    assert sum(p.numel() for p in module.discriminator.parameters()) == 113_153


def test_a_score_of_the_critic_sees_eleven_pixels():
    critic, images = valid_critic(64, 3, 0.05), torch.randn(1, 3, 27, 30, requires_grad=True)
    scores = critic(images)
    assert scores.shape == (1, 1, 17, 20)
    (gradient,) = torch.autograd.grad(scores[0, 0, 8, 6], images)
    rows, columns = gradient.abs().sum((0, 1)).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 18, 6, 16)
    assert len(rows) == 121


def reference(generator, inputs, sizes, amplitudes, enlarge, slope, layers):
    """The generator's definition, written with functions on its weights: pad once a stage, valid convolutions."""

    def block(part, x):
        for conv in part[::2]:
            x = F.leaky_relu(F.conv2d(x, conv.weight, conv.bias), slope)
        return x

    def grow(x, height, width):
        return F.interpolate(x, (height, width), mode="bicubic", align_corners=True)

    x = block(generator.head, F.pad(inputs[0], [1] * 4))
    x = block(generator.blocks[0], F.pad(x, [layers] * 4))
    for n in range(1, len(inputs)):
        h, w = sizes[n]
        if enlarge:
            inside = grow(x, h + 2 * layers, w + 2 * layers) + amplitudes[n] * inputs[n]
        else:
            inside = F.pad(grow(x, h, w) + amplitudes[n] * inputs[n], [layers] * 4)
        x = grow(x, h, w) + block(generator.blocks[n], inside)
    tail = generator.tail[0]
    return torch.tanh(F.conv2d(F.pad(x, [1] * 4), tail.weight, tail.bias))


@pytest.mark.parametrize("enlarge", [True, False])
def test_the_generator_against_its_definition(enlarge):
    torch.manual_seed(0)
    generator = GrowingGenerator(3, 8, 2, 0.3, batch_norm=False, enlarge=enlarge)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sizes, amplitudes = [(9, 12), (11, 13), (15, 20)], torch.tensor([1.0, 0.3, 0.7])
    margin = 4 if enlarge else 0
    shapes = [(3, 9, 12), (8, 11 + margin, 13 + margin), (8, 15 + margin, 20 + margin)]
    assert generator.input_shapes(sizes) == shapes
    inputs = [torch.randn(2, *shape) for shape in shapes]
    for stages in (1, 2, 3):
        out = generator(inputs[:stages], sizes[:stages], amplitudes)
        expected = reference(generator, inputs[:stages], sizes, amplitudes, enlarge, 0.3, 2)
        assert out.shape == (2, 3, *sizes[stages - 1]) and torch.allclose(out, expected, atol=1e-5)


def test_what_a_stage_lacks_of_a_detailed_image_is_added():
    torch.manual_seed(0)
    generator = GrowingGenerator(3, 8, 2, 0.3, False, False)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sizes, amplitudes = [(9, 12), (11, 13), (15, 20)], torch.tensor([1.0, 0.3, 0.7])
    inputs = [torch.randn(2, *shape) for shape in generator.input_shapes(sizes)]
    fine = torch.randn(2, 3, 15, 20)
    features = {}
    handle = generator.tail[0].register_forward_hook(lambda layer, given, out: features.update({"last": given[0]}))
    made = generator(inputs, sizes, amplitudes)
    plain = features["last"][..., 1:-1, 1:-1]
    generator(inputs, sizes, amplitudes, fine, 2)
    expected = plain + generator.encode(fine) - generator.encode(made)
    assert torch.allclose(features["last"][..., 1:-1, 1:-1], expected, atol=1e-4)
    handle.remove()
    assert torch.allclose(generator(inputs, sizes, amplitudes, made, 2), made, atol=1e-5)
    assert torch.equal(generator(inputs, sizes, amplitudes, None, 2), generator(inputs, sizes, amplitudes))


def test_initial_weights_are_small_and_normal():
    torch.manual_seed(0)
    module = ConSinGAN([30, 40], num_scales=3, batch_norm=True)
    weights = torch.cat([p.flatten() for n, p in module.named_parameters() if p.dim() == 4])
    assert abs(weights.std().item() - 0.02) < 2e-4 and abs(weights.mean().item()) < 2e-4
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 9 and all(0.9 < n.weight.min() < n.weight.max() < 1.1 and not n.bias.any() for n in norms)


# --- stages and optimizers --------------------------------------------------------------------------------------------

# Stage of the table: rates of blocks from the newest, of the image layer, of the input layer (None: frozen), / 5e-4.
RATES = {
    0: ([1.0], 1.0, 1.0),
    1: ([1.0, 0.1], 1.0, 0.1),
    2: ([1.0, 0.1, 0.01], 1.0, 0.01),
    3: ([1.0, 0.1, 0.01], 1.0, None),
    4: ([1.0, 0.1, 0.01], 1.0, None),
    5: ([1.0, 0.1, 0.01], 1.0, None),
}


def part_of(name):
    """Block, head or tail that a weight of the generator belongs to."""
    return ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])


@pytest.mark.parametrize("stage", range(6))
def test_the_table_of_learning_rates(stage):
    module = ConSinGAN([30, 40], width=4)
    g_opt, d_opt = module.stage_optimizers(stage)
    blocks, tail, head = RATES[stage]
    expected = {f"blocks.{stage - j}": rate * 5e-4 for j, rate in enumerate(blocks)} | {"tail": tail * 5e-4}
    expected |= {"head": head * 5e-4} if head is not None else {}
    owner = {id(p): part_of(n) for n, p in module.generator.named_parameters()}
    found = {}
    for group in g_opt.param_groups:
        names = {owner[id(p)] for p in group["params"]}
        assert len(names) == 1 and group["betas"] == (0.5, 0.999)
        found[names.pop()] = group["lr"]
    assert found == pytest.approx(expected)
    assert [len(g["params"]) for g in g_opt.param_groups] == [6] * len(blocks) + [2] * (len(found) - len(blocks))
    assert [g["lr"] for g in d_opt.param_groups] == [5e-4]
    assert {id(p) for p in d_opt.param_groups[0]["params"]} == {id(p) for p in module.discriminator.parameters()}


def test_rates_drop_for_the_last_fifth_of_a_stage():
    rates = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rates.append([[g["lr"] for g in o.param_groups] for o in module.current_optimizers()])

    fit(epochs=5, callbacks=[Rates()], samples=1, num_scales=3)
    full = [[[5e-4, 5e-4, 5e-4], [5e-4]], [[5e-4, 5e-5, 5e-4, 5e-5], [5e-4]], [[5e-4, 5e-5, 5e-4], [5e-4]]]
    for epoch, found in enumerate(rates):
        expected = [[rate * (0.1 if epoch % 5 == 4 else 1.0) for rate in group] for group in full[epoch // 5]]
        assert [x for y in found for x in y] == pytest.approx([x for y in expected for x in y])
    assert len(rates) == 15


def test_older_stages_and_the_input_layer_keep_their_bits():
    """With batch norm: also the running statistics of older stages."""
    moved = []

    class Moved(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                self.before = copy.deepcopy(module.generator.state_dict())

        def on_train_epoch_end(self, trainer, module):
            now = module.generator.state_dict()
            moved.append({part_of(name) for name in now if not torch.equal(now[name], self.before[name])})

    fit(callbacks=[Moved()], batch_norm=True)
    assert moved == [{"blocks.0", "tail", "head"}, {"blocks.0", "blocks.1", "tail", "head"},
                     {"blocks.1", "blocks.2", "tail"}, {"blocks.2", "blocks.3", "tail"}]  # fmt: skip


def test_a_stage_begins_as_a_copy_of_the_last_with_the_critic_as_it_is():
    critics, checked = [], []

    def note(module):
        stage = module.stage
        if stage > 0:
            new, old = (module.generator.blocks[s].state_dict() for s in (stage, stage - 1))
            checked.append(all(torch.equal(new[name], old[name]) for name in old))
        critics.append(torch.cat([p.detach().flatten() for p in module.discriminator.parameters()]))

    class End(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            critics.append(torch.cat([p.detach().flatten() for p in module.discriminator.parameters()]))

    fit(callbacks=[Watch(note), End()])
    assert checked == [True] * 3
    assert all(torch.equal(critics[2 * s - 1], critics[2 * s]) for s in range(1, 4))
    assert not torch.equal(critics[0], critics[1])


def test_amplitudes_are_a_tenth_of_the_error_without_noise(image):
    seen = {}

    def check(module):
        stage, sizes = module.stage, module.sizes
        silent = module.amplitudes.clone()
        silent[stage] = 0
        inputs = [getattr(module, f"fixed_{n}") for n in range(stage + 1)]
        out = reference(module.generator, inputs, sizes, silent, enlarge=True, slope=0.05, layers=2)
        rmse = (out - shrink(image, sizes[stage])).square().mean().sqrt()
        seen[stage] = (module.amplitudes[stage].item(), 0.1 * rmse.item() if stage else 1.0)

    module = fit(callbacks=[Watch(check)])
    assert list(seen) == [0, 1, 2, 3]
    for found, expected in seen.values():
        assert found == pytest.approx(expected, rel=1e-5)
    assert [pair[0] for pair in seen.values()] == module.amplitudes.tolist()  # later training leaves them


def test_the_input_that_reconstructs_is_the_image_or_noise(image):
    for mode in ("generation", "retarget", "editing", "harmonization", "animation"):
        module = fit(samples=1, mode=mode)
        coarse = shrink(image, module.sizes[0])
        assert torch.equal(module.fixed_0, coarse) == (mode != "animation")
        noises = [module.fixed_1, module.fixed_2, module.fixed_3] + ([module.fixed_0] if mode == "animation" else [])
        assert all(0.8 < noise.std() < 1.2 for noise in noises)
        around = 4 if mode in ("generation", "animation") else 0
        assert module.fixed_3.shape == (1, 8, 16 + around, 20 + around)


# --- one iteration ----------------------------------------------------------------------------------------------------


def test_three_steps_are_taken_on_one_gradient():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    repeated = RepeatedAdam([{"params": list(first.parameters()), "lr": 0.1}], 1.0, (0.5, 0.999), repeats=3)
    plain = torch.optim.Adam(second.parameters(), 0.1, (0.5, 0.999))
    for _ in range(2):
        x = torch.randn(5, 3)
        for network, optimizer, steps in ((first, repeated, 1), (second, plain, 3)):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            for _ in range(steps):
                optimizer.step()
    assert torch.equal(first.weight, second.weight) and repeated.state[first.weight]["step"] == 6


def seen_by_the_penalty(monkeypatch):
    """List that fills with the (reals, fakes) of every gradient penalty, that is of every critic's step."""
    seen, penalty = [], pyramid.gradient_penalty

    def noting(critic, reals, fakes):
        seen.append((reals.clone(), fakes.detach().clone()))
        return penalty(critic, reals, fakes)

    monkeypatch.setattr(pyramid, "gradient_penalty", noting)
    return seen


def test_an_iteration_has_three_critic_gradients_and_one_of_the_generator(monkeypatch):
    optimize, losses, states = ConSinGAN.optimize, [], []
    monkeypatch.setattr(ConSinGAN, "optimize", lambda self, *step: losses.append(step[1]) or optimize(self, *step))
    seen = seen_by_the_penalty(monkeypatch)

    class Steps(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            g_opt, d_opt = module.current_optimizers()
            newest, critic = module.generator.blocks[module.stage][0].weight, next(module.discriminator.parameters())
            states.append([float(g_opt.state[newest]["step"]), float(d_opt.state[critic]["step"])])

    fit(samples=2, callbacks=[Steps()])
    samples = [fakes for _, fakes in seen]
    assert len(losses) == 4 * 2 * 4
    assert states == [[3.0, 3.0], [6.0, 6.0]] * 4  # every stage begins with new optimizers
    for i in range(0, len(samples), 3):
        assert torch.equal(samples[i], samples[i + 1]) and torch.equal(samples[i], samples[i + 2])
    assert not torch.equal(samples[0], samples[3])


def test_the_adversarial_gradient_alone_reaches_every_part_in_training():
    norms = {}

    class Gradients(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if isinstance(optimizer, RepeatedAdam):
                norms[module.stage] = [max(p.grad.abs().max() for p in g["params"]) for g in optimizer.param_groups]

    fit(samples=1, callbacks=[Gradients()], weight_reconstruction=0.0)
    assert [len(norms[stage]) for stage in range(4)] == [3, 4, 3, 3]
    assert all(norm > 0 for stage in norms.values() for norm in stage)


def test_only_the_first_image_is_learned_and_a_folder_gives_a_warning():
    data, single = (SyntheticDataModule([16, 20], samples_per_epoch=2, num_images=n, flip=True) for n in (3, 1))
    module = ConSinGAN(**SIZES)
    for images in (data, single):
        images.setup()
    with pytest.warns(UserWarning, match="the first, image_000.png; datamodule.image chooses another"):
        module.check_data(data.sets())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.check_data(single.sets())
    several, one = fit(data), fit(samples=2)
    assert all(torch.equal(a, b) for a, b in zip(several.state_dict().values(), one.state_dict().values(), strict=True))


def test_the_batch_size_is_the_number_of_samples_in_a_step(monkeypatch):
    seen = seen_by_the_penalty(monkeypatch)
    fit(SyntheticDataModule([16, 20], batch_size=3, samples_per_epoch=3, num_images=1))
    assert all(len(reals) == len(fakes) == 3 and torch.equal(reals[0], reals[2]) for reals, fakes in seen)
    assert len(seen) == 12 and not torch.equal(seen[0][1][0], seen[0][1][1])


# --- training works ---------------------------------------------------------------------------------------------------


def test_the_reconstruction_of_a_two_colored_image_halves_its_error(tmp_path):
    picture = Image.new("RGB", (32, 32), (200, 40, 40))
    picture.paste((40, 60, 200), (0, 16, 32, 32))
    picture.save(tmp_path / "one.png")
    data = ImageDataModule(str(tmp_path / "one.png"), [32, 32], samples_per_epoch=60)  # 60 iterations a stage
    losses = []

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(trainer.callback_metrics["train/reconstruction"]))

    module = fit(data, callbacks=[Losses()], image_size=[32, 32], num_scales=3, min_size=16)
    assert losses[59] < 0.5 * losses[0] and losses[-1] < 0.5 * losses[0]
    numbers = module.diagnostics(data.sets())
    error = module.reconstruct(data.sets()["image"].stack()) - data.sets()["image"].stack()
    assert numbers["reconstruction_rmse_scale2"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    assert numbers["noise_amplitude_scale0"] == 1.0 and 0 < numbers["noise_amplitude_scale2"] < 0.2


def test_samples_of_one_color_give_a_warning_with_the_advice():
    def blank(module):
        torch.nn.init.zeros_(module.generator.tail[0].weight)

    with pytest.warns(UserWarning, match=r"scale 1 11×13 gives nearly constant .* module.batch_norm=true"):
        fit(callbacks=[Watch(blank)], lr_g=0.0, samples=1)


@pytest.mark.parametrize("mode", ["generation", "retarget", "animation", "harmonization", "editing"])
def test_every_mode_learns_to_reconstruct_the_image(mode, image):
    """From its own inputs: the image at the coarsest size, or in animation fixed noise."""
    module = fit(samples=40, mode=mode, width=16, num_scales=3, lr_g=1e-3, weight_reconstruction=100.0)
    error = F.mse_loss(module.reconstruct(image), image).sqrt()
    assert error < 0.75 * image.std((2, 3), unbiased=False).square().mean().sqrt()
    inputs = module.fixed_inputs(module.sizes)
    margin = "generation" if mode == "animation" else mode
    direct = reference(module.generator, inputs, module.sizes, module.amplitudes, margin == "generation", 0.05, 2)
    assert torch.allclose(module.reconstruct(image), direct, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("generation", None), ("retarget", None), ("animation", None), ("harmonization", 0.5), ("editing", 0.8)],
)
def test_the_samples_of_a_mode_are_made_of_noise_or_of_changed_images(mode, kept):
    """`kept`: the correlation with the image that half of the changed images have at least."""
    module = ConSinGAN(**SIZES, mode=mode)
    height, width = module.sizes[0]
    module.fixed_0.copy_(torch.linspace(-0.9, 0.9, height * width).view(1, 1, height, width))
    torch.manual_seed(0)
    first, *noises = module.draw(200, module.sizes)
    assert all(abs(noise.std() - 1) < 0.05 and abs(noise.mean()) < 0.05 for noise in noises)
    pairs = [torch.stack([sample.flatten(), module.fixed_0[0].flatten()]) for sample in first]
    correlations = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    if kept is None:
        assert abs(first.std() - 1) < 0.05 and correlations.abs().max() < 0.4
        return
    assert correlations.median() > kept and first.std(0).min() > 0
    composite = torch.rand(200, 3, height, width)
    noise = module.draw(200, module.sizes, composite)[0] - composite
    assert abs(noise.std() - {"editing": 0.1, "harmonization": 0.0}[mode]) < 0.005


@pytest.mark.parametrize("mode", ["animation", "harmonization", "editing"])
def test_every_mode_samples_and_takes_images(mode, image):
    module = fit(samples=2, mode=mode, batch_norm=mode != "animation")
    torch.manual_seed(0)
    first, second = module.sample(2)
    assert first.shape == (3, 16, 20) and not torch.equal(first, second)
    assert module.sample(1, (16, 31)).shape == (1, 3, 16, 31)
    assert module.reconstruct(image).shape == module.inject(image).shape == image.shape


def test_batch_norm_statistics_agree_on_two_processes(tmp_path):
    class Write(lightning.Callback):
        def on_train_end(self, trainer, module):
            torch.save(module.state_dict(), tmp_path / f"{trainer.global_rank}.pt")

    fit(SyntheticDataModule([16, 20], samples_per_epoch=4, num_images=1), callbacks=[Write()], batch_norm=True,
        trainer={"devices": 2, "strategy": "ddp_fork"}, num_scales=3)  # fmt: skip
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert sum("running" in name for name in first) == 12
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- use --------------------------------------------------------------------------------------------------------------


def seeded(seed, function, *arguments, **options):
    torch.manual_seed(seed)
    return function(*arguments, **options)


def test_samples_follow_the_seed(trained):
    first, again, other = (seeded(seed, trained.sample, 2) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_twice_the_width_gives_new_places_and_not_the_same_twice(trained):
    wide = seeded(0, trained.sample, 1, (16, 40))
    assert wide.shape == (1, 3, 16, 40) and wide.isfinite().all() and wide.abs().max() <= 1
    assert (wide[..., :20] - wide[..., 20:]).abs().mean() > 0.01


@pytest.mark.parametrize("size", [(31, 22), (9, 60), (1, 20)])
@pytest.mark.parametrize("mode", ["generation", "retarget"])
def test_any_size_can_be_sampled_and_injected(size, mode):
    module = ConSinGAN(mode=mode, **SIZES).eval()
    module.stage = 3
    assert module.sample(2, size).shape == (2, 3, *size)
    images = torch.rand(2, 3, *size) * 2 - 1
    for scale in range(4):
        out = module.inject(images, scale)
        assert out.shape == images.shape and not out.requires_grad
    assert module.reconstruct(images).shape == images.shape
    with pytest.raises(ValueError, match=r"scale is 4.*0 \(coarsest\) to 3 \(finest\)"):
        module.inject(images, 4)
    with pytest.raises(ValueError, match="start_scale is -1"):
        module.animate(2, start_scale=-1)


def test_the_image_injected_at_stage_0_with_the_fixed_noise_is_the_reconstruction(trained, image, monkeypatch):
    expected = trained.reconstruct(image)
    monkeypatch.setattr(trained, "draw", lambda number, sizes: trained.fixed_inputs(sizes))
    assert torch.equal(trained.inject(image), expected)
    inputs = [shrink(image, trained.sizes[0]), trained.fixed_1, trained.fixed_2, trained.fixed_3]
    direct = reference(trained.generator, inputs, trained.sizes, trained.amplitudes, False, slope=0.05, layers=2)
    assert torch.allclose(expected, direct, atol=1e-5)


def test_injection_depends_on_the_image_and_on_the_scale(trained, image):
    assert (trained.reconstruct(image) - image).square().mean() < 0.6 * image.var()
    outputs = [seeded(0, trained.inject, images, scale) for images in (image, -image) for scale in range(4)]
    assert all((a - b).abs().mean() > 1e-3 for i, a in enumerate(outputs) for b in outputs[:i])
    repeated = [seeded(1, trained.inject, image, scale) for scale in range(4)]  # noise is random above the scale only
    assert [torch.equal(x, y) for x, y in zip(outputs, repeated, strict=False)] == [False, False, False, True]


def test_the_training_image_at_the_finest_scale_comes_back_as_from_the_reconstruction(trained, image):
    errors = [F.mse_loss(made, image) for made in (seeded(0, trained.inject, image, 3), trained.reconstruct(image))]
    assert errors[0] < 1.1 * errors[1]


@pytest.fixture(scope="module", params=["harmonization", "editing"])
def changing(request):
    """A model for composites; batch norm's statistics and all stages take part."""
    return fit(samples=40, mode=request.param, num_scales=3, width=16, batch_norm=True, lr_g=1e-3, lr_d=1e-3)


def pasted(image):
    """The image with a block in a color that it has nowhere."""
    composite = image.clone()
    composite[..., 4:12, 6:14] = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    return composite


def test_finetuning_brings_a_composite_nearer_to_the_colors_of_the_image(changing, image):
    before = {name: tensor.clone() for name, tensor in changing.state_dict().items()}
    composite = pasted(image)

    def strangeness(result):
        """Mean distance of the block's colors to the nearest color of the training image."""
        colors = result[0, :, 4:12, 6:14].flatten(1).T
        return torch.cdist(colors, image[0].flatten(1).T).min(1).values.mean()

    plain, tuned, again = (seeded(0, changing.inject, composite, finetune=n) for n in (0, 40, 40))
    assert torch.equal(tuned, again) and strangeness(tuned) < 0.8 * strangeness(plain) < 0.8 * strangeness(composite)
    assert not tuned.requires_grad and all(torch.equal(tensor, before[name]) for name, tensor in changing.state_dict().items())


def test_finetuning_is_the_last_stage_again_with_the_composite_as_input(changing, image, monkeypatch):
    seen, rates, starts = seen_by_the_penalty(monkeypatch), [], []
    step, draw = consingan.plain_step, ConSinGAN.draw

    def note(optimizer, loss):
        rates.append([group["lr"] for group in optimizer.param_groups])
        step(optimizer, loss)

    monkeypatch.setattr(consingan, "plain_step", note)
    monkeypatch.setattr(ConSinGAN, "draw", lambda *given: starts.append((given, draw(*given))) or starts[-1][1])
    composite = pasted(image)
    with torch.inference_mode():
        tuned = changing.finetuned(F.interpolate(composite, (24, 40)), 5)
    assert len(seen) == 5 * 3 and len(starts) == 5
    assert all(torch.equal(reals, image) and fakes.shape == image.shape for reals, fakes in seen)
    coarse = shrink(F.interpolate(composite, (24, 40)), changing.sizes[0])
    assert all(torch.equal(given[3], coarse) for given, _ in starts)
    assert torch.equal(starts[0][1][0], coarse) == (changing.hparams.mode == "harmonization")
    full = [1e-3, 1e-4, 1e-3], [1e-3]  # train_depth 2: newest block, the one before, image layer; critic
    for index, found in enumerate(rates):
        expected = full[index % 4 < 3]
        assert found == pytest.approx([rate * (0.1 if index >= 16 else 1.0) for rate in expected])
    moved = {part_of(name) for name, tensor in tuned.generator.state_dict().items()
             if not torch.equal(tensor, changing.generator.state_dict()[name])}  # fmt: skip
    assert moved == {"blocks.1", "blocks.2", "tail"} and not tuned.generator.training
    assert torch.equal(tuned.amplitudes, changing.amplitudes) and torch.equal(tuned.fixed_2, changing.fixed_2)


def test_finetuning_is_refused_where_images_are_no_inputs_in_training(trained, image):
    with pytest.raises(ValueError, match="finetune: module.mode is retarget; expected harmonization or editing"):
        trained.inject(image, finetune=3)


def test_until_the_last_stage_trains_samples_are_enlarged():
    shapes = []

    def draw(module):
        module.eval()
        coarse = module.generator(seeded(0, module.draw, 1, module.sizes[:1]), module.sizes[:1], module.amplitudes)
        if module.stage == 0:
            shapes.append(torch.allclose(seeded(0, module.sample, 1), shrink(coarse, (16, 20)), atol=1e-6))
        module.train()

    fit(callbacks=[Watch(draw)])
    assert shapes == [True]


def test_the_random_walk_against_its_recursion():
    anchor, alpha, beta = torch.randn(1, 2, 3, 4), 0.1, 0.85
    torch.manual_seed(3)
    walk = random_walk(anchor, lambda: torch.randn_like(anchor), alpha, beta, first_step=0.01)
    found = [next(walk) for _ in range(6)]
    torch.manual_seed(3)
    z = [anchor, 0.99 * anchor + 0.01 * torch.randn(1, 2, 3, 4)]
    while len(z) < 6:
        d = beta * (z[-1] - z[-2]) + (1 - beta) * torch.randn(1, 2, 3, 4)
        z.append(alpha * anchor + (1 - alpha) * (z[-1] + d))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, z, strict=True))


def test_an_animation_begins_at_the_reconstruction_and_moves(trained, image):
    frames = seeded(0, trained.animate, 6)
    assert frames.shape == (6, 3, 16, 20) and torch.allclose(frames[:1], trained.reconstruct(image), atol=1e-5)
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    assert steps.min() > 0 and not torch.equal(frames, seeded(1, trained.animate, 6))
    still = seeded(0, trained.animate, 3, alpha=1.0)  # pulled back completely: only z_1 differs
    assert torch.equal(still[0], still[2])
    fine, coarse = (seeded(0, trained.animate, 6, start_scale=scale) for scale in (3, 0))
    assert (fine - fine[:1]).abs().mean() < (coarse - coarse[:1]).abs().mean()


def test_degraded_images_are_whole_images_of_which_most_differ(image):
    torch.manual_seed(0)
    results = [degrade(image[0]) for _ in range(200)]
    assert all(r.shape == image[0].shape and r.abs().max() <= 1 and r.isfinite().all() for r in results)
    unchanged = sum(torch.equal(r, image[0]) for r in results) / 200
    assert unchanged == pytest.approx(0.1 * 0.75**4, abs=0.035)  # no cut-out, none of four changes
    kept = sum(bool((r == image[0]).all(0).any()) for r in results) / 200
    assert kept == pytest.approx(0.75**4, abs=0.1)  # only cut-outs: the rest is untouched


def test_moved_tiles_show_pixels_of_the_image_at_other_places():
    image = torch.arange(24 * 32).view(1, 24, 32).expand(3, -1, -1) / 1000
    torch.manual_seed(0)
    for _ in range(50):
        moved = move_tiles(image)
        assert moved.shape == image.shape and torch.isin(moved, image).all()
    assert 0.01 < (moved != image).float().mean() < 0.6 and torch.equal(image[0].flatten(), torch.arange(768) / 1000)
