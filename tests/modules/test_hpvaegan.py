import contextlib
import copy
import warnings
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from datamodules.synthetic import SyntheticDataModule
from modules.hpvaegan import HPVAEGAN, draw_latents, kl_divergence

# Two VAE scales and two GAN scales: the VAE trains in two stages, and both a block and a critic are handed on.
TINY = [
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "datamodule.num_workers=0",
    "module.epochs_per_stage=[1,2,1,2]",
    "module.min_size=8",
    "module.scale_factor=0.7",
    "module.vae_levels=2",
    "module.latent_dim=6",
    "module.width=8",
    "module.depth=2",
]
JOINED_BATCH = ["module.epochs_per_stage=1"]
PARAMETERS = {"hpvaegan": 764_638, "hpvaegan_256": 3_493_733}
SIZES = {"min_size": 8, "scale_factor": 0.7, "vae_levels": 2, "latent_dim": 6, "width": 8, "depth": 2}


def create(**changes):
    return HPVAEGAN(**({"image_size": [16, 20], "epochs_per_stage": 1} | SIZES | changes))


def data(**changes):
    return SyntheticDataModule(**({"image_size": [16, 20], "batch_size": 2, "samples_per_epoch": 8} | changes))


def fit(batches=None, callbacks=(), **changes):
    lightning.seed_everything(0, verbose=False)
    module = create(**changes)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, batches or data())
    return module.eval()


class Watch(lightning.Callback):
    """Calls `begin(module)` when a stage has been entered, before its first batch, and `end(module)` after its last one."""

    def __init__(self, begin=None, end=None):
        self.begin, self.end, self.stage = begin, end, -1

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.stage != self.stage and self.begin:
            self.begin(module)
        self.stage = module.stage

    def on_train_epoch_end(self, trainer, module):
        last = module.stage_epochs(module.stage) * (1 - module.stage_progress) < 1.5
        if last and self.end:
            self.end(module)


def states(module):
    """Copies of the whole state (parameters and buffers) of every generator and critic."""
    return copy.deepcopy([[part.state_dict() for part in parts] for parts in (module.generators, module.discriminators)])


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def history():
    """States at the beginning and end of every stage of one fit, the module, and what it looked like before."""
    begins, ends = {}, {}
    watch = Watch(lambda m: begins.update({m.stage: states(m)}), lambda m: ends.update({m.stage: states(m)}))
    module = fit(callbacks=[watch], epochs_per_stage=2)
    lightning.seed_everything(0, verbose=False)
    return {"initial": states(create()), "begin": begins, "end": ends, "module": module}


@pytest.fixture(scope="module")
def trained(history):
    return history["module"]


@pytest.fixture(scope="module")
def images():
    batches = data()
    batches.setup()
    return batches.sets()["image"].stack()


