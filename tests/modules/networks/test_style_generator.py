"""Counts, order of operations and statistics of StyleGAN2's generator; its convolutions against scipy and against weights
that are modulated one by one, as the paper writes it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d

from core.errors import UserError
from modules.networks.residual_discriminator import ResidualDiscriminator
from modules.networks.style_generator import ModulatedConv, StyleGenerator

PUBLISHED = [  # side, channel multiplier, latents, convolutions, parameters of generator and discriminator
    (32, 2, 8, 7, 21_523_475, 21_507_073),
    (64, 1, 10, 9, 23_819_544, 23_407_361),
    (64, 2, 10, 9, 27_032_600, 26_488_833),
    (128, 2, 12, 11, 29_328_669, 28_389_121),
    (256, 1, 14, 13, 24_767_458, 24_001_089),
    (256, 2, 14, 13, 30_034_338, 28_864_129),
    (1024, 2, 18, 17, 30_370_060, 29_012_513),
]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("side", "multiplier", "latents", "convs", "generator", "discriminator"), PUBLISHED)
def test_parameter_counts(side, multiplier, latents, convs, generator, discriminator):
    with torch.device("meta"):
        net, critic = StyleGenerator(side, channel_multiplier=multiplier), ResidualDiscriminator(side, multiplier)
    assert (net.num_latents, net.num_convs) == (latents, convs)
    assert count(net) == generator
    assert count(critic) == discriminator


def small(**settings) -> StyleGenerator:
    torch.manual_seed(0)
    return StyleGenerator(32, **({"z_dim": 8, "w_dim": 6, "mapping_layers": 2, "channels": [8, 7, 6, 5]} | settings)).double()


@pytest.mark.parametrize("side", [8, 24, 48, 0])
def test_sizes_that_are_no_power_of_two_are_refused(side):
    with pytest.raises(UserError, match=f"image_size is {side}; .*power of two of at least 16"):
        StyleGenerator(side)


def test_features_of_all_layers_and_images_that_are_not_clamped():
    net = small()
    output = net(100 * torch.randn(2, 8, dtype=torch.float64), "const", features=range(net.num_convs))
    assert [output.features[i].shape[-1] for i in range(net.num_convs)] == [4, 8, 8, 16, 16, 32, 32]
    assert output.images.shape == (2, 3, 32, 32) and output.w.shape == (2, 8, 6)
    for projection in net.to_rgb:
        projection.bias.data += 50
    assert net(torch.randn(1, 8, dtype=torch.float64), None).images.min() > 1


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_convolution_equals_weights_modulated_one_by_one(up, demodulate):
    torch.manual_seed(1)
    conv = ModulatedConv(3, 4, 3, 5, demodulate, up).double()
    images, w = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    result = conv(images, w).detach().numpy()
    styles = (w @ conv.affine.weight.T / math.sqrt(5) + conv.affine.bias).detach().numpy()
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * 4
    for n in range(2):
        weight = conv.weight.detach().numpy() / math.sqrt(27) * styles[n][None, :, None, None]
        if demodulate:
            weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
        for o in range(4):
            total = 0
            for i in range(3):
                if up:  # a transposed convolution is a true convolution of the image with zeros between its pixels
                    spread = np.zeros((11, 11))
                    spread[::2, ::2] = images[n, i].numpy()
                    total = total + convolve2d(convolve2d(spread, weight[o, i]), kernel)[2:-2, 2:-2]
                else:
                    total = total + convolve2d(images[n, i].numpy(), weight[o, i][::-1, ::-1], mode="same")
            assert np.allclose(result[n, o], total, atol=1e-10)


def test_demodulated_outputs_have_unit_deviation_and_no_scale_is_needed():
    torch.manual_seed(0)
    conv = ModulatedConv(64, 64, 3, 16)
    images, w = torch.randn(8, 64, 16, 16), torch.randn(8, 16)
    outputs = conv(images, w).detach()
    assert float(outputs[..., 2:-2, 2:-2].std()) == pytest.approx(0.99, abs=0.05)
    conv.scale = 1.0
    assert torch.allclose(conv(images, w), outputs, atol=1e-5)


def synthesis_by_hand(net: StyleGenerator, w: torch.Tensor) -> torch.Tensor:
    """Which latent goes where, in which order things are added; layers themselves are tested above."""

    def styled(layer, images, latent):
        images = layer.conv(images, latent) + layer.noise_strength * layer.noise_const + layer.bias[:, None, None]
        return math.sqrt(2) * torch.where(images > 0, images, 0.2 * images)

    def colors(layer, images, latent):
        styles = latent @ layer.conv.affine.weight.T / math.sqrt(latent.shape[1]) + layer.conv.affine.bias
        weight = layer.conv.weight[:, :, 0, 0] / math.sqrt(images.shape[1])
        return torch.einsum("oi,ni,nihw->nohw", weight, styles, images) + layer.bias[:, None, None]

    images = styled(net.convs[0], net.const.expand(len(w), -1, -1, -1), w[:, 0])
    rgb = colors(net.to_rgb[0], images, w[:, 1])
    for block in range(3):
        i = 1 + 2 * block
        images = styled(net.convs[i], images, w[:, i])
        images = styled(net.convs[i + 1], images, w[:, i + 1])
        zeros = F.pad(rgb[..., None, :, None], (0, 1, 0, 0, 0, 1)).flatten(4, 5).flatten(2, 3)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=rgb.dtype)
        kernel = (torch.outer(taps, taps) / 16).expand(3, 1, 4, 4)
        rgb = F.conv2d(F.pad(zeros, (2, 1, 2, 1)), kernel, groups=3) + colors(net.to_rgb[block + 1], images, w[:, i + 2])
    return rgb


def test_synthesis_written_out():
    net = small()
    for conv in net.convs:
        conv.noise_strength.data.normal_()
        conv.bias.data.normal_()
    w = torch.randn(2, net.num_latents, 6, dtype=torch.float64)
    assert torch.allclose(net.synthesis(w, "const").images, synthesis_by_hand(net, w), atol=1e-10)


def test_mapping_written_out():
    net = small(mapping_lr_mul=0.01)
    values = z = torch.randn(3, 8, dtype=torch.float64)
    values = values / (values.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in net.mapping_layers:
        values = values @ (layer.weight.T * 0.01 / math.sqrt(layer.weight.shape[1])) + 0.01 * layer.bias
        values = math.sqrt(2) * torch.where(values > 0, values, 0.2 * values)
    assert torch.allclose(net.mapping(z), values)
    assert torch.allclose(net.mapping(5 * z), net.mapping(z), atol=1e-7)
    assert float(net.mapping_layers[0].weight.std()) == pytest.approx(100, rel=0.2)


def test_constant_noise_makes_an_image_a_function_of_its_latent_alone():
    net, z = small(), torch.randn(5, 8, dtype=torch.float64)
    for conv in net.convs:
        conv.noise_strength.data.fill_(0.5)
    together = net(z, "const").images
    assert torch.equal(net(z, "const").images, together)
    assert torch.allclose(torch.cat([net(one[None], "const").images for one in z]), together, atol=1e-12)
    assert not torch.equal(net(z, "random").images, net(z, "random").images)
    noise = [conv.noise_const for conv in net.convs]
    assert torch.equal(net(z, noise).images, together)


def test_style_mixing_and_truncation():
    net = small()
    a, b = torch.randn(2, 3, 6, dtype=torch.float64)
    mixed = net.broadcast(a, b, crossover=3)
    assert torch.equal(mixed[:, :3], a[:, None].expand(-1, 3, -1)) and torch.equal(mixed[:, 3:], b[:, None].expand(-1, 5, -1))
    net.w_mean.copy_(torch.arange(6.0))
    assert torch.allclose(net.truncate(a, 0.7), net.w_mean + 0.7 * (a - net.w_mean))
    assert torch.allclose(net.truncate(a, 0.0), net.w_mean.expand_as(a)) and net.truncate(a, 1) is a
