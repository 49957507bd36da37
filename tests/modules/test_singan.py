import copy
import math
import warnings

import lightning
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.image_datamodule import ImageDataModule
from datamodules.synthetic import SyntheticDataModule
from modules.networks.noise_pyramid import NoiseGenerator, valid_stack
from modules.singan import SinGAN
from tasks.harmonize import Harmonize

TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs_per_stage=2",
    "module.min_size=8",
    "module.scale_factor=0.45",
    "module.width=8",
    "module.scales_per_width=2",
    "module.depth=2",
]
JOINED_BATCH = ["module.epochs_per_stage=1", "module.d_steps=2", "module.g_steps=2"]
PARAMETERS = {"singan": 294_740, "singan_250": 2_948_392, "concat_singan": 235_792, "concat_singan_250": 2_948_392}
SMALL = {"image_size": [16, 20], "min_size": 8, "scale_factor": 0.45, "width": 4, "depth": 2, "epochs_per_stage": 1}
SIZES = [(8, 10), (12, 15), (16, 20)]  # of SMALL: 8 * sqrt(2) = 11.3


def build(**changes) -> SinGAN:
    torch.manual_seed(0)
    return SinGAN(**(SMALL | changes)).eval()


def drawn(size=(16, 20), **keys) -> SyntheticDataModule:
    return SyntheticDataModule(list(size), **({"image": 0, "batch_size": 2, "samples_per_epoch": 6} | keys))


def fit(module, data=None, callbacks=(), checkpoint=None, **trainer):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    runner = lightning.Trainer(**(settings | trainer), callbacks=list(callbacks))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nearly constant")  # after three iterations some scales are
        runner.fit(module, data or drawn(), ckpt_path=checkpoint)
    return module.eval()


@pytest.fixture(scope="module")
def trained():
    """All three scales after three iterations each; tests must not change it."""
    return fit(build())


@pytest.fixture(scope="module")
def image():
    data = drawn()
    data.setup()
    return data.sets()["image"].stack()


