"""SSGAN: rotations, and which network learns from which images."""

import math

import pytest
import torch
from torch import nn

from modules.ssgan import SSGAN, all_rotations
from tests.modules import test_sngan
from tests.modules.test_sngan import changed, fit, state

TINY = test_sngan.TINY
PARAMETERS = {"ssgan": 577_163, "ssgan_128": 93_323_531}


def build(**changes) -> SSGAN:
    return test_sngan.build(SSGAN, **changes)


def test_rotations_are_exact_and_four_of_them_nothing():
    images = torch.randn(2, 3, 4, 4)
    turned, angles = all_rotations(images)
    assert angles.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and torch.equal(turned[:2], images)
    for start in range(0, 6, 2):
        assert torch.equal(turned[start + 2 : start + 4], turned[start : start + 2].transpose(2, 3).flip(2))
    assert torch.equal(turned[6:].transpose(2, 3).flip(2), images)


def test_the_rotation_loss_begins_at_chance_and_takes_a_quarter_of_the_images():
    module, seen = build(), []
    nn.init.zeros_(module.rotation_head.parametrizations.weight.original)
    features = module.discriminator.features
    module.discriminator.features = lambda images: (seen.append(len(images)), features(images))[1]
    assert float(module.rotation_loss(torch.randn(9, 3, 16, 16))) == pytest.approx(math.log(4))
    module.rotation_loss(torch.randn(2, 3, 16, 16))
    assert seen == [8, 4]


def test_the_discriminator_learns_from_reals_and_the_generator_from_fakes():
    module, losses = build(), []
    rotation, optimize = module.rotation_loss, module.optimize
    module.rotation_loss = lambda images: (losses.append(images.requires_grad), rotation(images))[1]
    moved = []

    def watch(optimizer, loss):
        before = state(module)
        optimize(optimizer, loss)
        moved.append({key.split(".")[0] for key in changed(before, module.state_dict())})

    module.optimize = watch
    fit(module, max_epochs=1)
    assert losses == [False, False, True] * 2  # reals twice, then fakes
    assert moved == [{"discriminator", "rotation_head"}] * 2 + [{"generator"}] + moved[3:]


def test_without_rotation_it_is_sngan():
    plain, other = fit(test_sngan.build()), build(rotation_d=0.0, rotation_g=0.0)
    other.load_state_dict(test_sngan.build().state_dict(), strict=False)
    fit(other)
    assert not changed(plain.state_dict(), {k: v for k, v in other.state_dict().items() if k in plain.state_dict()})


@pytest.mark.slow
def test_rotations_are_learned():
    module = fit(build(epochs=20, lr_d=2e-3, n_dis=1), data={"samples_per_epoch": 80})
    from datamodules.synthetic import SyntheticDataModule

    data = SyntheticDataModule([16, 16], num_images=8)
    data.setup()
    turned, angles = all_rotations(data.sets()["image"].stack())
    with torch.no_grad():
        accuracy = (module.eval().rotation_head(module.discriminator.features(turned)).argmax(1) == angles).float().mean()
    assert float(accuracy) > 0.7
