"""FastGAN: published sizes, excitation, decoders, the iteration."""

import lightning
import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from datamodules.synthetic import SyntheticDataModule
from modules.base import sampling_mode
from modules.fastgan import FastGAN
from modules.losses.adversarial import soft_hinge_d
from modules.losses.reconstruction import gradient_l1
from modules.networks.skip_excitation import FastGANDiscriminator, FastGANGenerator, Noise, SkipExcitation, crop_quadrant
from modules.ops.pretrained import package_file
from tests.modules.test_sngan import changed, count, state

JOINED_BATCH = ["module.augment=none"]  # whose draws are not laid out by images
TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[32,32]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=4",
    "module.epochs=2",
    "module.iterations=null",
    "module.z_dim=8",
    "module.width=2",
    "module.excitation=8",
    "module.standing_batches=1",
    "module.reconstruction=l1",
]
PARAMETERS = {"fastgan": 1_250_444, "fastgan_256": 2 * 29_127_846 + 11_526_160}
SMALL = {"image_size": [32, 32], "epochs": 2, "z_dim": 8, "width": 2, "excitation": 8, "standing_batches": 1}


def build(**changes) -> FastGAN:
    torch.manual_seed(0)
    return FastGAN(**(SMALL | changes))


def fit(module, data=None, **trainer):
    lightning.seed_everything(0, verbose=False)
    settings = {"accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_checkpointing": False,
                "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    keys = {"batch_size": 4, "samples_per_epoch": 8, "num_images": 8} | (data or {})
    runner = lightning.Trainer(**(settings | trainer))
    runner.fit(module, SyntheticDataModule([32, 32], **keys))
    return runner


def drawn(**keys):
    data = SyntheticDataModule([32, 32], num_images=4, **keys)
    data.setup()
    return data.sets()


@pytest.mark.parametrize(
    ("side", "generator", "discriminator"),
    [(256, 29_127_846, 11_526_160), (512, 29_174_392, 11_526_496), (1024, 29_176_512, 11_528_192)],
)
def test_published_networks_have_their_numbers_of_parameters_and_shapes(side, generator, discriminator):
    with torch.device("meta"):
        nets = FastGANGenerator(side, 256, 64), FastGANDiscriminator(side, 64)
        assert tuple(map(count, nets)) == (generator, discriminator)
        big, small = nets[0](torch.zeros(2, 256))
        verdict = nets[1](big, small, 3)
    assert big.shape == (2, 3, side, side) and small.shape == (2, 3, 128, 128) and verdict.logits.shape == (2, 50)
    assert [tuple(images.shape) for images in verdict.reconstructions] == [(2, 3, 128, 128)] * 3
    connections = {key: net.skips.keys() for key, net in zip("gd", nets, strict=True)}
    assert set(connections["g"]) == {str(r) for r in (64, 128, 256, 512) if r <= side} and len(connections["d"]) == 3


def test_excitation_gates_channels_and_reaches_the_small_map():
    torch.manual_seed(0)
    block, small, large = SkipExcitation(5, 3), torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 3, 16, 16)
    gates = block(small, large) / large
    assert (gates > 0).all() and (gates < 1).all() and torch.allclose(gates, gates[:, :, :1, :1].expand_as(gates), atol=1e-4)
    block(small, large).sum().backward()
    assert small.grad.abs().sum() > 0


def test_quadrants_are_counted_row_by_row():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert [crop_quadrant(images, q)[0, 0, 0, 0].item() for q in range(4)] == [0, 2, 8, 10]


def test_losses_written_out():
    torch.manual_seed(0)
    real, fake = torch.randn(400, 50), torch.randn(400, 50)
    expected = F.relu(0.9 - real).mean() + F.relu(0.9 + fake).mean()
    assert float(soft_hinge_d(real, fake)) == pytest.approx(float(expected), abs=0.01)
    assert float(soft_hinge_d(torch.ones(9), -torch.ones(9))) == 0
    images, targets = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    targets[..., 0, 0] = 1.0  # one of 16 pixels; of differences two among 24; then one of 4 pixels is 1/4
    assert float(gradient_l1(images, targets)) == pytest.approx(1 / 16 + 2 / 12 + 2 * 0.25 / 2)


def test_both_steps_judge_the_same_augmented_fakes():
    module, calls = build(), []
    forward = module.discriminator.forward

    def watch(big, small, quadrant=None):
        calls.append((big, small))
        return forward(big, small, quadrant)

    module.discriminator.forward = watch
    fit(module, max_epochs=1)
    assert len(calls) == 6
    for fake, again in zip(calls[1::3], calls[2::3], strict=True):
        assert torch.equal(fake[0], again[0]) and torch.equal(fake[1], again[1]) and again[0].requires_grad
    assert torch.equal(F.interpolate(calls[0][0], (16, 16)), calls[0][1])  # reals are augmented once


def test_the_augmentation_is_a_setting():
    plain, empty, ada = (build(**keys) for keys in ({"augment": "none"}, {"policy": ""}, {"augment": "ada", "ada_kimg": 0.001}))
    runs = [fit(module, max_epochs=1) for module in (plain, empty, ada)]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), empty.parameters(), strict=True))
    assert int(ada.augment.calls) == 2 and "train/ada_p" in runs[2].logged_metrics


def test_noise_matters_in_samples_and_not_along_latents():
    module = build()
    for part in module.generator_ema.modules():
        if isinstance(part, Noise):
            part.strength.data.fill_(0.5)
    with sampling_mode(module, 0):
        z = module.sample_latents(2)
        assert torch.equal(module.decode(z), module.decode(z))
        assert not torch.equal(module.generator_ema(z)[0], module.generator_ema(z)[0])
    with pytest.raises(UserError, match=r"makes images of \[32, 32\] only"):
        module.sample(1, (64, 64))


def test_without_reconstruction_training_runs_and_reads_no_file():
    assert fit(build(reconstruction_weight=0.0), max_epochs=1).callback_metrics.keys().isdisjoint({"train/reconstruction_l1"})
    with pytest.raises(UserError, match="module.reconstruction: vgg16_pool5 needs a file"):
        build(reconstruction="vgg16").check_data(drawn())
    with pytest.raises(UserError, match="datamodule.labels: FastGAN has no classes"):
        build().check_data(drawn(labels="folder"))
    with pytest.raises(UserError, match="FastGAN makes squares of 32, 64"):
        build(image_size=[16, 16])


@pytest.mark.skipif(package_file() is None, reason="the optional package with MobileNetV2 is not installed")
def test_a_perceptual_reconstruction_is_zero_for_equal_images_and_named():
    module = build(reconstruction="mobilenet_v2")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert float(module.distance()(images, images)) == 0 and float(module.distance()(images, -images)) > 0.1
    before = state(module)
    assert "train/reconstruction_mobilenet_v2" in fit(module, max_epochs=1).callback_metrics
    assert before.keys() == module.state_dict().keys() and changed(before, module.state_dict())


@pytest.mark.slow
def test_reconstructions_improve_on_ten_images():
    module = build(epochs=6, width=8, policy="")  # augmented targets would differ between the two readings
    first = fit(module, {"num_images": 10, "samples_per_epoch": 40}, max_epochs=1).callback_metrics
    last = fit(module, {"num_images": 10, "samples_per_epoch": 400}).callback_metrics
    assert last["train/reconstruction_l1"] < 0.8 * first["train/reconstruction_l1"]
