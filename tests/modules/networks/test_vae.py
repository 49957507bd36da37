import math

import pytest
import torch
from torch import nn

from modules.networks.patch_gan import PatchCritic
from modules.networks.vae import PatchVAE, RefinementBlock


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def reach(function, channels, side=31):
    """Side of the square of input pixels that the output's middle pixel depends on."""
    inputs = torch.randn(1, channels, side, side, requires_grad=True)
    function(inputs)[0, :, side // 2, side // 2].sum().backward()
    touched = inputs.grad.abs().sum((0, 1)) > 0
    rows, columns = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    assert rows.max() - rows.min() == columns.max() - columns.min()
    return (rows.max() - rows.min() + 1).item()


def test_sizes_of_the_released_networks():
    """Parameter counts and receptive fields of the released image script at width 64, latent 128."""
    vae, block, critic = PatchVAE(128, 64, 6, 3).eval(), RefinementBlock(64, 6).eval(), PatchCritic(64, 6).eval()
    counts = [parameters(part) for part in (vae.encoder, vae.decoder, block, critic)]
    assert counts == [223_360, 260_931, 188_931, 187_009]
    fields = [reach(vae.encoder.features, 3), reach(lambda x: vae.encoder(x)[0], 3), reach(vae.decode, 128)]
    assert fields + [reach(block, 3), reach(critic, 3)] == [7, 9, 15, 15, 15]


@pytest.mark.parametrize("size", [(8, 11), (1, 5), (17, 3)])
def test_the_latent_is_as_high_and_wide_as_the_image(size):
    vae = PatchVAE(5, 8, 2, 3).eval()
    mean, log_variance = vae.encoder(torch.rand(2, 3, *size))
    assert mean.shape == log_variance.shape == (2, 5, *size)
    assert vae.decode(mean).shape == (2, 3, *size)


def test_forward_decodes_the_mean():
    vae, images = PatchVAE(5, 8, 2, 3).eval(), torch.rand(2, 3, 6, 7)
    nn.init.constant_(vae.encoder.mean.weight, 0.0)
    nn.init.constant_(vae.encoder.mean.bias, 0.25)
    assert torch.equal(vae(images), vae.decode(torch.full((2, 5, 6, 7), 0.25)))


def test_decoded_images_are_in_range():
    vae = PatchVAE(4, 8, 2, 3).eval()
    nn.init.constant_(vae.decoder[-1].bias, 50.0)
    assert torch.equal(vae.decode(torch.randn(1, 4, 5, 5)), torch.ones(1, 3, 5, 5))


def test_spectral_norm_bounds_the_encoders_hidden_layers_and_leaves_the_heads_free():
    vae = PatchVAE(4, 8, 2, 3)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(20)
    for _ in range(60):
        vae.encoder(torch.rand(1, 3, 8, 8))

    def norm(layer):
        return torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()

    hidden = [layer for layer in vae.encoder.features if isinstance(layer, nn.Conv2d)]
    assert len(hidden) == 3 and all(norm(layer) == pytest.approx(1, rel=0.02) for layer in hidden)
    assert norm(vae.encoder.mean) > 2 and norm(vae.encoder.log_variance) > 2


@pytest.mark.parametrize(("squash", "expected"), [("sum", math.tanh(0.9)), ("residual", 0.9)])
def test_a_block_without_detail_squashes_its_input_or_keeps_it(squash, expected):
    block = RefinementBlock(8, 2, squash).eval()
    nn.init.zeros_(block.body[-1].weight)
    nn.init.zeros_(block.body[-1].bias)
    images = torch.full((1, 3, 6, 6), 0.9)
    assert torch.allclose(block(images), torch.full_like(images, expected))
    assert torch.equal(block(images), block(images, torch.randn_like(images)))  # noise enters the body only


@pytest.mark.parametrize(("squash", "expected"), [("sum", math.tanh(2.9)), ("residual", 0.9 + math.tanh(2.0))])
def test_what_is_squashed(squash, expected):
    block = RefinementBlock(8, 2, squash).eval()
    nn.init.zeros_(block.body[-1].weight)
    nn.init.constant_(block.body[-1].bias, 2.0)
    images = torch.full((1, 3, 6, 6), 0.9)
    assert torch.allclose(block(images), torch.full_like(images, expected))


def test_noise_goes_into_the_body():
    block = RefinementBlock(8, 2).eval()
    images, noise = torch.rand(1, 3, 6, 6), torch.randn(1, 3, 6, 6)
    assert torch.allclose(block(images, noise), torch.tanh(block.body(images + noise) + images))
    assert not torch.allclose(block(images, noise), block(images))


@pytest.mark.parametrize(("bn_mode", "alone"), [("eval", True), ("batch", False)])
def test_in_eval_mode_an_image_depends_on_its_batch_only_with_bn_mode_batch(bn_mode, alone):
    torch.manual_seed(0)
    block = RefinementBlock(8, 2, bn_mode=bn_mode)
    block(torch.randn(2, 3, 9, 9))
    block.eval()
    images = torch.randn(2, 3, 9, 9)
    assert torch.allclose(block(images)[:1], block(images[:1]), atol=1e-5) == alone
    assert (len(list(block.buffers())) > 0) == alone  # nothing that could drift