def enlarge(images, size):
    """The project's resize, written out."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


def test_the_paper_size_has_the_papers_widths_and_parameters():
    """Widths with rounding errors removed (raw ceil: 33 and 65 in place of 32 and 64), and 2,184,670 parameters."""
    config = OmegaConf.load(Path(__file__).parents[2] / "configs/hpvaegan_256.yaml")
    keywords = OmegaConf.to_container(config.module, resolve=True)
    del keywords["class_path"]
    module = HPVAEGAN(**keywords)
    widths = [32, 41, 51, 64, 81, 102, 128, 162, 204, 256]
    assert [width for _, width in module.sizes] == widths
    # the released script takes heights as int(width * H / W); here each side is rounded up by itself
    assert all(abs(height - int(width * 192 / 256)) <= 1 for height, width in module.sizes)
    assert sum(p.numel() for p in module.generators.parameters()) == 2_184_670
    assert sum(p.numel() for p in module.discriminators.parameters()) == 7 * 187_009
    assert HPVAEGAN([256, 256], width=4).sizes == [(width, width) for width in widths]
    assert module.hparams.vae_levels == 3 and {module.hparams[key] for key in ("lr_vae", "lr_g", "lr_d")} == {5e-4}


def test_kl_is_zero_for_the_prior_and_the_closed_form_otherwise():
    assert kl_divergence(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)) == 0
    mean, log_variance = torch.randn(2, 2, 4, 3, 3)
    expected = reference_kl(Normal(mean, log_variance.exp().sqrt()), Normal(0.0, 1.0)).mean()
    assert kl_divergence(mean, log_variance) == pytest.approx(expected.item(), rel=1e-5)


def test_draws_have_the_posteriors_mean_and_deviation_and_pass_gradients():
    torch.manual_seed(0)
    mean, log_variance = torch.full((20_000,), 2.0), torch.full((20_000,), -1.0)
    mean.requires_grad_()
    draws = draw_latents(mean, log_variance)
    assert draws.mean().item() == pytest.approx(2.0, abs=0.02)
    assert draws.std().item() == pytest.approx(0.6065, abs=0.02)
    draws.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))


def test_latents_have_the_size_of_the_coarsest_scale(trained, images):
    assert trained.sizes[0] == (8, 10)
    assert trained.sample_latents(4).shape == trained.encode(images[:1]).expand(4, -1, -1, -1).shape == (4, 6, 8, 10)
    assert trained.sample_latents(1, (16, 40)).shape == (1, 6, 8, 20)


def test_learning_rates_and_parameters_of_every_stage():
    """Encoder and decoder with lr * 0.2^n, the newest block with lr, the blocks between not at all."""
    module = create(vae_levels=3, lr_vae=5e-4, lr_g=3e-4, lr_d=7e-4)

    def groups(stage):
        return [[(g["lr"], g["params"]) for g in optimizer.param_groups] for optimizer in module.stage_optimizers(stage)]

    def names(parameters):
        known = {id(p): name for name, p in module.named_parameters()}
        return {".".join(known[id(p)].split(".")[:2]) for p in parameters}

    listed = [[[(round(lr, 9), names(p)) for lr, p in o] for o in groups(stage)] for stage in range(4)]
    assert listed[0] == [[(5e-4, {"generators.0"})]]
    assert listed[1] == [[(1e-4, {"generators.0"}), (5e-4, {"generators.1"})]]
    assert listed[2] == [[(2e-5, {"generators.0"}), (5e-4, {"generators.2"})]]
    assert listed[3] == [[(3e-4, {"generators.3"})], [(7e-4, {"discriminators.3"})]]
    assert sum(p.numel() for _, p_ in groups(2)[0][:1] for p in p_) == sum(p.numel() for p in module.vae.parameters())


def test_vae_scales_never_touch_a_critic(history):
    """Neither weights nor the spectral vectors, which move with every pass in train mode."""
    _, critics = history["initial"]
    for stage in (0, 1):
        assert all(same(a, b) for a, b in zip(critics, history["end"][stage][1], strict=True))
    assert not same(critics[2], history["end"][2][1][2])


def test_gan_scales_leave_everything_below_as_it_is(history):
    for stage in (2, 3):
        begin, end = history["begin"][stage][0], history["end"][stage][0]
        assert all(same(begin[n], end[n]) for n in range(stage)) and not same(begin[stage], end[stage])
    assert all(same(history["end"][1][0][n], history["end"][3][0][n]) for n in (0, 1))


def test_at_the_third_vae_scale_the_vae_trains_through_the_block_between_which_stays():
    begins, ends = {}, {}
    watch = Watch(lambda m: begins.update({m.stage: states(m)}), lambda m: ends.update({m.stage: states(m)}))
    fit(callbacks=[watch], vae_levels=3)
    changed = [not same(a, b) for a, b in zip(begins[2][0], ends[2][0], strict=True)]
    assert changed == [True, False, True, False]
    moved = {key for key in begins[2][0][0] if not torch.equal(begins[2][0][0][key], ends[2][0][0][key])}
    assert any(key.startswith("encoder") for key in moved) and any(key.startswith("decoder") for key in moved)


def test_blocks_and_critics_start_as_copies_except_the_first_of_each(history):
    begin, end, initial = history["begin"], history["end"], history["initial"]
    assert same(begin[1][0][1], initial[0][1])
    for stage in (2, 3):
        assert same(begin[stage][0][stage], end[stage - 1][0][stage - 1])
    assert same(begin[2][1][2], initial[1][2])
    assert same(begin[3][1][3], end[2][1][2])


def test_noise_amplitudes_are_a_tenth_of_the_error_below_and_stay():
    """RMSE over all images, one by one, in eval mode, not divided by the batch size; 0 at scale 0."""
    seen = {}

    def measure(module):
        if module.stage > 0:
            twin = create(vae_levels=2)
            twin.load_state_dict(module.state_dict())
            twin.eval()
            below, squares = module.stage - 1, []
            for index in range(3):
                image = module.trainer.datamodule.sets()["image"][index].unsqueeze(0)
                out = twin.vae.decode(twin.vae.encoder(enlarge(image, twin.sizes[0]))[0])
                for scale in range(1, below + 1):
                    out = twin.generators[scale](enlarge(out, twin.sizes[scale]))
                size = module.sizes[module.stage]
                squares.append((enlarge(out, size) - enlarge(image, size)).square().mean())
            seen[module.stage] = 0.1 * torch.stack(squares).mean().sqrt().item()

    module = fit(callbacks=[Watch(measure)])
    assert seen.keys() == {1, 2, 3} and module.noise_amplitudes[0] == 0
    assert module.noise_amplitudes[1:].tolist() == pytest.approx(list(seen.values()), rel=1e-6)
    assert fit(data(batch_size=1, samples_per_epoch=2), epochs_per_stage=1).noise_amplitudes[1:].min() > 0


def test_fakes_get_the_noise_and_reconstructions_do_not():
    module = create().eval()
    module.stage = 3
    coarse = torch.rand(2, 3, 8, 10) * 2 - 1

    def outputs(amplitude):
        module.noise_amplitudes.fill_(amplitude)
        torch.manual_seed(1)
        return module._newest_outputs(coarse)

    (quiet, still), (noisy, moved) = outputs(0.0), outputs(3.0)
    assert torch.equal(quiet, noisy) and not torch.allclose(still, moved, atol=0.01)
    # no gradient reaches anything below
    noisy.sum().backward()
    assert {n.split(".")[1] for n, p in module.generators.named_parameters(prefix="g") if p.grad is not None} == {"3"}


def test_a_blocks_running_statistics_fit_reconstructions_and_fakes():
    """One pass normalizes both by the statistics that eval mode will use; `batch` keeps two passes."""
    calls = {}
    for bn_mode in ("eval", "batch"):
        module = create(bn_mode=bn_mode)
        module.stage = 3
        shapes = calls[bn_mode] = []
        module.generators[3].body[1].register_forward_hook(lambda m, i, o, shapes=shapes: shapes.append(len(i[0])))
        known, drawn = module._newest_outputs(torch.rand(2, 3, 8, 10))
        assert known.shape == drawn.shape == (2, 3, 16, 20)
    assert calls == {"eval": [4], "batch": [2, 2]}


def test_the_generators_gradients_are_clipped_and_the_critics_are_not(monkeypatch):
    clipped = []
    monkeypatch.setattr(HPVAEGAN, "clip_gradients", lambda m, o, value, kind: clipped.append((m.stage, value, kind)))
    fit(data(samples_per_epoch=2), clip_norm=5.0)
    assert clipped == [(stage, 5.0, "norm") for stage in range(4)]


def losses_of_one_step(module, stage, batch, monkeypatch):
    """What a step of `stage` hands to the optimizers, and what it logs; nothing is changed."""
    optimized = []
    monkeypatch.setattr(HPVAEGAN, "optimize", lambda m, optimizer, loss, clip=None: optimized.append(loss.item()))
    monkeypatch.setattr(HPVAEGAN, "current_optimizers", lambda m: ["generator", "critic"])
    monkeypatch.setattr(HPVAEGAN, "toggled_optimizer", lambda m, optimizer: contextlib.nullcontext())
    module.stage = stage
    torch.manual_seed(3)
    step = module._vae_step if stage < 2 else module._gan_step
    logged = step(enlarge(batch, module.sizes[0]), enlarge(batch, module.sizes[stage]))
    torch.manual_seed(3)
    return optimized, {name: value.item() for name, value in logged.items()}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_vae_step_minimizes_both_reconstructions_and_kl(stage, trained, images, monkeypatch):
    """10 * (MSE at this scale + MSE of the decoded latent at scale 0) + KL, without noise from the blocks."""
    module, batch = copy.deepcopy(trained), images[:2]
    (loss,), logged = losses_of_one_step(module, stage, batch, monkeypatch)
    coarse = enlarge(batch, module.sizes[0])
    mean, log_variance = module.vae.encoder(coarse)
    decoded = torch.tanh(module.vae.decoder(mean + torch.exp(log_variance / 2) * torch.randn(mean.shape)))
    outputs = decoded if stage == 0 else module.generators[1](enlarge(decoded, module.sizes[1]))
    error = (outputs - enlarge(batch, module.sizes[stage])).square().mean() + (decoded - coarse).square().mean()
    kl = reference_kl(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).mean()
    assert loss == pytest.approx((10 * error + kl).item(), rel=1e-4)
    assert (logged["reconstruction"], logged["kl"]) == pytest.approx((error.item(), kl.item()), rel=1e-4)


def test_a_gan_step_compares_images_with_fakes_of_random_latents(trained, images, monkeypatch):
    """Critic: D(fake) - D(real) + 0.1 * pixel-wise penalty. Block: 10 * MSE of the reconstruction - D(fake)."""
    module, batch = copy.deepcopy(trained), images[:2]
    (critic_loss, loss), _ = losses_of_one_step(module, 3, batch, monkeypatch)

    def up(latents, noisy):
        out = module.vae.decode(latents)
        for scale in (1, 2, 3):
            out = enlarge(out, module.sizes[scale])
            noise = module.noise_amplitudes[scale] * torch.randn(out.shape) if noisy else torch.zeros_like(out)
            out = torch.tanh(module.generators[scale].body(out + noise) + out)
        return out

    mean, log_variance = module.vae.encoder(enlarge(batch, module.sizes[0]))
    reconstructions = up(mean + torch.exp(log_variance / 2) * torch.randn(mean.shape), noisy=False)
    fakes, critic = up(torch.randn(mean.shape), noisy=True).detach(), module.discriminators[3]
    mix = torch.rand(2, 1, 1, 1)
    between = (mix * batch + (1 - mix) * fakes).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between)
    penalty = (gradient.square().sum(1).sqrt() - 1).square().mean()
    expected = critic(fakes).mean() - critic(batch).mean() + 0.1 * penalty
    assert critic_loss == pytest.approx(expected.item(), rel=1e-3)
    expected = 10 * (reconstructions - batch).square().mean() - critic(fakes).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-3)


def rmse(module, images):
    """Of each image, at the scale in training."""
    size = module.sizes[module.stage]
    with torch.no_grad():
        return (module.reconstruct_at(images, module.stage) - enlarge(images, size)).square().mean((1, 2, 3)).sqrt()


@pytest.mark.slow
def test_reconstruction_gets_better_within_every_scale_and_for_every_image(images):
    """Training images, through the mean and in eval mode; per-image errors differ by less than a factor of 3."""
    begin, end = {}, {}

    def note(store):
        def measure(module):
            modes = [(part, part.training) for part in module.modules()]
            module.eval()
            store[module.stage] = rmse(module, images)
            for part, training in modes:
                part.training = training

        return measure

    # Blocks learn slower than these few steps at the paper's rate allow, so it is higher here.
    watch, sizes = Watch(note(begin), note(end)), {"width": 16, "latent_dim": 16}
    module = fit(data(samples_per_epoch=100), [watch], epochs_per_stage=1, lr_vae=2e-3, lr_g=2e-3, **sizes)
    for stage in range(4):
        assert end[stage].mean() < begin[stage].mean(), (stage, begin[stage], end[stage])
    assert end[0].mean() < 0.5 * begin[0].mean()
    numbers = module.diagnostics({"image": images_set(images)})
    assert end[3].max() / end[3].min() < 3
    assert numbers["reconstruction_rmse_worst_to_best"] == pytest.approx((end[3].max() / end[3].min()).item(), rel=1e-3)


class images_set:  # noqa: N801
    """As much of an image set as `diagnostics` needs."""

    def __init__(self, images):
        self.images = images

    def stack(self):
        return self.images


def test_diagnostics_against_direct_computation(trained, images):
    numbers = trained.diagnostics({"image": images_set(images)})
    errors = [(trained.reconstruct(image[None]) - image).square().mean().sqrt().item() for image in images]
    assert numbers["reconstruction_rmse_scale3"] == pytest.approx(sum(errors) / len(errors), rel=1e-3)
    assert numbers["reconstruction_rmse_worst_image"] == pytest.approx(max(errors), rel=1e-3)
    assert [numbers[f"reconstruction_rmse_image{i}"] for i in range(len(errors))] == pytest.approx(errors, rel=1e-3)
    mean, log_variance = trained.vae.encoder(enlarge(images, (8, 10)))
    expected = reference_kl(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean().item()
    assert numbers["kl_per_element"] == pytest.approx(expected, rel=1e-4)


def test_samples_follow_the_global_seed_and_differ_from_each_other(trained):
    def draw(seed):
        torch.manual_seed(seed)
        return trained.sample(2)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    first, second = draw(1)
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("size", [None, (16, 40), (33, 20), (1, 7)])
def test_samples_have_any_size(trained, size):
    samples = trained.sample(2, size)
    assert samples.shape == (2, 3, *(size or (16, 20))) and samples.isfinite().all() and samples.abs().max() <= 1


def test_a_sample_is_drawn_with_noise_at_every_scale_above_the_coarsest(trained):
    """z, decoder, then block(y + sigma_n * noise) and tanh of the sum, written out."""
    torch.manual_seed(4)
    samples = trained.sample(2)
    torch.manual_seed(4)
    out = trained.vae.decode(torch.randn(2, 6, 8, 10))
    for scale in (1, 2, 3):
        out = enlarge(out, trained.sizes[scale])
        noise = trained.noise_amplitudes[scale] * torch.randn(out.shape)
        out = torch.tanh(trained.generators[scale].body(out + noise) + out)
    assert torch.allclose(samples, out, atol=1e-6)
    assert trained.noise_amplitudes[1:].min() > 0


def test_rendered_latents_are_deterministic_and_of_an_encoded_image_its_reconstruction(trained, images):
    latents = trained.encode(images)
    assert torch.equal(trained.decode(latents), trained.reconstruct(images))
    assert not torch.equal(trained.decode(latents, noise=True), trained.decode(latents))
    between = torch.lerp(latents[:1], latents[1:2], 0.5)
    assert trained.decode(between, (31, 22)).shape == (1, 3, 31, 22)


def test_injection_at_every_scale_keeps_the_size_and_names_the_allowed_scales(trained):
    image = torch.rand(2, 3, 31, 22) * 2 - 1
    for scale in range(trained.num_scales):
        out = trained.inject(image, scale)
        assert out.shape == image.shape and out.abs().max() <= 1 and not out.requires_grad
        assert torch.equal(out, trained.inject(image, scale))
    with pytest.raises(ValueError, match=r"scale is 4.*0 \(coarsest\) to 3 \(finest\)"):
        trained.inject(image, 4)


def test_injection_above_scale_0_only_refines(trained, images):
    out = enlarge(images, trained.sizes[1])
    for scale in (2, 3):
        out = trained.generators[scale](enlarge(out, trained.sizes[scale]))
    assert torch.allclose(trained.inject(images, 2), out.clamp(-1, 1), atol=1e-6)


def test_scales_that_are_not_trained_yet_are_left_out():
    module = create().eval()
    module.stage = 1
    image = torch.rand(1, 3, 16, 20)
    before = module.reconstruct(image), module.inject(image, 3)
    for generator in module.generators[2:]:
        torch.nn.init.normal_(generator.body[-1].weight)
    assert torch.equal(module.reconstruct(image), before[0])
    assert torch.allclose(before[0], enlarge(module.reconstruct_at(image, 1), (16, 20)))
    assert torch.equal(module.inject(image, 3), before[1])


def test_one_training_image_and_batch_statistics_run_through():
    """`bn_mode: batch` as in the released script: no running statistics, so that images of a batch influence each other."""
    module = fit(data(num_images=1, batch_size=1, samples_per_epoch=2), bn_mode="batch")
    assert module.stage == 3 and not any("running" in name for name in module.state_dict())
    image = torch.rand(2, 3, 16, 20) * 2 - 1
    assert not torch.allclose(module.reconstruct(image)[:1], module.reconstruct(image[:1]), atol=1e-4)
    assert module.sample(1).isfinite().all()


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapsed_scale_gives_a_warning_with_the_advice(collapsed):
    def silence(module):
        torch.nn.init.zeros_(module.vae.decoder[-1].weight)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(data(samples_per_epoch=2), [Watch(end=silence)] if collapsed else [])
    found = [str(w.message) for w in caught if "nearly constant" in str(w.message)]
    assert bool(found) == collapsed
    assert all("module.weight_kl" in text and "module.lr_g" in text for text in found)
    assert not collapsed or found[0].startswith("scale 0 8×10")


def test_with_residual_squash_images_stay_in_range():
    module = create(squash="residual").eval()
    module.stage = 3
    with torch.no_grad():
        module.generators[3].body[-1].bias.fill_(9.0)
    assert module.sample(1).abs().max() == 1


def test_a_pure_vae_has_no_critic_and_too_many_levels_are_refused():
    assert not list(create(vae_levels=4).discriminators.parameters())
    with pytest.raises(ValueError, match="vae_levels is 5.*1 to 4"):
        create(vae_levels=5)