def shrink(images, size):
    """The project's resize, written out."""
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def stack_by_hand(stack, x):
    """Valid convolutions with batch norm in eval mode, layer by layer from the weights."""
    state = list(stack)
    for i in range(0, len(state) - 1, 3):
        conv, norm = state[i], state[i + 1]
        x = F.conv2d(x, conv.weight, conv.bias)
        mean, var = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        x = (x - mean) / (var + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        x = torch.where(x > 0, x, 0.2 * x)
    return F.conv2d(x, state[-1].weight, state[-1].bias)


def chain_by_hand(module, noises, start=0, images=None):
    """Eq. 3 of the paper with the stored amplitudes; `noises` without margin, one a scale."""
    pad = [module.hparams.depth + 1] * 4
    for scale, z in enumerate(noises, start):
        y = torch.zeros(len(z), 3, *z.shape[-2:]) if images is None else shrink(images, z.shape[-2:])
        x = module.pyramid.noise_amplitudes[scale] * F.pad(z.expand(-1, 3, -1, -1), pad) + F.pad(y, pad)
        images = torch.tanh(stack_by_hand(module.pyramid.generators[scale].body, x)) + y
    return images


@torch.no_grad()
def reconstruction_by_hand(module, scales):
    zeros = [torch.zeros(1, 3, *size) for size in SIZES[1:scales]]
    return chain_by_hand(module, [module.pyramid.zstar, *zeros])


# --- networks ---------------------------------------------------------------------------------------------------------


def test_paper_pyramid_widths_and_parameters():
    module = SinGAN([188, 250])
    expected = [(25, 34), (32, 42), (40, 53), (49, 66), (62, 82), (77, 102), (96, 128), (121, 160), (151, 200), (188, 250)]
    assert module.sizes == expected and module.widths == [32] * 4 + [64] * 4 + [128] * 2

    def count(part):
        return sum(p.numel() for p in part.parameters())

    counts = {(count(g), count(d)) for g, d in zip(module.pyramid.generators, module.discriminators, strict=True)}
    assert counts == {(29_763, 29_185), (114_819, 113_665), (450_819, 448_513)}


def test_initial_weights():
    torch.manual_seed(0)
    stack = valid_stack(64, 3, 4)
    convs = [layer.weight for layer in stack if isinstance(layer, torch.nn.Conv2d)]
    assert len(convs) == 5 and all(abs(w.std() - 0.02) < 0.002 for w in convs)
    norms = [layer for layer in stack if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(norms) == 4 and all(abs(n.weight.mean() - 1) < 0.01 and n.bias.abs().max() == 0 for n in norms)
    plain = valid_stack(64, 3, 4, norm="none")
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in plain)
    assert plain(torch.randn(1, 3, 20, 20)).std() > 0.1  # signals get through without normalization


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_score_sees_eleven_by_eleven_pixels(norm):
    critic = valid_stack(8, 1, 4, norm).eval()
    images = torch.randn(1, 3, 25, 28, requires_grad=True)
    scores = critic(images)
    assert scores.shape == (1, 1, 15, 18)
    scores[0, 0, 7, 9].backward()
    seen = images.grad.abs().sum(1)[0] > 0
    assert seen[7:18, 9:20].all() and seen.sum() == 121


@pytest.mark.parametrize("size", [(25, 34), (24, 33), (1, 1), (5, 40)])
def test_generator_keeps_the_size_and_begins_at_its_input(size):
    generator = NoiseGenerator(8).eval()
    noise, images = torch.randn(2, 3, size[0] + 10, size[1] + 10), torch.randn(2, 3, *size)
    assert generator(noise, images).shape == images.shape
    torch.nn.init.zeros_(generator.body[-1].weight)
    torch.nn.init.zeros_(generator.body[-1].bias)
    assert torch.equal(generator(noise, images), images)


def test_noise_is_gray_at_scale_0_only():
    module = build()
    coarse, fine = module.pyramid.draw_noise(0, 2, (8, 10)), module.pyramid.draw_noise(1, 2, (8, 10))
    assert coarse.shape == fine.shape == (2, 3, 14, 16)
    assert torch.equal(coarse[:, :1].expand(-1, 3, -1, -1), coarse) and not torch.equal(coarse[0], coarse[1])
    assert not torch.equal(fine[:, 0], fine[:, 1])
    for noise in (coarse, fine):
        inner = noise[..., 3:-3, 3:-3]
        assert (noise != 0).sum() == (inner != 0).sum() == inner.numel()
    wide = build(noise_padding="noise").pyramid
    assert (wide.draw_noise(0, 1, (8, 10)) != 0).all() and wide.zstar.shape == (1, 1, 14, 16)
    many = module.pyramid.draw_noise(1, 50, (30, 30))[..., 3:-3, 3:-3]
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


# --- sampling and what is built on it ---------------------------------------------------------------------------------


def test_samples_follow_the_equation(trained):
    torch.manual_seed(3)
    expected = chain_by_hand(trained, [torch.randn(2, 3 if s else 1, *size) for s, size in enumerate(SIZES)])
    torch.manual_seed(3)
    images = trained.sample(2)
    assert not images.requires_grad and images.abs().max() <= 1
    assert torch.allclose(images, expected.clamp(-1, 1), atol=1e-5)


def test_samples_of_any_size(trained):
    torch.manual_seed(0)
    wide = trained.sample(2, size=(16, 40))
    assert wide.shape == (2, 3, 16, 40) and wide.isfinite().all()
    assert (wide[..., :20] - wide[..., 20:]).abs().max() > 0.01
    for size in [(7, 33), (40, 9), (1, 1)]:
        assert trained.sample(1, size).shape[-2:] == size
    torch.manual_seed(0)
    assert torch.equal(trained.sample(2, size=(16, 40)), wide)
    torch.manual_seed(1)
    assert not torch.equal(trained.sample(2, size=(16, 40)), wide)


def test_start_scale_keeps_the_chain_below(trained):
    below = []
    handle = trained.pyramid.generators[0].register_forward_hook(lambda part, inputs, output: below.append(output.clone()))
    samples = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        samples.append(trained.sample(2, start_scale=1))
    handle.remove()
    assert torch.equal(below[0], below[1]) and below[0].shape == (1, 3, 8, 10)
    assert torch.allclose(below[0], reconstruction_by_hand(trained, 1), atol=1e-5)
    assert not torch.equal(samples[0], samples[1]) and not torch.equal(samples[0][0], samples[0][1])
    assert trained.sample(1, (16, 40), start_scale=2).shape == (1, 3, 16, 40)
    with pytest.raises(ValueError, match="start_scale is 3; allowed are 0 .* to 2"):
        trained.sample(1, start_scale=3)


@pytest.mark.parametrize("scale", [1, 2])
def test_injected_images_are_shrunk_first(trained, scale):
    images = torch.rand(2, 3, 24, 30) * 2 - 1
    sizes = [(12, 15), (18, 22), (24, 30)]  # 1.5 times SIZES, 22.5 rounded to even
    torch.manual_seed(0)
    noises = [torch.randn(2, 3, *size) for size in sizes[scale:]]
    expected = chain_by_hand(trained, noises, scale, shrink(images, sizes[scale - 1])).clamp(-1, 1)
    torch.manual_seed(0)
    assert torch.allclose(trained.inject(images, scale), expected, atol=1e-5)


def test_scale_0_takes_no_image(trained):
    for scale in (0, 3):
        with pytest.raises(ValueError, match=f"scale is {scale}; allowed are 1 .* to 2 .*; scale 0 makes its image from"):
            trained.inject(torch.zeros(1, 3, 16, 20), scale)


def test_reconstruction_is_that_of_the_fixed_noise(trained, image):
    expected = reconstruction_by_hand(trained, 3).clamp(-1, 1)
    images = trained.reconstruct(torch.cat([image, image]))
    assert torch.allclose(images, expected.expand(2, -1, -1, -1), atol=1e-5)
    assert trained.reconstruct(torch.zeros(1, 3, 9, 31)).shape == (1, 3, 9, 31)


def test_an_unfinished_pyramid_ends_with_the_scale_in_training(trained):
    module = copy.deepcopy(trained)
    module.stage = 0
    torch.manual_seed(0)
    expected = shrink(chain_by_hand(module, [torch.randn(1, 1, *SIZES[0])]), SIZES[-1])
    torch.manual_seed(0)
    assert torch.allclose(module.sample(1), expected, atol=1e-5)
    images = torch.rand(1, 3, 16, 20)
    assert torch.allclose(module.inject(images, 1), shrink(shrink(images, SIZES[0]), SIZES[-1]), atol=1e-6)
    assert module.reconstruct(images).shape == images.shape and module.animate(2, start_scale=1).shape == (2, 3, 16, 20)


@pytest.mark.parametrize("factor, steps, size", [(2, 3, (22, 26)), (3, 5, (33, 39)), (4, 6, (44, 52)), (1.3, 1, (14, 16))])
def test_enlarging_repeats_the_finest_scale(trained, factor, steps, size):
    calls = []
    hook = trained.pyramid.generators[2].register_forward_hook(lambda part, inputs, output: calls.append(inputs))
    images = trained.super_resolve(torch.rand(2, 3, 11, 13), factor)
    hook.remove()
    assert images.shape == (2, 3, *size) and images.abs().max() <= 1 and len(calls) == steps
    for noise, _ in calls:  # three independent channels with the finest scale's amplitude
        inner = noise[..., 3:-3, 3:-3]
        assert 0.7 < inner.std() / trained.pyramid.noise_amplitudes[2] < 1.3 and not torch.equal(inner[:, 0], inner[:, 1])
    widths = [images.shape[-1] for _, images in calls]
    assert all(1.1 < b / a < 1.4 for a, b in zip([13, *widths], widths, strict=False))


@pytest.mark.parametrize("start", [0, 1])
def test_animation_is_the_random_walk_of_the_paper(trained, start):
    alpha, beta = 0.3, 0.8
    rest = [trained.pyramid.zstar, *(torch.zeros(1, 3, *size) for size in SIZES[1:])]

    def draw():
        drawn = [torch.randn(1, 3 if s else 1, *SIZES[s]) for s in range(start, 3)]
        return [torch.zeros_like(z) for z in rest[:start]] + drawn

    torch.manual_seed(0)
    z = [rest, [0.95 * r + 0.05 * u for r, u in zip(rest, draw(), strict=True)]]
    for _ in range(3):
        d = [beta * (b - a) + (1 - beta) * u for a, b, u in zip(z[-2], z[-1], draw(), strict=True)]
        z.append([alpha * r + (1 - alpha) * (b + e) for r, b, e in zip(rest, z[-1], d, strict=True)])
    z = [rest[:start] + maps[start:] for maps in z]
    expected = torch.cat([chain_by_hand(trained, maps) for maps in z[:4]]).clamp(-1, 1)
    torch.manual_seed(0)
    frames = trained.animate(4, alpha, beta, start)
    assert torch.allclose(frames, expected, atol=1e-5)
    assert torch.equal(frames[:1], trained.reconstruct(frames[:1])) and not torch.equal(frames[1], frames[2])


def test_empty_mask_leaves_the_background_untouched(trained, tmp_path):
    pixels = torch.randint(256, (16, 20, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    Image.new("L", (20, 16)).save(tmp_path / "mask.png")
    with pytest.warns(UserWarning, match="nothing is masked"):
        pictures = dict(Harmonize(image=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"), scale=1)(trained))
    assert torch.equal(pictures["02_harmonized"], pixels.permute(2, 0, 1) / 127.5 - 1)


# --- training ---------------------------------------------------------------------------------------------------------


class Spy(lightning.Callback):
    """At the first batch of `stage`: a copy of the module before it, and everything that networks and optimizers see."""

    def __init__(self, stage):
        self.stage, self.before, self.optimized, self.passes, self.hooks = stage, None, [], {}, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.stage != self.stage or self.before is not None:
            return
        self.rng = torch.get_rng_state()
        self.before = copy.deepcopy([module.pyramid, module.discriminators, module._real, module._reconstruction_input])
        original = module.optimize

        def optimize(optimizer, loss, clip_norm=None):
            original(optimizer, loss, clip_norm)
            group = [p for g in optimizer.param_groups for p in g["params"]]
            self.optimized.append((optimizer.param_groups[0]["lr"], group, [p.grad.clone() for p in group]))

        module.optimize = optimize
        parts = [("g0", module.pyramid.generators[0]), ("g1", module.pyramid.generators[1]), ("d1", module.discriminators[1])]
        for name, part in parts:
            self.hooks.append(part.register_forward_hook(lambda p, inputs, output, name=name: self.note(name, inputs)))

    def note(self, name, inputs):
        self.passes.setdefault(name, []).append(inputs)

    def on_train_batch_end(self, trainer, module, *_):
        if module.stage == self.stage and self.hooks:
            while self.hooks:
                self.hooks.pop().remove()
            del module.optimize
            self.after = copy.deepcopy([module.pyramid, module.discriminators])


def spied(**changes):
    """What happens in the first and only iteration of scale 1."""
    spy = Spy(1)
    fit(build(**changes), drawn(samples_per_epoch=2), callbacks=[spy])
    return spy


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_one_iteration_equals_a_loop_written_by_hand(norm):
    """Weights after 3 critic and 3 generator steps of scale 1, with plain torch."""
    spy = spied(norm=norm)
    pyramid, critics, real, reconstruction_input = spy.before
    generator, critic, pad = pyramid.generators[1].train(), critics[1].train(), [3] * 4
    for part in (generator, critic):
        part.requires_grad_(True)
    g_opt, d_opt = (torch.optim.Adam(part.parameters(), 5e-4, (0.5, 0.999)) for part in (generator, critic))

    def fake(noise, images):
        return torch.tanh(generator.body(F.pad(noise, pad) + F.pad(images, pad))) + images

    def below(z):
        gray = F.pad(z.expand(-1, 3, -1, -1), pad)
        return shrink(pyramid.generators[0](gray, torch.zeros(len(z), 3, *SIZES[0])), SIZES[1])

    torch.set_rng_state(spy.rng)
    with torch.no_grad():
        sigma = 0.1 * (below(pyramid.zstar) - real).square().mean().sqrt()
        noise = sigma * torch.randn(2, 3, *SIZES[1])
        inputs = below(torch.randn(6, 1, *SIZES[0])).split(2)
    for images in inputs:
        with torch.no_grad():
            fakes = fake(noise, images)
        mix = torch.rand(2, 1, 1, 1)
        between = (mix * real + (1 - mix) * fakes).requires_grad_()
        loss = -critic(real).mean() + critic(fakes).mean()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        loss = loss + 0.1 * ((slope.square().sum(1).sqrt() - 1) ** 2).mean()
        d_opt.zero_grad()
        loss.backward()
        d_opt.step()
    for _ in range(3):
        loss = -critic(fake(noise, inputs[-1])).mean()
        loss = loss + 10 * (fake(torch.zeros(1, 3, *SIZES[1]), reconstruction_input) - real).square().mean()
        g_opt.zero_grad()
        loss.backward()
        g_opt.step()
    last = "6" if norm == "batch" else "4"
    for mine, theirs in ((generator.body, spy.after[0].generators[1].body), (critic, spy.after[1][1])):
        for name, value in theirs.state_dict().items():
            # Batch norm removes a bias before it, whose gradient is rounding noise of which Adam makes a whole step.
            if norm == "none" or "bias" not in name and "running_mean" not in name or name == f"{last}.bias":
                assert torch.allclose(mine.state_dict()[name].float(), value.float(), atol=2e-5), name


def test_every_generator_step_gets_a_fresh_adversarial_gradient():
    spy = spied(weight_reconstruction=0.0)
    generator = {id(p) for p in spy.optimized[-1][1]}
    kinds = ["g" if {id(p) for p in group} == generator else "d" for _, group, _ in spy.optimized]
    assert kinds == ["d"] * 3 + ["g"] * 3
    steps = [gradients for _, _, gradients in spy.optimized[3:]]
    norms = [math.sqrt(sum(float(g.square().sum()) for g in gradients)) for gradients in steps]
    assert min(norms) > 1e-4 and not torch.equal(steps[0][0], steps[1][0]) and not torch.equal(steps[1][0], steps[2][0])


def test_critic_steps_draw_new_chains_under_one_noise_map():
    spy = spied()
    calls = spy.passes["g1"]
    fakes = [call for call in calls if len(call[0]) == 2]
    assert len(calls) == 9 and len(fakes) == 6
    assert all(torch.equal(noise, fakes[0][0]) for noise, _ in fakes)
    inputs = [images for _, images in fakes]
    assert not torch.equal(inputs[0], inputs[1]) and not torch.equal(inputs[1], inputs[2])
    assert all(torch.equal(images, inputs[2]) for images in inputs[3:])


class Rates(lightning.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append([g["lr"] for o in module.current_optimizers() for g in o.param_groups])


@pytest.mark.parametrize(("epochs", "samples"), [(1, 20), (2, 10), (5, 4)])
def test_rates_fall_to_a_tenth_at_80_percent_of_a_stage(epochs, samples):
    rates = Rates()
    fit(build(epochs_per_stage=epochs, lr_g=1e-3, lr_d=2e-3), drawn(samples_per_epoch=samples), [rates])
    stage = [pytest.approx([1e-3, 2e-3])] * 8 + [pytest.approx([1e-4, 2e-4])] * 2
    assert rates.seen == stage * 3


class Entries(lightning.Callback):
    """Weights of all scales and the fixed noise before the first batch of each stage, and the noise after each batch."""

    def __init__(self):
        self.states, self.noise = {}, []

    def on_train_batch_start(self, trainer, module, *_):
        if module.stage not in self.states:
            self.states[module.stage] = copy.deepcopy(module.state_dict())

    def on_train_batch_end(self, trainer, module, *_):
        self.noise.append((module.stage, module.pyramid.zstar.clone()))


def test_a_stage_begins_with_the_weights_below_where_widths_agree():
    entries = Entries()
    module = fit(build(scales_per_width=2), callbacks=[entries])
    assert module.widths == [4, 4, 8]
    for kind in ("pyramid.generators", "discriminators"):
        for stage, copied in ((1, True), (2, False)):
            state = entries.states[stage]
            own, below = ([v for k, v in state.items() if k.startswith(f"{kind}.{s}.")] for s in (stage, stage - 1))
            assert len(own) == len(below) > 10
            assert all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(own, below, strict=True)) == copied


def test_noise_amplitudes_are_errors_of_the_finished_scales(trained, image):
    amplitudes = trained.pyramid.noise_amplitudes
    assert amplitudes[0] == 1 and all(0 < a < 0.2 for a in amplitudes[1:])
    for scale in (1, 2):
        error = shrink(reconstruction_by_hand(trained, scale), SIZES[scale]) - shrink(image, SIZES[scale])
        assert abs(0.1 * error.square().mean().sqrt() - amplitudes[scale]) < 1e-6
    numbers = trained.diagnostics({"image": image})
    error = reconstruction_by_hand(trained, 3) - image
    assert numbers["reconstruction_rmse_scale2"] == pytest.approx(float(error.square().mean().sqrt()), abs=1e-5)
    assert numbers["noise_amplitude_scale1"] == float(amplitudes[1]) and len(numbers) == 6


def test_fixed_noise_is_drawn_once_or_by_the_switch_in_every_iteration():
    for switch in (False, True):
        entries = Entries()
        fit(build(resample_zstar=switch), callbacks=[entries])
        first, later = ([z for stage, z in entries.noise if (stage == 0) == coarse] for coarse in (True, False))
        assert len(first) == 3 and len({tuple(z.flatten().tolist()) for z in first}) == (3 if switch else 1)
        assert all(torch.equal(z, first[-1]) for z in later) and 0.5 < first[-1].std() < 1.5


def test_fixed_noise_is_none_that_a_seed_gives_to_samples(trained):
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = trained.pyramid.draw_noise(0, 2, SIZES[0])[:, :1, 3:-3, 3:-3]
        assert not torch.isclose(drawn, trained.pyramid.zstar).any(dim=0).all()


def test_resampled_noise_resumes_exactly(tmp_path):
    def run(checkpoint=None):
        saver = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, enable_version_counter=False
        )
        module = build(resample_zstar=True, epochs_per_stage=2)
        return fit(module, callbacks=[saver], checkpoint=checkpoint, enable_checkpointing=True).state_dict()

    straight, resumed = run(), run(tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_batch_statistics_become_the_mean_of_all_ranks(trained, monkeypatch):
    module = copy.deepcopy(trained)
    norm = module.pyramid.generators[2].body[1]
    mean, var, count = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()
    frozen = module.pyramid.generators[1].body[1].running_mean.clone()

    class Strategy:
        def reduce(self, tensor, reduce_op):
            assert reduce_op == "mean"
            return (tensor + 2 * tensor) / 2  # of a second rank with twice the values

    monkeypatch.setattr(SinGAN, "trainer", type("Trainer", (), {"strategy": Strategy(), "world_size": 2})())
    module._average_statistics()
    assert torch.allclose(norm.running_mean, 1.5 * mean) and torch.allclose(norm.running_var, 1.5 * var)
    assert torch.equal(norm.num_batches_tracked, count)
    assert torch.equal(module.pyramid.generators[1].body[1].running_mean, frozen)


@pytest.mark.parametrize("changes", [{"norm": "none"}, {"noise_padding": "noise"}, {"d_steps": 1, "g_steps": 2}])
def test_variants_train(changes):
    module = fit(build(**changes))
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.sample(1).std() > 0 and module.animate(2).shape == (2, 3, 16, 20)


def test_painting_scale_sees_few_colors(image):
    entries = Entries()
    module = fit(build(paint_scale=1, paint_colors=4), callbacks=[entries])
    palette, state = module.pyramid.palette, entries.states[1]
    assert palette.shape == (4, 3) and len(palette.unique(dim=0)) == 4
    pixels = shrink(image, SIZES[1])[0].flatten(1).T
    members = torch.cdist(pixels, palette).argmin(1)
    assert (torch.stack([pixels[members == k].mean(0) for k in range(4)]) - palette).abs().max() < 0.15
    first, below = (state[f"pyramid.generators.{s}.body.0.weight"] for s in (1, 0))
    assert not torch.equal(first, below)  # begins anew, its input is another
    paint = torch.rand(2, 3, 16, 20) * 2 - 1
    seen = []
    hook = module.pyramid.generators[1].register_forward_hook(lambda part, inputs, output: seen.append(inputs[1]))
    module.inject(paint, 1)
    hook.remove()
    resized = shrink(shrink(paint, SIZES[0]), SIZES[1]).permute(0, 2, 3, 1).reshape(-1, 3)
    expected = palette[torch.cdist(resized, palette).argmin(1)]
    assert torch.equal(seen[0].permute(0, 2, 3, 1).reshape(-1, 3), expected)


# --- Concat-SinGAN ----------------------------------------------------------------------------------------------------


def test_tiling_of_one_image_is_singan():
    plain, tiled = (fit(build(), drawn(tile=tile)).state_dict() for tile in (None, "grid"))
    assert all(torch.equal(value, tiled[key]) for key, value in plain.items())


@pytest.mark.parametrize(("tile", "tiles"), [("row", (1, 3)), ("column", (3, 1)), ("grid", (2, 2))])
def test_tiles_keep_their_size_at_every_scale(tile, tiles):
    spy = Spy(1)
    module = fit(build(tiles=tiles), drawn(image=None, tile=tile, samples_per_epoch=2), callbacks=[spy])
    canvas = [(tiles[0] * h, tiles[1] * w) for h, w in SIZES]
    assert spy.before[2].shape[-2:] == canvas[1] and module.pyramid.canvas_sizes == canvas
    assert module.pyramid.zstar.shape[-2:] == canvas[0] and module.image_size == (16, 20)
    assert module.sample(2).shape == (2, 3, 16, 20) and module.sample(1, size=canvas[-1]).shape[-2:] == canvas[-1]
    assert module.sample(1, start_scale=2).shape[-2:] == module.animate(1).shape[-2:] == canvas[-1]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": None}, "learns from one image, and datamodule gives 3 .*datamodule.image=NAME .*datamodule.tile=row"),
        ({"flip": True}, "datamodule gives 2 .mirrored ones count.*datamodule.flip=false"),
        ({"image": None, "tile": "row"}, r"module.tiles=\[1, 1\] .* 16×20, but datamodule gives 16×60: .*tiles=\[1,3\]"),
    ],
)
def test_other_data_are_refused(data, message):
    images = drawn(**data)
    images.setup()
    with pytest.raises(ValueError, match=message):
        build().check_data(images.sets())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_size": 6}, "min_size is 6; .* patches of 7 pixels"),
        ({"image_size": [8, 20]}, "shorter side must be larger than min_size 8"),
        ({"image_size": [1, 400]}, r"image_size \[1, 400\]: the shorter side"),
        ({"paint_scale": 0}, "paint_scale is 0; allowed are 1 .* to 2"),
        ({"paint_scale": 3}, "paint_scale is 3; allowed are 1 .* to 2"),
        ({"epochs_per_stage": [1, 2]}, "epochs_per_stage"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


# --- quality, reduced -------------------------------------------------------------------------------------------------


def test_two_colors_are_learned_in_60_iterations(tmp_path):
    Image.new("RGB", (32, 32), (230, 60, 20)).save(tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    picture.paste((20, 60, 200), (0, 18, 32, 32))
    picture.save(tmp_path / "a.png")
    data = ImageDataModule(str(tmp_path / "a.png"), [32, 32], 1, 60)
    losses = []

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            losses.append(float(trainer.logged_metrics["train/reconstruction"]))

    module = build(image_size=[32, 32], min_size=20, scale_factor=0.5, width=8)
    fit(module, data, [Losses()], log_every_n_steps=1, max_epochs=1)
    assert len(losses) == 60 and sum(losses[-5:]) < 0.5 * sum(losses[:5])


def coarse_landscape(**changes):
    """Trained on a photograph of 36 x 48 pixels: 240, 120 and 120 iterations."""
    settings = {"image_size": [36, 48], "epochs_per_stage": [2, 1, 1], "min_size": 18, "scale_factor": 0.5, "width": 16}
    data = ImageDataModule("datamodules/starter/landscapes", [36, 48], samples_per_epoch=120, image="001.jpg")
    changes, trainer = ({k: v for k, v in changes.items() if (k == "max_epochs") == kind} for kind in (False, True))
    module = fit(SinGAN(**settings, **changes), data, log_every_n_steps=60, **trainer)
    return module, data.sets()["image"].stack()


@pytest.mark.slow
def test_a_photograph_is_reconstructed_and_finer_injections_keep_more():
    module, image = coarse_landscape()
    numbers = module.diagnostics({"image": image})
    for scale in range(3):
        assert numbers[f"reconstruction_rmse_scale{scale}"] < (0.3 if scale else 0.35) * image.std()
    assert all(0.003 < numbers[f"noise_amplitude_scale{scale}"] < 0.03 for scale in (1, 2))
    errors = []
    for scale in (1, 2):
        torch.manual_seed(0)
        errors.append(float((module.inject(image, scale) - image).square().mean()))
    assert errors[1] < 0.8 * errors[0] and errors[1] < 0.1 * image.var()
    samples = module.sample(16)
    assert samples.std(0).mean() > 0.1 * image.std()


@pytest.mark.slow
def test_redrawing_the_fixed_noise_blurs_the_reconstruction():
    errors = {}
    for switch in (False, True):
        module, image = coarse_landscape(resample_zstar=switch, max_epochs=2)
        assert module.stage == 0
        errors[switch] = module.diagnostics({"image": image})["reconstruction_rmse_scale0"]
    assert errors[True] > 1.25 * errors[False]  # 0.196 and 0.128
