import math

import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from modules.losses.penalties import r1_penalty
from modules.networks.residual_discriminator import Block, ResidualDiscriminator, minibatch_deviation


def small(side: int = 32) -> ResidualDiscriminator:
    torch.manual_seed(0)
    return ResidualDiscriminator(side, channels=[8, 7, 6, 5, 4, 4, 4][: int(math.log2(side)) - 1]).double()


def blur(images, before, after):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=images.dtype)
    kernel = (torch.outer(taps, taps) / 64).expand(images.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(images, (before, after, before, after)), kernel, groups=images.shape[1])


def test_block_written_out():
    torch.manual_seed(0)
    block, images = Block(3, 5).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    block.conv1.bias.data.normal_()

    def active(values, bias):
        values = values + bias[:, None, None]
        return math.sqrt(2) * torch.where(values > 0, values, 0.2 * values)

    first = active(F.conv2d(images, block.conv1.weight / math.sqrt(27), padding=1), block.conv1.bias)
    second = active(F.conv2d(blur(first, 2, 2), block.conv2.weight / math.sqrt(27), stride=2), block.conv2.bias)
    skip = F.conv2d(blur(images, 1, 1), block.skip.weight / math.sqrt(3), stride=2)
    output, tap1, tap2 = block(images)
    assert output.shape == (2, 5, 4, 4)
    assert torch.allclose(tap1, first) and torch.allclose(tap2, second)
    assert torch.allclose(output, (second + skip) / math.sqrt(2))


def test_deviation_is_over_images_with_equal_index_modulo_the_number_of_groups():
    features = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    channel = minibatch_deviation(features, 4)[:, 3]
    for i in range(8):
        members = features[i % 2 :: 2]
        expected = (members.var(0, correction=0) + 1e-8).sqrt().mean()
        assert torch.allclose(channel[i], expected.expand(4, 4))
    assert torch.equal(minibatch_deviation(features, 4)[:, :3], features)


@pytest.mark.parametrize(("number", "size"), [(1, 1), (2, 2), (5, 1), (6, 3), (7, 1), (12, 4)])
def test_a_batch_that_no_group_divides_takes_the_largest_that_does(number, size):
    features = torch.randn(number, 2, 4, 4, dtype=torch.float64)
    groups = number // size
    expected = [(features[i % groups :: groups].var(0, correction=0) + 1e-8).sqrt().mean() for i in range(number)]
    assert torch.allclose(minibatch_deviation(features, 4)[:, 2, 0, 0], torch.stack(expected))


def test_taps_their_shapes_and_their_order():
    net = small(64)
    assert net.tap_names == [f"{r}.conv{i}" for r in (64, 32, 16, 8) for i in (1, 2)]
    found = net(torch.randn(2, 3, 64, 64, dtype=torch.float64), taps=net.tap_names).taps
    for name in net.tap_names:
        assert (found[name].shape[1], found[name].shape[2]) == net.tap_shape(name)
    assert net.tap_shape("64.conv2")[1] == 32 and net.tap_shape("16.conv1")[1] == 16


@pytest.mark.parametrize(("tap", "field"), [("64.conv1", 3), ("64.conv2", 8), ("32.conv1", 12), ("32.conv2", 22)])
def test_receptive_fields(tap, field):
    net = small(64)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    values = net(images, stop_after=tap).taps[tap]
    middle = values.shape[-1] // 2
    (gradient,) = torch.autograd.grad(values[0, :, middle, middle].sum(), images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == field


def test_a_stopped_pass_gives_the_tap_and_uses_no_later_layer():
    net, images = small(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    stopped = net(images, stop_after="16.conv1")
    assert stopped.logits is None
    assert torch.equal(stopped.taps["16.conv1"], net(images, taps=["16.conv1"]).taps["16.conv1"])
    stopped.taps["16.conv1"].sum().backward()
    used = {name.split(".")[0] + "." + name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None}
    assert used == {"from_rgb.weight", "from_rgb.bias", "blocks.0", "blocks.1"}
    assert net.blocks[1].conv2.weight.grad is None
    with pytest.raises(UserError, match="unknown tap 64.conv1; allowed are 32.conv1"):
        net(images, stop_after="64.conv1")


def test_gradients_of_r1_alone():
    """Behind the deviation layer the network is piecewise linear, so that biases there do not change the gradient."""
    net = small().float()
    r1_penalty(lambda images: net(images).logits, torch.randn(4, 3, 32, 32)).backward()
    behind = ("conv.bias", "linear.bias", "output.bias")
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name in behind:
            assert not parameter.grad.any(), name
        elif name.endswith("weight"):
            assert parameter.grad.any(), name
